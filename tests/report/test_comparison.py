"""Several runs in one report."""

import json
import shutil

import pytest

from tests.report.conftest import IMAGES, VAL, evaluate
from tests.report.test_evaluation import read


@pytest.fixture(scope="module")
def runs(root, files, tmp_path_factory):
    """Run folders with their predictions, as evaluate.py leaves them."""
    home = tmp_path_factory.mktemp("runs")
    for name in ("poor", "good"):
        outcome = evaluate(root, home / name, f"predictions={files[name]}", "report=false")
        assert outcome.code == 0, outcome.err
        shutil.copy(files[name], home / name / "predictions.json")
    return home


@pytest.fixture(scope="module")
def compared(root, files, runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared") / "run"
    outcome = evaluate(root, folder, f"compare=[{runs / 'poor'},{runs / 'good'},{files['perfect']}]")
    assert outcome.code == 0, outcome.err
    return folder, outcome


def test_each_run_is_held_against_the_first(runs, files, compared):
    content = json.loads((compared[0] / "comparison.json").read_text())
    assert content["runs"] == {"A": str(runs / "poor"), "B": str(runs / "good"), "C": str(files["perfect"])}
    assert (content["images"], content["resamples"]) == (IMAGES, 500)
    assert [table["title"] for table in content["tables"]] == [
        f"{kind} AP: {run} against A" for kind in ("mask", "box") for run in "BC"
    ]
    for table, kind, run in zip(content["tables"], ("mask", "mask", "box", "box"), "BCBC", strict=True):
        everything, at_50, *classes = table["rows"]
        first = json.loads((runs / "poor" / "metrics.json").read_text())[kind]
        assert everything["first"] == pytest.approx(first["ap"], abs=1e-9)
        assert at_50["first"] == pytest.approx(first["ap50"], abs=1e-9)
        if run == "B":
            second = json.loads((runs / "good" / "metrics.json").read_text())[kind]
            assert everything["second"] == pytest.approx(second["ap"], abs=1e-9)
        assert everything["value"] == pytest.approx(everything["second"] - everything["first"])
        assert 0 < everything["low"] < everything["value"] < everything["high"] < 1
        assert len(classes) == 5


def test_table_and_page_say_the_same(compared):
    folder, outcome = compared
    rows = [row for row in read(folder).tables["differences"] if row[0] == "all classes"]
    lines = [line for line in outcome.out.splitlines() if line.startswith("all classes")]
    assert len(rows) == len(lines) == 4
    for (_, first, second, difference), line in zip(rows, lines, strict=True):
        value, interval = difference.split("[")
        low, high = interval.rstrip("]").split(", ")
        assert line.split() == ["all", "classes", first, second, value, low, "to", high, "*"]
    assert all(len(line) <= 80 for line in outcome.out.splitlines() if "AP" in line or "all" in line)
    assert f"report: {folder / 'report.html'}" in outcome.out


def test_a_second_comparison_is_the_same(root, runs, files, compared, tmp_path):
    arguments = f"compare=[{runs / 'poor'},{runs / 'good'},{files['perfect']}]"
    assert evaluate(root, tmp_path, arguments).code == 0
    for name in ("comparison.json", "report.html"):
        assert (tmp_path / name).read_bytes() == (compared[0] / name).read_bytes()


def boxes_alone(path, folder):
    results = json.loads(path.read_text())
    for one in results:
        del one["segmentation"]
    (folder / "boxes.json").write_text(json.dumps(results))
    return folder / "boxes.json"


def test_what_all_have_is_compared(root, files, tmp_path):
    boxes = boxes_alone(files["good"], tmp_path)
    outcome = evaluate(root, tmp_path / "run", f"compare=[{boxes},{files['poor']}]")
    assert outcome.code == 0, outcome.err
    content = json.loads((tmp_path / "run" / "comparison.json").read_text())
    assert [table["title"] for table in content["tables"]] == ["box AP: B against A"]
    assert "-" in outcome.out


def test_a_class_with_nothing_to_find_has_no_difference(root, files, tmp_path):
    shutil.copytree(root, tmp_path / "set")
    content = json.loads((root / VAL).read_text())
    star = next(category["id"] for category in content["categories"] if category["name"] == "star")
    content["annotations"] = [one for one in content["annotations"] if one["category_id"] != star]
    (tmp_path / "set" / VAL).write_text(json.dumps(content))
    outcome = evaluate(tmp_path / "set", tmp_path / "run", f"compare=[{files['poor']},{files['good']}]")
    assert outcome.code == 0, outcome.err
    rows = json.loads((tmp_path / "run" / "comparison.json").read_text())["tables"][0]["rows"]
    (row,) = [row for row in rows if row["name"] == "star"]
    assert row == {"name": "star", "first": None, "second": None, "value": None, "low": None, "high": None}
    assert ["star", "-", "-", "-"] in read(tmp_path / "run").tables["differences"]


def refused(root, tmp_path, value, *more):
    outcome = evaluate(root, tmp_path / "run", f"compare={value}", *more)
    assert outcome.code == 1
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: ")
    assert not (tmp_path / "run").exists()
    return line


@pytest.mark.parametrize("value", ["[one]", "one", "[]"])
def test_too_few_runs_are_one_line(root, tmp_path, value):
    assert "compare: takes 2 to 26 runs" in refused(root, tmp_path, value)


def test_a_missing_file_is_one_line(root, files, tmp_path):
    line = refused(root, tmp_path, f"[{files['poor']},{tmp_path / 'none.json'}]")
    assert f"{tmp_path / 'none.json'}: can't be read" in line


def test_a_folder_without_predictions_is_one_line(root, files, tmp_path):
    (tmp_path / "training").mkdir()
    line = refused(root, tmp_path, f"[{files['poor']},{tmp_path / 'training'}]")
    assert f"{tmp_path / 'training'} holds no predictions.json; python evaluate.py ckpt=... writes one" in line


def test_a_run_of_other_images_is_one_line(root, files, runs, tmp_path):
    line = refused(root, tmp_path, f"[{files['poor']},{runs / 'good'}]", "data.limit=5")
    assert "has an unknown image_id" in line
    line = refused(root, tmp_path, f"[{runs / 'good'},{files['poor']}]", "data.limit=5")
    assert f"{runs / 'good'} was scored on {IMAGES} images, here there are 5" in line


def test_boxes_and_masks_have_nothing_in_common(root, files, tmp_path):
    masks = json.loads(files["good"].read_text())
    for one in masks:
        del one["bbox"]
    (tmp_path / "masks.json").write_text(json.dumps(masks))
    boxes = boxes_alone(files["good"], tmp_path)
    assert "nothing can be compared" in refused(root, tmp_path, f"[{boxes},{tmp_path / 'masks.json'}]")


def test_a_split_without_annotations_is_one_line(root, files, tmp_path):
    shutil.copytree(root, tmp_path / "set")
    content = json.loads((root / VAL).read_text())
    del content["annotations"]
    (tmp_path / "set" / VAL).write_text(json.dumps(content))
    line = refused(tmp_path / "set", tmp_path, f"[{files['poor']},{files['good']}]")
    assert "compare: split=val has no annotations" in line

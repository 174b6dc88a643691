"""The report of one evaluation: its numbers, its pictures, and what it does without them."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from maskrcnn.evaluation.coco import METRICS
from maskrcnn.evaluation.errors import TYPES, error_costs
from maskrcnn.evaluation.matches import match
from tests.cli_tools import run
from tests.report.conftest import IMAGES, VAL, evaluate


class Page(HTMLParser):
    """Tables by id, the sources of images, and the text between tags."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.sources, self.text = {}, [], ""
        self._rows = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "table":
            self._rows = self.tables.setdefault(attributes.get("id") or attributes["class"], [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        elif tag == "img":
            self.sources.append(attributes["src"])
        assert tag not in ("script", "link", "iframe")

    def handle_endtag(self, tag):
        if tag == "table":
            self._rows = None

    def handle_data(self, data):
        self.text += data
        if self._rows and self._rows[-1]:
            self._rows[-1][-1] += data.strip()


def read(folder):
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def reported(root, files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reported") / "run"
    outcome = evaluate(root, folder, f"predictions={files['poor']}")
    assert outcome.code == 0, outcome.err
    return folder, outcome


def test_scores_are_those_of_the_tables(reported):
    page = read(reported[0])
    metrics = json.loads((reported[0] / "metrics.json").read_text())
    rows = {name: cells for name, *cells in page.tables["scores"][1:]}
    assert list(rows) == list(METRICS)
    for name, cells in rows.items():
        expected = [metrics[kind][name] for kind in ("box", "mask")]
        assert cells == ["-" if value < 0 else f"{value:.3f}" for value in expected]


def test_costs_are_those_of_the_decomposition(root, files, reported):
    truth, results = (json.loads(path.read_text()) for path in (root / VAL, files["poor"]))
    costs = [error_costs(match(truth, results, kind=kind)) for kind in ("box", "mask")]
    rows = read(reported[0]).tables["errors"][1:]
    printed = re.findall(r"^(\w+) +(0\.\d{3}) +(\d+) +(0\.\d{3}) +(\d+)$", reported[1].out, re.MULTILINE)
    for (name, meaning), row, line in zip(TYPES.items(), rows, printed, strict=False):
        cells = [cell for cost in costs for cell in (f"{cost.types[name]:.3f}", str(cost.counts[name]))]
        assert row == [name + meaning, *cells]
        assert line == (name, *cells)
    assert len(printed) == len(TYPES)
    assert costs[1].types["localisation"] > 0.01
    assert [row[0] for row in rows[len(TYPES) :]] == ["all false positives", "all false negatives"]


def test_classes_have_their_thresholds(reported):
    rows = read(reported[0]).tables["classes"][1:]
    assert [row[0] for row in rows] == ["ellipse", "triangle", "star", "ring", "cross"]
    assert all(0 < float(row[4]) < 1 and 0 < float(row[5]) <= 1 for row in rows if row[1] != "0")


def test_pictures_are_inside_the_page(reported):
    page = read(reported[0])
    assert all(source.startswith(("data:image/svg+xml;base64,", "data:image/jpeg;base64,")) for source in page.sources)
    jpegs = [source for source in page.sources if source.startswith("data:image/jpeg")]
    assert len(jpegs) == 18  # nine pictures, twice
    assert len(set(jpegs)) == 18
    assert "http" not in re.sub(r'src="[^"]*"', "", (reported[0] / "report.html").read_text())
    assert f"report: {reported[0] / 'report.html'}" in reported[1].out


def test_a_second_report_is_the_same(root, files, reported, tmp_path):
    assert evaluate(root, tmp_path, f"predictions={files['poor']}").code == 0
    assert (tmp_path / "report.html").read_bytes() == (reported[0] / "report.html").read_bytes()
    speed = json.loads((tmp_path / "speed.json").read_text())
    assert speed["images"] == IMAGES
    assert set(speed) >= {"load_ms", "scoring_ms", "images_per_second", "main_memory_gb"}


def test_report_false_writes_none(root, files, tmp_path):
    outcome = evaluate(root, tmp_path, f"predictions={files['good']}", "report=false")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "metrics.json").exists()
    assert not (tmp_path / "report.html").exists()
    assert "report:" not in outcome.out


def test_perfect_results_have_no_worst_pictures(root, files, tmp_path):
    results = json.loads(files["perfect"].read_text())[::2]
    (tmp_path / "perfect.json").write_text(json.dumps(results))
    assert evaluate(root, tmp_path, f"predictions={tmp_path / 'perfect.json'}").code == 0
    page = read(tmp_path)
    assert "None: every instance was found" in page.text
    assert "confusions" not in page.tables


def test_without_the_picture_files_names_are_left(root, files, tmp_path):
    shutil.copytree(root / "annotations", tmp_path / "set" / "annotations")
    outcome = evaluate(tmp_path / "set", tmp_path / "run", f"predictions={files['poor']}")
    assert outcome.code == 0, outcome.err
    page = read(tmp_path / "run")
    assert "The pictures cannot be read here" in page.text
    assert not any(source.startswith("data:image/jpeg") for source in page.sources)
    assert len(re.findall(r"\S+: \d+ wrong, \d+ missed", page.text)) == 9


# --- what an evaluation must take


def edited(root, folder, change):
    """A copy of the set with other annotations."""
    shutil.copytree(root, folder)
    content = json.loads((folder / VAL).read_text())
    change(content)
    (folder / VAL).write_text(json.dumps(content))
    return folder


def with_results(root, folder, results, *arguments):
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    outcome = evaluate(root, folder / "run", f"predictions={folder / 'results.json'}", *arguments)
    assert outcome.code == 0, outcome.err
    notes = [line for line in outcome.out.splitlines() if line.startswith("note: ")]
    return json.loads((folder / "run" / "metrics.json").read_text()), notes, read(folder / "run")


def test_no_detections(root, tmp_path):
    metrics, notes, page = with_results(root, tmp_path, [])
    assert metrics["box"]["ap"] == metrics["mask"]["ap"] == 0
    assert notes == ["note: no detections at all, so every instance is missed"]
    assert notes[0].removeprefix("note: ") in page.text
    assert "There are no detections." in page.text


def test_nothing_to_find(root, files, tmp_path):
    bare = edited(root, tmp_path / "set", lambda content: content.update(annotations=[]))
    metrics, notes, page = with_results(bare, tmp_path, json.loads(files["good"].read_text()))
    assert metrics["box"]["ap"] == metrics["mask"]["ap"] == -1
    assert "note: no image has an instance to find, so every AP is -1" in notes
    assert page.tables["scores"][1] == ["ap", "-", "-"]


def test_one_class(root, files, tmp_path):
    def change(content):
        content["categories"] = content["categories"][:1]
        known = content["categories"][0]["id"]
        content["annotations"] = [one for one in content["annotations"] if one["category_id"] == known]

    known = json.loads((root / VAL).read_text())["categories"][0]["id"]
    results = [one for one in json.loads(files["good"].read_text()) if one["category_id"] == known]
    metrics, _, page = with_results(edited(root, tmp_path / "set", change), tmp_path, results)
    assert 0 < metrics["mask"]["ap"] < 1
    assert len(page.tables["classes"]) == 2
    assert page.tables["errors"][1][1:] == ["0.000", "0", "0.000", "0"]  # classification


def test_a_thousand_detections_in_an_image(root, files, tmp_path):
    results = json.loads(files["good"].read_text())
    results += [results[0] | {"score": 0.25 - i / 10_000} for i in range(1000)]
    metrics, notes, _ = with_results(root, tmp_path, results)
    assert "note: more than 100 detections of a class in 1 image: the best 100 count" in notes
    fewer, _, _ = with_results(root, tmp_path / "fewer", json.loads(files["good"].read_text()))
    assert metrics["mask"]["ar100"] == fewer["mask"]["ar100"]


def test_images_missing_from_the_results(root, files, tmp_path):
    results = json.loads(files["perfect"].read_text())
    left = results[0]["image_id"]
    metrics, notes, _ = with_results(root, tmp_path, [one for one in results if one["image_id"] == left])
    assert notes == [f"note: no detections in {IMAGES - 1} of {IMAGES} images with instances, so these are missed"]
    assert 0 < metrics["mask"]["ar100"] < 0.7


def test_unknown_image_is_one_line(root, files, tmp_path):
    results = json.loads(files["perfect"].read_text())
    results[3]["image_id"] = 77
    (tmp_path / "results.json").write_text(json.dumps(results))
    outcome = evaluate(root, tmp_path / "run", f"predictions={tmp_path / 'results.json'}")
    assert outcome.code == 1
    assert outcome.err.splitlines() == [
        f"error: {tmp_path / 'results.json'}: entry 3 has an unknown image_id, the ground truth has no 77"
    ]
    assert not (tmp_path / "run").exists()


def test_boxes_alone(root, files, tmp_path):
    results = [one | {} for one in json.loads(files["good"].read_text())]
    for one in results:
        del one["segmentation"]
    metrics, _, page = with_results(root, tmp_path, results)
    assert set(metrics) == {"box", "images"}
    assert page.tables["scores"][0] == ["COCO metric", "box"]
    assert len([source for source in page.sources if source.startswith("data:image/jpeg")]) == 18


def test_one_source_at_a_time(files):
    for arguments in ([], [f"predictions={files['good']}", "compare=[a,b]"]):
        outcome = run("evaluate", *arguments)
        assert outcome.code == 1
        assert outcome.err.startswith("error: ckpt, predictions, compare: give one of them")

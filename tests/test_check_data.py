"""check_data on small sets whose faults and numbers are known."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from maskrcnn.check_data.contact_sheet import _choose
from maskrcnn.check_data.plots import draw_plots
from maskrcnn.check_data.splits import printable
from maskrcnn.check_data.statistics import Statistics
from maskrcnn.data.shapes import draw_shapes
from tests.cli_tools import Outcome, run

Problems = list[dict[str, Any]]

NAMES = {1: "person", 2: "<script>alert('kite')</script>"}


def polygon(x: float, y: float, width: float, height: float) -> list[list[float]]:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def annotation(id: int, image_id: int, box: tuple[float, ...], **more: Any) -> dict[str, Any]:
    fields = {"id": id, "image_id": image_id, "category_id": 1, "bbox": list(box), "segmentation": polygon(*box)}
    return fields | {"area": box[2] * box[3], "iscrowd": 0} | more


def image(id: int, name: str, width: int = 64, height: int = 48) -> dict[str, Any]:
    return {"id": id, "file_name": name, "width": width, "height": height}


def write_split(root: Path, split: str, images: list[Any], annotations: list[Any], names: dict[int, str]) -> None:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / split).mkdir(exist_ok=True)
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": id, "name": name} for id, name in names.items()],
    }
    (root / "annotations" / f"{split}.json").write_text(json.dumps(content))


def write_pictures(folder: Path, images: list[dict[str, Any]], *, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for entry in images:
        noise = rng.integers(0, 256, (entry["height"], entry["width"], 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / entry["file_name"])


def write_flawed(root: Path) -> None:
    """A set that can be trained on, with one of each kind of warning."""
    images = [
        image(1, "a.png"),
        image(2, "blank.png"),
        image(3, "dark.png"),
        image(4, "a.png"),
        image(5, "strip.png", 400, 20),
        image(6, "damaged.png"),
    ]
    annotations = [
        annotation(11, 1, (5, 5, 40, 30)),
        annotation(12, 1, (5, 5, 10, 10), category_id=2),
        annotation(13, 3, (10, 10, 20, 20), segmentation=polygon(40, 20, 20, 20)),
        annotation(14, 4, (8, 8, 0.5, 20)),
        annotation(15, 4, (8, 8, 30, 20), iscrowd=1),
        annotation(16, 5, (8, 2, 300, 16), area=7.0),
    ]
    write_split(root, "train", images, annotations, NAMES)
    write_pictures(root / "train", images, seed=0)
    Image.fromarray(np.full((48, 64), 4095, np.uint16)).save(root / "train" / "dark.png")
    (root / "train" / "damaged.png").write_bytes(b"")
    write_split(root, "val", [image(1, "copy.png"), image(2, "b.png")], [annotation(1, 2, (1, 1, 9, 9))], NAMES)
    write_pictures(root / "val", [image(2, "b.png")], seed=1)
    (root / "val" / "copy.png").write_bytes((root / "train" / "a.png").read_bytes())


WARNINGS = {
    ("pictures that cannot be read", "train", "damaged.png", 6, None),
    ("16-bit pictures that will look dark", "train", "dark.png", 3, None),
    ("instances smaller than augment.min_side", "train", "a.png", 4, 14),
    ("boxes that do not fit their outline", "train", "dark.png", 3, 13),
    ("pictures listed twice", "train", "a.png", 1, None),
    ("pictures of an extreme size", "train", "strip.png", 5, None),
    ("pictures without an instance", "train", "blank.png", 2, None),
    ("pictures without an instance", "train", "damaged.png", 6, None),
    ("pictures without an instance", "val", "copy.png", 1, None),
    ("notes on annotations", "train", None, None, None),  # the area of annotation 16
    ("pictures in both train and val", "val", "copy.png", 1, None),
    ("classes without an instance", "val", None, None, None),
}


def check(folder: Path, root: Path, *arguments: str) -> tuple[Outcome, Problems]:
    outcome = run(
        "maskrcnn.check_data.__main__",
        "data=custom",
        f"data.root={root}",
        f"hydra.run.dir={folder}",
        "pictures=1",
        *arguments,
    )
    file = folder / "problems.json"
    return outcome, json.loads(file.read_text()) if file.is_file() else []


def errors(problems: Problems) -> Problems:
    return [problem for problem in problems if problem["grade"] == "error"]


@pytest.fixture(scope="module")
def flawed(tmp_path_factory):
    """The flawed set and its report: root, report folder, outcome, problems."""
    root, folder = tmp_path_factory.mktemp("flawed"), tmp_path_factory.mktemp("report")
    write_flawed(root)
    outcome, problems = check(folder, root, "pictures=3", "augment=mosaic_mixup")
    return root, folder, outcome, problems


def test_every_flaw_is_listed_once(flawed):
    _, _, _, problems = flawed
    found = [(p["kind"], p["split"], p["file"], p["image_id"], p["annotation_id"]) for p in problems]
    assert len(found) == len(set(found))
    assert set(found) == WARNINGS


def test_warnings_do_not_stop_a_training(flawed):
    _, _, outcome, problems = flawed
    assert {problem["grade"] for problem in problems} == {"warning"}
    assert outcome.code == 0
    assert outcome.out.splitlines()[-1] == f"Training can start: no errors, {len(WARNINGS)} warnings."


def test_the_terminal_gets_80_columns(flawed):
    _, folder, outcome, _ = flawed
    lines = outcome.out.splitlines()
    assert max(len(line) for line in lines if str(folder) not in line) <= 80
    assert outcome.err == ""


def test_what_a_report_consists_of(flawed):
    _, folder, _, _ = flawed
    written = {path.name for path in folder.iterdir() if path.is_file()}
    assert written == {"problems.json", "data.json", "report.html", "contact_sheet.png"}


def test_the_page_stands_alone_and_escapes_names(flawed):
    _, folder, _, problems = flawed
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"(?:src|href)=.(?!data:image/png;base64,)", page) == []
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert page.count("data:image/png;base64,") == 6
    assert all(page.count(f"{p['file']} (image id {p['image_id']})") for p in problems if p["file"])


def test_the_contact_sheet_has_a_row_per_picture(flawed):
    _, folder, _, _ = flawed
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert sheet.size[0] == 3 * (428 + 10)
        assert sheet.size[1] == 3 * (320 + 26 + 10)


def test_the_report_is_the_same_for_the_same_seed(flawed, tmp_path):
    root, folder, _, _ = flawed
    check(tmp_path / "same", root, "pictures=3", "augment=mosaic_mixup")
    check(tmp_path / "other", root, "pictures=3", "augment=mosaic_mixup", "seed=1")
    sheets = [path / "contact_sheet.png" for path in (folder, tmp_path / "same", tmp_path / "other")]
    ours, same, other = (path.read_bytes() for path in sheets)
    assert ours == same != other
    for name in ("data.json", "problems.json"):
        assert (folder / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_pictures_are_spread_and_the_fullest_is_among_them():
    counts = np.ones(100, dtype=int)
    counts[37] = 50

    class Source:
        instances_per_image = counts

        def __len__(self) -> int:
            return len(counts)

    for seed in range(20):
        chosen = _choose(Source(), 10, seed=seed)
        assert [index // 10 for index in chosen] == list(range(10))
        assert chosen[3] == 37
    assert _choose(Source(), 500, seed=0) == list(range(100))


def test_numbers_are_those_of_pycocotools(tmp_path):
    draw_shapes(tmp_path, train_images=12, val_images=3, image_size=160)
    arguments = ("data=coco", "pictures=0")
    outcome, _ = check(tmp_path / "report", tmp_path, *arguments)
    assert outcome.code == 0, outcome.out
    splits = json.loads((tmp_path / "report" / "data.json").read_text())["splits"]
    assert set(splits) == {"train", "val"}
    for split, numbers in splits.items():
        coco = COCO(str(tmp_path / "annotations" / f"instances_{split}2017.json"))
        assert numbers["images"] == len(coco.imgs)
        assert numbers["instances"] == len(coco.getAnnIds(iscrowd=False)) > 0
        assert numbers["crowd"] == len(coco.getAnnIds(iscrowd=True))
        assert numbers["small"] + numbers["medium"] + numbers["large"] == numbers["instances"]
        for entry in numbers["classes"]:
            ids = {"catIds": [entry["id"]], "iscrowd": False}
            assert entry["instances"] == len(coco.getAnnIds(**ids))
            assert entry["images"] == len({coco.anns[id]["image_id"] for id in coco.getAnnIds(**ids)})
            assert entry["small"] == len(coco.getAnnIds(**ids, areaRng=[0, 32**2 - 1e-9]))
            assert entry["medium"] == len(coco.getAnnIds(**ids, areaRng=[32**2 - 1e-9, 96**2 - 1e-9]))


@pytest.fixture
def sound(tmp_path):
    """A set without a flaw, to break: the root, and what its two annotation files hold."""
    root = tmp_path / "sound"
    contents = {}
    for number, split in enumerate(("train", "val")):
        images = [image(id, f"{id}.png") for id in (1, 2, 3)]
        contents[split] = (images, [annotation(10 + id, id, (4, 4, 40, 30)) for id in (1, 2, 3)])
        write_split(root, split, *contents[split], {1: "person"})
        write_pictures(root / split, images, seed=number)
    return root, contents


def test_a_sound_set_has_no_problem(sound, tmp_path):
    outcome, problems = check(tmp_path / "report", sound[0])
    assert problems == []
    assert outcome.out.splitlines()[-1] == "Training can start: no errors, no warnings."


def test_different_categories_stop_a_training(sound, tmp_path):
    root, contents = sound
    write_split(root, "val", *contents["val"], {1: "Person"})
    outcome, problems = check(tmp_path / "report", root)
    assert outcome.code == 1
    assert ["category 1 Person is in" in p["message"] for p in errors(problems)] == [True, False]
    assert outcome.out.splitlines()[-1] == "Training cannot start: 2 errors, no warnings."


@pytest.mark.parametrize(("allowed", "grade"), [("false", "error"), ("true", "warning")])
def test_boxes_alone_need_to_be_allowed(sound, tmp_path, allowed, grade):
    root, contents = sound
    images, annotations = contents["train"]
    write_split(root, "train", images, [annotations[0] | {"segmentation": []}, *annotations[1:]], {1: "person"})
    outcome, problems = check(tmp_path / "report", root, f"data.allow_boxes_only={allowed}")
    assert [(p["grade"], p["kind"], p["annotation_id"]) for p in problems] == [
        (grade, "annotations without an outline", 11)
    ]
    assert outcome.code == (grade == "error")


def test_a_size_that_is_not_annotated_is_an_error(sound, tmp_path):
    root, _ = sound
    Image.new("RGB", (65, 48)).save(root / "val" / "2.png")
    outcome, (problem,) = check(tmp_path / "report", root)
    assert outcome.code == 1
    assert (problem["grade"], problem["split"], problem["image_id"]) == ("error", "val", 2)
    assert "(image id 2) is 65 x 48 pixels, but its annotations say 64 x 48" in problem["message"]


def test_the_rest_of_many_problems_is_in_the_files(sound, tmp_path):
    root, contents = sound
    _, annotations = contents["train"]
    images = [image(id, f"{id}.png") for id in range(1, 31)]
    annotations = [annotation(id, id, (4, 4, 40, 30)) for id in range(1, 31)]
    write_split(root, "train", images, annotations, {1: "person"})
    outcome, problems = check(tmp_path / "report", root)
    assert [problem["image_id"] for problem in errors(problems)] == list(range(4, 31))
    assert outcome.out.count("\nerror (train): ") == 20
    assert "... and 7 more in problems.json" in outcome.out


def test_a_missing_folder_is_one_error(sound, tmp_path):
    root, _ = sound
    (root / "val").rename(root / "elsewhere")
    outcome, (problem,) = check(tmp_path / "report", root)
    assert outcome.code == 1
    assert problem["message"] == f"data.val_images={root / 'val'}: no such folder"


def test_a_missing_split_is_an_error(sound, tmp_path):
    root, _ = sound
    (root / "annotations" / "val.json").unlink()
    outcome, (problem,) = check(tmp_path / "report", root)
    assert outcome.code == 1
    assert problem["message"].startswith("data.val_annotations: none is named")


def test_a_fraction_takes_the_place_of_the_validation_files(sound, tmp_path):
    root, _ = sound
    (root / "annotations" / "val.json").unlink()
    outcome, problems = check(tmp_path / "report", root, "data.val_fraction=0.3")
    assert problems == []
    assert outcome.out.startswith("train + val: 3 pictures, 3 instances of 1 class\n")


def test_the_test_split_stops_no_training(sound, tmp_path):
    root, _ = sound
    write_split(root, "test", [image(1, "1.png")], [{"image_id": 1}], {1: "person"})
    outcome, problems = check(tmp_path / "report", root)
    assert outcome.code == 0
    assert {(p["grade"], p["kind"]) for p in problems if p["split"] == "test"} >= {
        ("warning", "broken annotations"),
        ("warning", "pictures that cannot be read"),
    }


def test_the_data_module_has_the_last_word(sound, tmp_path):
    root, contents = sound
    for split in ("train", "val"):
        write_split(root, split, contents[split][0], [], {1: "person"})
    outcome, problems = check(tmp_path / "report", root)
    assert outcome.code == 1
    assert [p["kind"] for p in errors(problems)] == ["reasons not to start"]
    assert "has no picture with an instance" in errors(problems)[0]["message"]


def test_nothing_to_check_is_one_line(tmp_path):
    outcome, _ = check(tmp_path / "report", tmp_path / "nowhere")
    assert outcome.code == 1
    assert outcome.err.startswith(f"error: data.root={tmp_path / 'nowhere'}: no such folder. For COCO, ")
    assert outcome.err.count("\n") == 1


def test_a_class_of_the_users_own(sound, tmp_path, monkeypatch):
    root, _ = sound
    (tmp_path / "my_pictures.py").write_text(
        "from maskrcnn.data.coco import CocoDataset\n"
        "class Gray(CocoDataset):\n"
        "    def read_image(self, position, *, shrink=1):\n"
        "        if position == 2:\n"
        "            raise KeyError('band 4')\n"
        "        return super().read_image(position, shrink=shrink)[..., :3 - position]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = ("data.dataset._target_=my_pictures.Gray", "trust=[my_pictures]")
    outcome, problems = check(tmp_path / "report", root, *own)
    assert outcome.code == 1
    messages = [problem["message"] for problem in problems if problem["split"] == "train"]
    assert [message.partition(") ")[2] for message in messages] == [
        "is read as uint8 [48, 64, 2], should be uint8 [48, 64, 3]",
        "cannot be read (KeyError: 'band 4')",
    ]


def test_plots_of_twelve_hundred_classes():
    rng = np.random.default_rng(0)
    counts = np.sort(rng.zipf(1.3, 1200).clip(0, 1_000_000))
    counts[:100] = 0
    statistics = Statistics(
        counts={},
        classes=[{"id": k, "name": f"$class_{k} 猫", "instances": int(count)} for k, count in enumerate(counts)],
        instances_per_class=counts,
        instances_per_image=np.array([0, 1, 4000]),
        areas=np.array([0.0, 1.0, 5e6]),
        aspect_ratios=np.array([1e-3, 1.0, 1e3]),
        image_sizes=np.array([[1, 1], [2000, 12000], [480, 640]]),
    )
    plots = draw_plots({"train": statistics, "val": statistics})
    assert len(plots) == 5
    assert all(plot.png.startswith(b"\x89PNG") for plot in plots)
    assert len({plot.png for plot in plots}) == 5
    empty = SimpleNamespace(areas=np.zeros(0))
    assert draw_plots({"train": empty}) == []


def test_names_are_made_printable():
    assert printable("a\nb\x1b[31m\udc80 ü 日") == "a\\nb\\x1b[31m\\udc80 ü 日"

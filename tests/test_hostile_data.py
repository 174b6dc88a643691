"""A folder of everything that goes wrong with picture and annotation files, through the real commands."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli_tools import TRIAL, Outcome, run

CHECK = "maskrcnn.check_data.__main__"
SECONDS = 60  # for any test here; a few of them are needed
PEAK = 1.5e9  # bytes more than before

# File name -> what its problem is called; image ids count from 1.
BROKEN = {
    "empty.jpg": "not a picture file",
    "truncated.jpg": "cannot be read",
    "missing.jpg": "is missing",
    "loop.jpg": "cannot be opened",
    "folder.jpg": "is a directory",
    "pipe.jpg": "is not a regular file",
    "bomb.png": "cannot be read",
    "other size.png": "is 64 x 48 pixels",
    "nul\0byte.png": "cannot be opened",
}
ODD = ("really_png.jpg", "crowded.png", "one.png", "panorama.png", "ça va — 日本語 'x'=1.png", "sub folder/plain.jpg")
# Annotation id -> the same.
BROKEN_ANNOTATIONS = {901: "nan", 902: "at least 3 points"}


def square(x: float, y: float, side: float) -> dict[str, Any]:
    polygon = [[x, y, x + side, y, x + side, y + side, x, y + side]]
    return {"bbox": [x, y, side, side], "segmentation": polygon, "area": side * side, "iscrowd": 0, "category_id": 1}


def draw_pictures(folder: Path) -> dict[str, tuple[int, int]]:
    """The pictures; name -> (width, height) as annotated."""
    (folder / "sub folder").mkdir(parents=True)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    (folder / "empty.jpg").touch()
    noise.save(folder / "whole.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:-600])
    (folder / "whole.jpg").rename(folder / "sub folder" / "plain.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    for name in ("other size.png", ODD[1], ODD[4]):
        noise.save(folder / name)
    noise.save(folder / "really_png.jpg", format="PNG")
    Image.new("RGB", (1, 1), (200, 10, 10)).save(folder / "one.png")
    Image.new("L", (12_000, 800), 90).save(folder / "panorama.png")
    sizes = dict.fromkeys((*BROKEN, *ODD), (64, 48))
    return sizes | {"other size.png": (48, 64), "one.png": (1, 1), "panorama.png": (12_000, 800)}


def write_annotations(root: Path, sizes: dict[str, tuple[int, int]], *, broken: bool) -> None:
    ids = {name: id for id, name in enumerate((*BROKEN, *ODD), start=1)}
    images = [{"id": ids[name], "file_name": name, "width": w, "height": h} for name, (w, h) in sizes.items()]
    annotations = [
        square(2, 2, 30) | {"id": id, "image_id": id}
        for name, id in ids.items()
        if name in sizes and name not in ("one.png", "panorama.png")
    ]
    annotations.append(square(0, 0, 1) | {"id": 100, "image_id": ids["one.png"]})
    annotations.append(square(500, 100, 600) | {"id": 101, "image_id": ids["panorama.png"]})
    for k in range(4000):
        annotations.append(square(k % 60, k // 60 % 44, 4) | {"id": 1000 + k, "image_id": ids["crowded.png"]})
    if broken:
        unusual = {"image_id": ids["really_png.jpg"]}
        annotations.append(square(5, 5, 9) | unusual | {"id": 901, "bbox": [float("nan"), 5, 9, 9]})
        annotations.append(square(5, 5, 9) | unusual | {"id": 902, "segmentation": [[5, 5, 9, 9]]})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (root / "annotations").mkdir(exist_ok=True)
    for split in ("train", "val"):
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The whole folder, its training split all broken and odd, its validation split the same."""
    root = tmp_path_factory.mktemp("hostile set")
    sizes = draw_pictures(root / "train")
    (root / "val").symlink_to("train")
    write_annotations(root, sizes, broken=True)
    return root


@pytest.fixture(autouse=True)
def alarm(hostile):
    """A command that waits for the pipe would wait forever."""

    def ring(*_: Any) -> None:
        Thread(target=hang_up, args=(hostile / "train" / "pipe.jpg",), daemon=True).start()
        raise TimeoutError(f"not done after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def hang_up(pipe: Path) -> None:
    """End the wait of whoever opens or reads the pipe, for some seconds."""
    for _ in range(500):
        os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))
        time.sleep(0.01)


@pytest.fixture(scope="module")
def odd(hostile, tmp_path_factory):
    """What is left when everything broken is taken out."""
    root = tmp_path_factory.mktemp("odd")
    shutil.copytree(hostile / "annotations", root / "annotations")
    sizes = dict.fromkeys(ODD, (64, 48)) | {"one.png": (1, 1), "panorama.png": (12_000, 800)}
    for split in ("train", "val"):
        (root / split).symlink_to(hostile / "train")
    write_annotations(root, sizes, broken=False)
    return root


def resident(key: str) -> int:
    """Memory of this process in bytes: `VmRSS` now, `VmHWM` at most since the last reset."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)]
    return int(line.split()[1]) * 1024


@pytest.fixture(scope="module")
def checked(hostile, tmp_path_factory) -> tuple[Outcome, list[dict[str, Any]], int]:
    """What came of checking the whole folder: outcome, problems, and how much memory it took."""
    folder = tmp_path_factory.mktemp("report")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest value so far
    before = resident("VmRSS")
    outcome = run(
        CHECK, "data=custom", f"data.root={hostile}", "augment=mosaic_mixup", f"hydra.run.dir={folder}", "pictures=1"
    )
    growth = resident("VmHWM") - before
    return outcome, json.loads((folder / "problems.json").read_text()), growth


def test_the_check_fails_and_says_so_in_words(checked):
    outcome, _, _ = checked
    assert outcome.code == 1
    assert outcome.out.splitlines()[-1].startswith("Training cannot start: ")
    assert outcome.err == ""


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("split", ["train", "val"])
def test_the_check_names_every_broken_picture(checked, name, split):
    _, problems, _ = checked
    shown = name.replace("\0", "\\x00")
    (problem,) = [p for p in problems if (p["grade"], p["split"], p["file"]) == ("error", split, shown)]
    image_id = list(BROKEN).index(name) + 1
    assert problem["image_id"] == image_id
    assert f"{shown} (image id {image_id}) {BROKEN[name]}" in problem["message"].replace("):", ")")


@pytest.mark.parametrize("annotation", BROKEN_ANNOTATIONS)
def test_the_check_names_every_broken_annotation(checked, annotation):
    _, problems, _ = checked
    messages = [p["message"] for p in problems if p["grade"] == "error" and p["split"] == "train"]
    (message,) = [message for message in messages if f"annotation {annotation} " in message]
    assert "train.json" in message
    assert BROKEN_ANNOTATIONS[annotation] in message


def test_the_check_finds_no_other_error(checked):
    _, problems, _ = checked
    errors = [p for p in problems if p["grade"] == "error"]
    assert len(errors) == 2 * (len(BROKEN) + len(BROKEN_ANNOTATIONS))


def test_the_memory_of_the_check_is_bounded(checked):
    _, _, growth = checked
    assert growth < PEAK


def test_training_ends_with_one_line_about_the_culprit(hostile, tmp_path):
    outcome = run("train", *TRIAL, "data=custom", f"data.root={hostile}", f"hydra.run.dir={tmp_path}/run")
    assert outcome.code == 1
    (line,) = outcome.err.strip().splitlines()
    assert line.startswith("error: ")
    assert "annotation 901 " in line
    assert "check_data lists them" in line


@pytest.mark.parametrize("name", BROKEN)
def test_training_names_each_broken_picture(hostile, tmp_path, name):
    id = list(BROKEN).index(name) + 1
    size = (48, 64) if name == "other size.png" else (64, 48)
    write_single(tmp_path, hostile, name, id, size)
    outcome = run("train", *TRIAL, "data=custom", f"data.root={tmp_path}", f"hydra.run.dir={tmp_path}/run")
    assert outcome.code == 1
    (line,) = outcome.err.strip().splitlines()
    assert line.startswith("error: ")
    assert f"(image id {id})" in line


def write_single(root: Path, hostile: Path, name: str, id: int, size: tuple[int, int]) -> None:
    image = {"id": id, "file_name": name, "width": size[0], "height": size[1]}
    annotation = square(2, 2, 30) | {"id": 1, "image_id": id}
    content = {"images": [image], "annotations": [annotation], "categories": [{"id": 1, "name": "thing"}]}
    (root / "annotations").mkdir()
    for split in ("train", "val"):
        (root / split).symlink_to(hostile / "train")
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content))


def test_the_check_lets_what_is_only_odd_pass(odd, tmp_path):
    outcome = run(CHECK, "data=custom", f"data.root={odd}", f"hydra.run.dir={tmp_path}", "pictures=1")
    assert outcome.code == 0, outcome.out
    assert outcome.out.splitlines()[-1].startswith("Training can start: ")
    problems = json.loads((tmp_path / "problems.json").read_text())
    assert {p["grade"] for p in problems} == {"warning"}
    extreme = {p["file"] for p in problems if p["kind"] == "pictures of an extreme size"}
    assert extreme == {"one.png", "panorama.png"}


def test_training_runs_on_what_is_only_odd(odd, tmp_path):
    outcome = run(
        "train",
        *TRIAL,
        "data=custom",
        f"data.root={odd}",
        "augment=mosaic_mixup",
        "data.batch_size=6",
        f"hydra.run.dir={tmp_path}/run",
    )
    assert outcome.code == 0, outcome.err
    assert f"{len(ODD)} training and {len(ODD)} validation pictures" in outcome.out

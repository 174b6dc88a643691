"""The command and the Python API on drawn pictures, whose detections evaluate.py finds too."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from rich.console import Console

from maskrcnn import load
from maskrcnn.data.images import read_image
from maskrcnn.data.shapes import draw_shapes
from maskrcnn.errors import UserError
from maskrcnn.predict.annotation_files import labelme_content, yolo_lines
from maskrcnn.predict.polygons import mask_to_polygons
from maskrcnn.predict.predictor import Predictor
from maskrcnn.predict.result import Result
from maskrcnn.predict.run import Run
from maskrcnn.predict.sources import find_sources
from tests.cli_tools import TINY, Outcome, files, run
from tests.conftest import TINY as TINY_MODEL

CPU = "trainer.accelerator=cpu"
VAL = "annotations/instances_val2017.json"


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes") / "set"
    draw_shapes(root, train_images=8, val_images=6, image_size=64)
    return root


@pytest.fixture(scope="session")
def checkpoint(shapes, tmp_path_factory):
    """Of a model that has hardly been trained; it finds something all the same."""
    folder = tmp_path_factory.mktemp("trained") / "a run, [1]"
    outcome = run("train", f"data.root={shapes}", f"hydra.run.dir={folder}", *TINY, "trainer.max_epochs=1", "ema=none")
    assert outcome.code == 0, outcome.err
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="session")
def model(checkpoint):
    return load(checkpoint, accelerator="cpu")


@pytest.fixture
def photos(shapes, tmp_path):
    """Three pictures, one in a folder of its own."""
    names = sorted(path.name for path in (shapes / "val2017").iterdir())[:3]
    places = [tmp_path / "photos" / name for name in ("a.png", "b.png", "more/a.png")]
    for name, place in zip(names, places, strict=True):
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.open(shapes / "val2017" / name).resize((64, 64)).save(place)
    return tmp_path / "photos"


def predict(*arguments: str) -> Outcome:
    return run("maskrcnn.predict.__main__", CPU, *arguments)


def found(path: Path) -> COCO:
    with mock.patch("builtins.print"):
        return COCO(path)


def test_the_command_finds_what_evaluate_finds(checkpoint, shapes, tmp_path):
    outcome = run("evaluate", f"ckpt={checkpoint}", f"hydra.run.dir={tmp_path / 'scored'}", CPU, "data.num_workers=0")
    assert outcome.code == 0, outcome.err
    images = json.loads((shapes / VAL).read_text())["images"]
    scored: dict[str, list[Any]] = {image["file_name"]: [] for image in images}
    name_of = {image["id"]: image["file_name"] for image in images}
    for entry in json.loads((tmp_path / "scored" / "predictions.json").read_text()):
        scored[name_of[entry.pop("image_id")]].append(entry)

    outcome = predict(f"ckpt={checkpoint}", f"source={shapes / 'val2017'}", f"output={tmp_path / 'out'}", "threshold=0")
    assert (outcome.code, outcome.err) == (0, "")
    coco = found(tmp_path / "out" / "predictions.json")
    assert [coco.imgs[number]["file_name"] for number in range(1, 7)] == [
        str(shapes / "val2017" / name) for name in sorted(scored)
    ]
    assert sum(map(len, scored.values())) > 50
    for image_id, image in coco.imgs.items():
        ours = coco.imgToAnns[image_id]
        theirs = scored[Path(image["file_name"]).name]
        assert [{key: entry[key] for key in theirs[0]} for entry in ours] == theirs
        assert [entry["area"] for entry in ours] == [coco_mask.area(entry["segmentation"]) for entry in theirs]
    assert {path.split("/")[0] for path in files(tmp_path / "out")} == {".hydra", "overlays", "predictions.json"}
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 6
    assert "6 pictures: " in outcome.out


def test_the_api_finds_the_same_in_every_kind_of_picture(model, photos):
    path = photos / "a.png"
    array = read_image(path)
    reversed_axes = np.ascontiguousarray(array[:, :, ::-1])[:, :, ::-1]  # as OpenCV's pictures become RGB
    read_only = np.frombuffer(array.tobytes(), np.uint8).reshape(array.shape)
    pictures = [array, reversed_axes, read_only, Image.open(path), path, str(path)]
    results = model.predict(pictures, threshold=0.05)
    assert len(results) == 6
    alone = model.predict(path, threshold=0.05)
    assert len(alone) > 0
    for result in results:
        assert result.boxes == pytest.approx(alone.boxes, abs=1e-3)
        assert result.scores == pytest.approx(alone.scores, abs=1e-5)
        assert result.names == alone.names
    assert model.predict([]) == []


def test_a_result_is_what_it_says(model, photos):
    result = model.predict(photos / "b.png", threshold=0.0)
    count = len(result)
    assert (result.boxes.shape, result.boxes.dtype) == ((count, 4), np.float32)
    assert (result.scores.shape, result.labels.shape) == ((count,), (count,))
    assert (np.diff(result.scores) <= 0).all()
    assert result.masks.shape == (count, 64, 64)
    assert result.masks.dtype == bool
    assert result.masks.any(axis=(1, 2)).sum() > count / 2
    for mask, rle in zip(result.masks, result.rles, strict=True):
        assert (mask == coco_mask.decode(rle)).all()
    for label, name, category in zip(result.labels, result.names, result.category_ids, strict=True):
        assert model.categories[label - 1] == {"id": category, "name": name}
    assert result.draw(read_image(photos / "b.png")).shape == (320, 320, 3)


def test_threshold_and_classes_choose_among_the_same_instances(model, photos):
    everything = model.predict(photos / "a.png", threshold=0.0)
    middle = float(np.median(everything.scores))
    some = model.predict(photos / "a.png", threshold=middle)
    assert 0 < len(some) < len(everything)
    assert (some.scores == everything.scores[everything.scores >= middle]).all()
    name = everything.names[-1]
    ours = model.predict(photos / "a.png", threshold=0.0, classes=[name])
    assert set(ours.names) == {name}
    assert len(ours) == everything.names.count(name) < len(everything)
    nothing = model.predict(photos / "a.png", threshold=1.0)
    assert nothing.masks.shape == (0, 64, 64)
    assert nothing.boxes.shape == (0, 4)
    with pytest.raises(UserError, match=r"the model knows .*; not unicorn"):
        model.predict(photos / "a.png", classes="unicorn")


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4)), np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_an_array_that_is_no_rgb_picture_is_refused(model, image):
    with pytest.raises(TypeError, match="should be uint8"):
        model.predict(image)


def test_load_takes_torchvisions_weights_and_overrides(make_tiny_torchvision, photos, tmp_path):
    reference = make_tiny_torchvision(num_classes=90, box_score_thresh=0.0)
    torch.save(reference.state_dict(), tmp_path / "weights.pth")
    ours = load(
        tmp_path / "weights.pth", accelerator="cpu", overrides=[*TINY_MODEL, "model.score_thresh=0", "trust=[]"]
    )
    image = read_image(photos / "a.png")
    result = ours.predict(image, threshold=0.0)
    with torch.inference_mode():
        (expected,) = reference([torch.from_numpy(image).permute(2, 0, 1) / 255])
    assert len(result) == len(expected["scores"]) > 0
    assert result.scores == pytest.approx(expected["scores"].numpy(), abs=1e-5)
    assert result.boxes == pytest.approx(expected["boxes"].numpy(), abs=1e-2)
    assert set(result.names) <= {category["name"] for category in ours.categories} - {"1"}


def test_load_says_what_is_wrong(checkpoint, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "missing.ckpt")
    with pytest.raises(UserError, match="no_such_key"):
        load(checkpoint, accelerator="cpu", overrides=["model.no_such_key=1"])
    with pytest.raises(UserError, match=r"trainer\.precision"):
        load(checkpoint, accelerator="cpu", precision="7-bit")
    with pytest.raises(UserError, match="one device"):
        load(checkpoint, accelerator="cpu", devices=2)


def test_the_package_imports_in_no_time():
    heavy = "print({'torch', 'numpy', 'hydra'} & set(sys.modules))"
    code = f"import sys, maskrcnn; {heavy}; assert 'load' in maskrcnn.__all__"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    with pytest.raises(ImportError, match="nonsense"):
        from maskrcnn import nonsense  # noqa: F401


# --- pictures and files


def special_pictures(folder: Path) -> dict[str, tuple[int, int]]:
    """Pictures of every kind; their names and upright (width, height)."""
    folder.mkdir()
    levels = np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8)
    Image.fromarray(levels[..., 0].astype(np.uint16) << 8).save(folder / "sixteen.png")
    Image.fromarray(levels[..., 0]).save(folder / "grey.png")
    Image.fromarray(levels).save(folder / "rgba.png")
    Image.fromarray(levels, mode="CMYK").save(folder / "cmyk.jpg")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(levels[..., :3]).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(levels[..., 0]).convert("P").save(folder / "palette.gif")
    names = ("cmyk.jpg", "grey.png", "palette.gif", "rgba.png", "sixteen.png")
    return dict.fromkeys(names, (60, 40)) | {"turned.jpg": (40, 60)}


def test_every_kind_of_picture_is_read_and_the_damaged_are_left_out(checkpoint, tmp_path):
    sizes = special_pictures(tmp_path / "in")
    (tmp_path / "in" / "damaged.jpg").write_bytes((tmp_path / "in" / "cmyk.jpg").read_bytes()[:400])
    (tmp_path / "in" / "lie.png").write_text("no picture")
    (tmp_path / "in" / "clip.mp4").write_text("no video")
    outcome = predict(f"ckpt={checkpoint}", f"source={tmp_path / 'in'}", f"output={tmp_path / 'out'}", "batch_size=2")
    assert outcome.code == 1
    lines = outcome.err.splitlines()
    assert len(lines) == 3
    for line, name in zip(lines, ("damaged.jpg", "lie.png", "clip.mp4"), strict=True):
        assert line.startswith(f"skipped: {tmp_path / 'in' / name}: ")
    assert "annotations" not in outcome.err
    images = found(tmp_path / "out" / "predictions.json").imgs.values()
    assert {Path(image["file_name"]).name: (image["width"], image["height"]) for image in images} == sizes
    assert [image["id"] for image in images] == [1, 2, 3, 4, 5, 6]
    with Image.open(tmp_path / "out" / "overlays" / "turned.jpg") as overlay:
        assert overlay.size == (320, 480)


def test_pil_images_are_made_as_files_are(model, tmp_path):
    special_pictures(tmp_path / "in")
    for path in sorted((tmp_path / "in").iterdir()):
        with Image.open(path) as image:
            ours, theirs = model.predict([image, path], threshold=0.0)
        assert ours.size == theirs.size
        assert (ours.boxes == theirs.boxes).all()


def test_sources_of_every_kind(photos, tmp_path):
    (photos / "notes.txt").write_text("no picture")
    (photos / ".hidden.png").write_text("")
    (photos / "out").mkdir()
    (photos / "out" / "mine.png").write_text("")
    (photos / "clip.MP4").write_text("")
    (photos / "raw").write_text("")

    def names(*source: str | int) -> list[str]:
        sources = find_sources(list(source), output=photos / "out")
        return [one.name for one in sources.pictures + sources.videos]

    assert names(str(photos)) == ["a", "b", "more/a", "clip"]
    assert names(f"{photos}/*.png") == ["a", "b"]
    assert names(f"{photos}/*") == ["a", "b", "more/a", "clip"]
    assert names(f"{photos}/**/a.png") == ["a", "a-2"]
    assert names(f"{photos}/a.png", f"{photos}/a.png", f"{photos}/more/a.png") == ["a", "a-2"]
    assert names(f"{photos}/raw") == ["raw"]
    assert names("0", 1) == ["camera0", "camera1"]
    everything = find_sources([str(photos), "missing.png"], output=photos / "out")
    assert [path.name for path in everything.others] == ["notes.txt", "raw"]
    assert everything.problems == ["missing.png: no such file or folder, and no file of this pattern"]
    with pytest.raises(UserError, match=r"source=x\*\.png: no such file.*give a picture"):
        find_sources("x*.png", output=tmp_path)
    with pytest.raises(UserError, match="holds no file"):
        find_sources(str(photos / "out"), output=photos / "out")
    with pytest.raises(UserError, match="holds no picture and no video"):
        find_sources(f"{photos}/*.txt", output=photos / "out")


def test_a_list_with_a_missing_file_does_the_rest(checkpoint, photos, tmp_path):
    source = f"source=[{photos / 'b.png'},{photos}/nothing*.jpg,{photos / 'a.png'}]"
    outcome = predict(f"ckpt={checkpoint}", source, f"output={tmp_path / 'out'}", "overlays=false", "limit=1")
    assert outcome.code == 1
    assert outcome.err == f"skipped: {photos}/nothing*.jpg: no such file or folder, and no file of this pattern\n"
    images = found(tmp_path / "out" / "predictions.json").imgs
    assert [image["file_name"] for image in images.values()] == [str(photos / "b.png")]
    assert files(tmp_path / "out") - {"predictions.json"} == {
        f".hydra/{name}.yaml" for name in ("config", "hydra", "overrides")
    }


@pytest.mark.parametrize(
    ("arguments", "culprits"),
    [
        ([], ["source: give"]),
        (["source=missing.jpg"], ["source=missing.jpg: no such file"]),
        (["source=.", "threshold=2"], ["threshold=2"]),
        (["source=.", "batch_size=0"], ["batch_size=0"]),
        (["source=.", "limit=0"], ["limit=0"]),
        (["source=.", "export=[coco]"], ["export=", "yolo", "labelme"]),
        (["source=.", "cutouts=Ture"], ["cutouts=Ture"]),
        (["source=photos", "classes=[unicorn]"], ["classes: ", "not unicorn"]),
        (["source=photos", "trainer.accelerator=toaster"], ["trainer.accelerator", "toaster"]),
        (["source=photos", "model.nms_thresh=7"], ["model: nms_thresh"]),
        (["source=photos", "ckpt=photos/a.png"], ["ckpt=photos/a.png: not a checkpoint"]),
        (["source=photos", "ckpt=null"], ["ckpt: give"]),
    ],
)
def test_a_mistake_is_one_line(checkpoint, photos, monkeypatch, arguments, culprits):
    monkeypatch.chdir(photos.parent)
    ckpt = [] if any(argument.startswith("ckpt=") for argument in arguments) else [f"ckpt={checkpoint}"]
    outcome = predict(*ckpt, *arguments)
    (line,) = outcome.err.splitlines()
    assert outcome.code == 1
    assert line.startswith("error: ")
    assert all(culprit in line for culprit in culprits), line
    assert sorted(path.name for path in photos.parent.iterdir() if path.name != "outputs") == ["photos"]
    assert not (photos.parent / "outputs" / "predict").exists()


def test_groups_of_training_are_refused(checkpoint, photos):
    outcome = predict(f"ckpt={checkpoint}", f"source={photos}", "experiment=demo")
    assert outcome.code == 1
    assert "experiment" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    "end", [(KeyboardInterrupt(), 130), (UserError("memory: is full"), 1)], ids=["ctrl-c", "error"]
)
@pytest.mark.parametrize("kind", ["pictures", "frames"])
def test_a_run_that_ends_early_keeps_what_is_done(checkpoint, request, tmp_path, kind, end):
    error, code = end
    original = Predictor.predict
    calls = []

    def interrupted(self: Predictor, *args: Any, **rest: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise error
        return original(self, *args, **rest)

    source = request.getfixturevalue("photos") if kind == "pictures" else request.getfixturevalue("clip")[0]
    with mock.patch.object(Predictor, "predict", interrupted):
        outcome = predict(
            f"ckpt={checkpoint}", f"source={source}", f"output={tmp_path / 'out'}", "batch_size=2", "threshold=0"
        )
    assert outcome.code == code
    assert f"2 {kind}" in outcome.out
    file = "predictions.json" if kind == "pictures" else "frames/clip.json"
    assert len(found(tmp_path / "out" / file).imgs) == 2
    if kind == "frames":
        assert len(decoded(tmp_path / "out" / "overlays" / "clip.mp4")) == 2


def test_a_home_folder_and_awkward_names(checkpoint, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    awkward = photos / "a b=c [1], {d} ~ été.png"
    (photos / "a.png").rename(awkward)
    outcome = predict(f"ckpt={checkpoint}", f"source={awkward}", "output=~/the output")
    assert (outcome.code, outcome.err) == (0, "")
    assert (tmp_path / "the output" / "overlays" / f"{awkward.stem}.jpg").is_file()


# --- cut-outs and annotation files


def test_cutouts_are_the_instances_with_their_masks_as_alpha(checkpoint, photos, tmp_path):
    out = tmp_path / "out"
    outcome = predict(
        f"ckpt={checkpoint}", f"source={photos / 'a.png'}", f"output={out}", "threshold=0", "cutouts=true"
    )
    assert outcome.code == 0, outcome.err
    coco = found(out / "predictions.json")
    image = read_image(photos / "a.png")
    annotations = [one for one in coco.anns.values() if one["area"] > 0]
    cutouts = sorted((out / "cutouts" / "a").iterdir())
    assert len(cutouts) == len(annotations) > 0
    for cutout, annotation in zip(cutouts, annotations, strict=True):
        assert cutout.name == f"{annotation['id']:03}_{coco.cats[annotation['category_id']]['name']}.png"
        mask = coco_mask.decode(annotation["segmentation"])
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        extent = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        with Image.open(cutout) as picture:
            pixels = np.array(picture)
        assert picture.mode == "RGBA"
        assert (pixels[..., 3] == 255 * mask[extent]).all()
        assert (pixels[..., :3] == image[extent]).all()


def drawn_masks() -> dict[str, np.ndarray]:
    y, x = np.mgrid[:120, :160]
    disc = (x - 60) ** 2 + (y - 50) ** 2 < 40**2
    ring = disc & ((x - 60) ** 2 + (y - 50) ** 2 > 18**2)
    holes = disc & ~((abs(x - 45) < 6) & (abs(y - 50) < 9)) & ~((abs(x - 75) < 6) & (abs(y - 50) < 9))
    square = (x >= 100) & (x < 140) & (y >= 80) & (y < 110)
    return {
        "disc": disc,
        "ring": ring,
        "two holes": holes,
        "square": square,
        "two parts": disc | square,
        "ring and part": ring | square,
        "slope": x > y + 20,
        "whole": np.ones_like(disc),
        "diagonal pixels": (x // 8 == y // 8) & (x < 32),
        "small": (abs(x - 5) < 4) & (abs(y - 5) < 4),
    }


def result_of(*masks: np.ndarray) -> Result:
    rles = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    count = len(masks)
    return Result(
        size=masks[0].shape,  # type: ignore[arg-type]
        boxes=np.zeros((count, 4), np.float32),
        scores=np.linspace(0.9, 0.6, count, dtype=np.float32),
        labels=np.arange(1, count + 1),
        names=[f"name {label}" for label in range(1, count + 1)],
        category_ids=[10 * label for label in range(1, count + 1)],
        rles=[{"size": list(rle["size"]), "counts": rle["counts"].decode()} for rle in rles],
    )


def overlap(polygons: list[np.ndarray], mask: np.ndarray) -> float:
    """IoU of a mask with polygons as pycocotools fills them."""
    rles = coco_mask.frPyObjects([polygon.ravel().tolist() for polygon in polygons], *mask.shape)
    filled = coco_mask.decode(coco_mask.merge(rles)) > 0
    return float((filled & mask).sum() / (filled | mask).sum())


@pytest.mark.parametrize("name", drawn_masks())
def test_yolo_polygons_are_the_masks(name):
    mask = drawn_masks()[name]
    (line,) = yolo_lines(result_of(mask))
    label, *numbers = line.split()
    points = np.array(numbers, float).reshape(-1, 2)
    assert label == "0"
    assert 0 <= points.min() <= points.max() <= 1
    assert overlap([points * (160, 120)], mask) > (0.9 if name == "small" else 0.95)
    filled = np.zeros(mask.shape, np.uint8)  # as a tool would that scales the picture up
    large = cv2.resize(filled, None, fx=8, fy=8)
    cv2.fillPoly(large, [np.round(points * (160, 120) * 8 - 0.5).astype(np.int32)], 1)
    back = cv2.resize(large.astype(np.float32), (160, 120), interpolation=cv2.INTER_AREA) > 0.5
    assert (back & mask).sum() / (back | mask).sum() > (0.9 if name == "small" else 0.95)


def test_polygons_have_few_points_and_no_bias():
    masks = drawn_masks()
    (disc,) = mask_to_polygons(result_of(masks["disc"]).rles[0])
    assert len(disc) < 60
    x, y = disc.T
    assert abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2 == pytest.approx(masks["disc"].sum(), rel=0.01)
    (square,) = mask_to_polygons(result_of(masks["square"]).rles[0])
    assert (square.min(axis=0) == [100, 80]).all()
    assert (square.max(axis=0) == [140, 110]).all()
    assert mask_to_polygons(result_of(np.zeros((9, 9), bool)).rles[0]) == []
    assert yolo_lines(result_of(np.zeros((9, 9), bool))) == []


def test_labelme_keeps_the_parts_of_an_instance_together():
    masks = drawn_masks()
    content = labelme_content(result_of(masks["ring"], masks["ring and part"]), image_path="../a.png")
    assert (content["imageHeight"], content["imageWidth"], content["imagePath"]) == (120, 160, "../a.png")
    shapes = content["shapes"]
    assert [(shape["label"], shape["group_id"]) for shape in shapes] == [
        ("name 1", None),
        ("name 2", 1),
        ("name 2", 1),
    ]
    polygons = [np.array(shape["points"]) for shape in shapes]
    assert overlap(polygons[:1], masks["ring"]) > 0.97
    assert overlap(polygons[1:], masks["ring and part"]) > 0.97


def test_annotation_files_lie_where_tools_look_for_them(checkpoint, photos, tmp_path):
    out = tmp_path / "out"
    outcome = predict(
        f"ckpt={checkpoint}", f"source={photos}", f"output={out}", "threshold=0.3", "export=[yolo,labelme]"
    )
    assert outcome.code == 0, outcome.err
    coco = found(out / "predictions.json")
    classes = (out / "yolo" / "classes.txt").read_text().splitlines()
    assert classes == [category["name"] for category in coco.cats.values()]
    for image, name in zip(coco.imgs.values(), ("a", "b", "more/a"), strict=True):
        ours = coco.imgToAnns[image["id"]]
        lines = (out / "yolo" / "labels" / f"{name}.txt").read_text().splitlines()
        names = [coco.cats[one["category_id"]]["name"] for one in ours if one["area"]]
        assert [classes[int(line.split()[0])] for line in lines] == names
        file = out / "labelme" / f"{name}.json"
        content = json.loads(file.read_text())
        assert (file.parent / content["imagePath"]).samefile(image["file_name"])
        assert {shape["label"] for shape in content["shapes"]} == set(names)


def test_views_of_a_picture_are_joined_as_evaluate_joins_them(checkpoint, shapes, tmp_path):
    settings = (CPU, "data.num_workers=0", "report=false", "tta=flip")
    outcome = run("evaluate", f"ckpt={checkpoint}", f"hydra.run.dir={tmp_path}", *settings)
    assert outcome.code == 0, outcome.err
    scored = json.loads((tmp_path / "predictions.json").read_text())
    pictures = json.loads((shapes / VAL).read_text())["images"]
    model = load(checkpoint, accelerator="cpu", overrides=["tta=flip"])
    results = model.predict([shapes / "val2017" / picture["file_name"] for picture in pictures], threshold=0.0)
    ours = [entry for picture, result in zip(pictures, results, strict=True) for entry in result.to_coco(picture["id"])]
    assert ours == scored


# --- videos and cameras


@pytest.fixture
def clip(shapes, tmp_path):
    """A video of the drawn pictures, and its frames as they are decoded."""
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 64))
    for picture in sorted((shapes / "val2017").iterdir()):
        writer.write(cv2.resize(cv2.imread(str(picture)), (64, 64)))
    writer.release()
    return path, decoded(path)


def decoded(path: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1][..., ::-1].copy())
    return frames


def test_a_video_becomes_a_video_and_a_file_of_its_frames(checkpoint, model, clip, tmp_path):
    path, frames = clip
    outcome = predict(
        f"ckpt={checkpoint}", f"source={path}", f"output={tmp_path / 'out'}", "threshold=0", "cutouts=true"
    )
    assert outcome.code == 0
    assert outcome.err == "cutouts, export: for pictures alone, not for the frames of a video\n"
    assert "6 frames of 1 video: " in outcome.out
    coco = found(tmp_path / "out" / "frames" / "clip.json")
    assert [(image["frame"], image["time"]) for image in coco.imgs.values()] == [(n, n / 10) for n in range(6)]
    for image_id, result in enumerate(model.predict(frames, threshold=0.0), start=1):
        ours = coco.imgToAnns[image_id]
        assert [one["segmentation"] for one in ours] == result.rles
        assert [one["score"] for one in ours] == result.scores.tolist()
    drawn = decoded(tmp_path / "out" / "overlays" / "clip.mp4")
    assert [frame.shape for frame in drawn] == [(320, 320, 3)] * 6
    expected = model.predict(frames[3], threshold=0.0).draw(frames[3])
    # The codec is lossy, but of all frames it is this one.
    distances = [np.abs(frame.astype(int) - expected).mean() for frame in drawn]
    assert int(np.argmin(distances)) == 3 and distances[3] < 20
    assert files(tmp_path / "out") == {
        "frames/clip.json",
        "overlays/clip.mp4",
        *(f".hydra/{name}.yaml" for name in ("config", "hydra", "overrides")),
    }


def test_limit_counts_the_frames_of_each_video(checkpoint, clip, tmp_path):
    path, _ = clip
    outcome = predict(f"ckpt={checkpoint}", f"source={path}", f"output={tmp_path / 'out'}", "limit=3", "overlays=false")
    assert (outcome.code, outcome.err) == (0, "")
    assert len(found(tmp_path / "out" / "frames" / "clip.json").imgs) == 3
    assert not (tmp_path / "out" / "overlays").exists()


class FakeCapture:
    """Stands in for `cv2.VideoCapture` of a camera."""

    opened: Any = None

    def __init__(self, source: Any, *, end: type[BaseException] | None = None, frames: int = 4) -> None:
        type(self).opened = source
        self.left = frames
        self.end = end
        self.released = False

    def isOpened(self) -> bool:  # noqa: N802
        return self.left > 0

    def get(self, name: int) -> float:
        return {cv2.CAP_PROP_FPS: 0.0, cv2.CAP_PROP_FRAME_COUNT: -1.0}.get(name, float("nan"))

    def read(self) -> tuple[bool, np.ndarray | None]:
        if self.left == 0:
            if self.end is not None:
                raise self.end
            return False, None
        self.left -= 1
        return True, np.full((64, 80, 3), 90, np.uint8)

    def release(self) -> None:
        self.released = True


def camera(checkpoint: Path, out: Path, *arguments: str, **about: Any) -> tuple[Outcome, FakeCapture]:
    captures = []

    def make(source: Any) -> FakeCapture:
        captures.append(FakeCapture(source, **about))
        return captures[-1]

    with mock.patch("cv2.VideoCapture", make):
        outcome = predict(f"ckpt={checkpoint}", "source=2", f"output={out}", *arguments)
    assert FakeCapture.opened == 2
    return outcome, captures[0]


def test_a_camera_runs_until_ctrl_c(checkpoint, tmp_path):
    outcome, capture = camera(checkpoint, tmp_path, end=KeyboardInterrupt)
    assert (outcome.code, outcome.err) == (0, "")
    assert capture.released
    images = found(tmp_path / "frames" / "camera2.json").imgs
    assert [image["frame"] for image in images.values()] == [0, 1, 2, 3]
    assert images[1]["file_name"] == "camera 2"
    times = [image["time"] for image in images.values()]
    assert times == sorted(times)
    assert len(decoded(tmp_path / "overlays" / "camera2.mp4")) == 4


def test_a_camera_stops_at_its_limit(checkpoint, tmp_path):
    outcome, capture = camera(checkpoint, tmp_path, "limit=2")
    assert outcome.code == 0
    assert capture.left == 2
    assert len(found(tmp_path / "frames" / "camera2.json").imgs) == 2


def test_a_camera_that_is_not_there_is_reported(checkpoint, tmp_path):
    outcome, _ = camera(checkpoint, tmp_path, frames=0)
    assert (outcome.code, outcome.err) == (1, "skipped: camera 2: cannot be opened\n")


@pytest.mark.parametrize("total", [120_000, None])
def test_the_bar_fits_in_80_columns(total):
    bars = Run(predictor=SimpleNamespace(), settings=SimpleNamespace(), output=Path())  # type: ignore[arg-type]
    bars._bar.add_task("a/video/with/quite/a/long name", total=total, completed=99_999)
    console = Console(width=80)
    with console.capture() as capture:
        console.print(bars._bar.get_renderable())
    (line,) = capture.get().splitlines()
    assert len(line) <= 80
    assert "a/video/with/quite" in line
    assert "99999" in line

import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from maskrcnn.data import shapes
from maskrcnn.data.shapes import CLASSES, Image, Instance, annotate, draw_image, draw_shapes

SMALL, LARGE = 32 * 32, 96 * 96


@pytest.fixture(scope="module")
def drawn() -> list[tuple[Image, list[Instance]]]:
    return [draw_image(seed=0, split="val", index=index, image_size=160) for index in range(300)]


@pytest.fixture(scope="module")
def instances(drawn: list[tuple[Image, list[Instance]]]) -> list[Instance]:
    return [instance for _, found in drawn for instance in found]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes") / "a" / "set"
    draw_shapes(root, train_images=24, val_images=12)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def annotations(root: Path, split: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((root / "annotations" / f"instances_{split}2017.json").read_text())
    return content


def rasterise(annotation: dict[str, Any], shape: tuple[int, ...]) -> shapes.Mask:
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, *shape))
    elif isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, *shape)
    return np.asarray(coco_mask.decode(segmentation), bool)


def test_same_arguments_give_the_same_bytes(root: Path, tmp_path: Path) -> None:
    draw_shapes(tmp_path / "again", train_images=24, val_images=12)
    assert contents(tmp_path / "again") == contents(root)


def test_fewer_images_are_a_prefix_and_another_seed_is_another_set(root: Path, tmp_path: Path) -> None:
    draw_shapes(tmp_path / "fewer", train_images=11, val_images=3)
    whole, part = contents(root), contents(tmp_path / "fewer")
    pictures = {name for name in part if not name.endswith(".json")}
    assert len(pictures) == 14
    assert all(part[name] == whole[name] for name in pictures)
    for split in ("train", "val"):
        for key in ("images", "annotations"):
            few = annotations(tmp_path / "fewer", split)[key]
            assert few == annotations(root, split)[key][: len(few)]
    draw_shapes(tmp_path / "other", train_images=2, val_images=1, seed=1)
    assert all(whole[name] != data for name, data in contents(tmp_path / "other").items())


def test_train_and_val_share_no_picture_and_no_id(root: Path) -> None:
    train, val = (annotations(root, split)["images"] for split in ("train", "val"))
    assert not {image["id"] for image in train} & {image["id"] for image in val}
    first, other = (draw_image(seed=0, split=split, index=0, image_size=160)[0] for split in ("train", "val"))
    assert not np.array_equal(first, other)


def test_sizes_occlusion_and_classes(drawn: list[tuple[Image, list[Instance]]], instances: list[Instance]) -> None:
    visible = np.array([instance.visible.sum() for instance in instances])
    full = np.array([instance.full_area for instance in instances])
    assert (visible < full).mean() >= 0.30
    assert (visible < SMALL).mean() >= 0.30
    assert 0.03 < (visible > LARGE).mean() < 0.12
    assert 0.03 < np.mean([not found for _, found in drawn]) < 0.10
    assert max(len(found) for _, found in drawn) <= 10
    shares = Counter(instance.category_id for instance in instances)
    assert set(shares) == set(CLASSES)
    assert min(shares.values()) > 0.1 * len(instances)


def test_no_instance_is_a_sliver(instances: list[Instance]) -> None:
    for instance in instances:
        area = np.count_nonzero(instance.visible)
        assert area >= 60
        assert area >= 0.25 * instance.full_area
        assert min(cv2.boundingRect(instance.visible.astype(np.uint8))[2:]) >= 9


def test_instances_of_a_picture_do_not_overlap(drawn: list[tuple[Image, list[Instance]]]) -> None:
    for image, found in drawn:
        assert max(image.shape) == 160
        assert min(image.shape[:2]) >= 120
        covered = np.zeros(image.shape[:2], int)
        for instance in found:
            covered += instance.visible
        assert covered.max() <= 1


def test_segmentations_agree_with_the_drawn_masks(instances: list[Instance]) -> None:
    overlaps = []
    for number, instance in enumerate(instances, start=1):
        annotation = annotate(instance, annotation_id=number, image_id=1)
        mask = rasterise(annotation, instance.visible.shape)
        overlap = (mask & instance.visible).sum() / (mask | instance.visible).sum()
        polygon = isinstance(annotation["segmentation"], list)
        assert polygon == (not instance.hidden and CLASSES[instance.category_id] != "ring")
        if not polygon:
            assert overlap == 1
        elif instance.full_area > 200:
            overlaps.append(overlap)
    assert np.mean(overlaps) >= 0.97
    assert min(overlaps) > 0.88


def test_all_three_kinds_of_segmentation_occur(root: Path) -> None:
    kinds: Counter[str] = Counter()
    for annotation in annotations(root, "train")["annotations"]:
        segmentation = annotation["segmentation"]
        kind = "polygon" if isinstance(segmentation, list) else type(segmentation["counts"]).__name__
        kinds[kind] += 1
        if kind != "polygon":
            assert kind == ("str" if annotation["id"] % 2 else "list")
    assert min(kinds[kind] for kind in ("polygon", "str", "list")) >= 5


@pytest.mark.parametrize("split", ["train", "val"])
def test_pycocotools_reads_the_set(root: Path, split: str) -> None:
    coco = COCO(str(root / "annotations" / f"instances_{split}2017.json"))
    assert {"info", "licenses"} <= set(coco.dataset)
    assert {category["id"]: category["name"] for category in coco.loadCats(coco.getCatIds())} == CLASSES
    assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))
    for image in coco.imgs.values():
        pixels = cv2.imread(str(root / f"{split}2017" / image["file_name"]))
        assert pixels is not None
        assert pixels.shape == (image["height"], image["width"], 3)
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        assert annotation["area"] == mask.sum()
        assert annotation["iscrowd"] == 0
        assert annotation["bbox"] == list(cv2.boundingRect(mask))  # tight: x, y, width, height


def test_colours_of_the_files_are_not_swapped(root: Path) -> None:
    image = annotations(root, "train")["images"][9]
    assert image["file_name"].endswith(".png")
    pixels = cv2.imread(str(root / "train2017" / image["file_name"]))
    assert pixels is not None
    assert np.array_equal(pixels[:, :, ::-1], draw_image(seed=0, split="train", index=9, image_size=160)[0])


def test_a_failure_midway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*, split: str, **rest: Any) -> Any:
        if split == "val":
            raise RuntimeError("killed")
        return draw_image(split=split, **rest)

    monkeypatch.setattr(shapes, "draw_image", fail)
    with pytest.raises(RuntimeError, match="killed"):
        draw_shapes(tmp_path / "set", train_images=2, val_images=1)
    assert not list(tmp_path.iterdir())


def test_a_complete_set_is_left_as_it_is(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(shapes, "draw_image")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    draw_shapes(root, train_images=24, val_images=12)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_losing_the_race_to_another_process_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "set"

    def slow(**arguments: Any) -> Any:
        monkeypatch.undo()
        draw_shapes(root, train_images=1, val_images=1)
        return draw_image(**arguments)

    monkeypatch.setattr(shapes, "draw_image", slow)
    draw_shapes(root, train_images=1, val_images=1)
    assert list(tmp_path.iterdir()) == [root]
    assert len(annotations(root, "val")["images"]) == 1


def test_other_contents_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="root"):
        draw_shapes(tmp_path, train_images=1, val_images=1)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("name", "value"), [("train_images", -1), ("val_images", -1), ("image_size", 63), ("seed", -1)]
)
def test_invalid_arguments_are_named(tmp_path: Path, name: str, value: int) -> None:
    with pytest.raises(ValueError, match=name):
        draw_shapes(tmp_path / "set", **{name: value})


@pytest.mark.parametrize("image_size", [64, 320])
def test_other_picture_sizes(tmp_path: Path, image_size: int) -> None:
    draw_shapes(tmp_path / "set", train_images=8, val_images=0, image_size=image_size)
    content = annotations(tmp_path / "set", "train")
    assert all(max(image["width"], image["height"]) == image_size for image in content["images"])
    assert all(annotation["area"] >= 60 for annotation in content["annotations"])

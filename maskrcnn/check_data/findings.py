"""What is wrong with annotations and splits, apart from their picture files."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from pycocotools import mask as coco_mask

from maskrcnn.check_data.splits import CheckedSplit, Finding
from maskrcnn.data.annotations import Annotations
from maskrcnn.data.datamodule import DetectionDataModule
from maskrcnn.errors import UserError

_MIN_IOU = 0.5  # of the box of an annotation with that of its outline
_NARROW = 32  # px; a picture with a shorter side is extreme,
_ELONGATED = 10  # as is one with sides in this proportion
_HUGE = 50_000_000  # or with more pixels than this


def find_problems(data: DetectionDataModule, splits: list[CheckedSplit]) -> list[Finding]:
    """Everything about the splits, those of single pictures first."""
    findings: list[Finding] = []
    for split in splits:
        findings += split.findings
        findings += _of_instances(split, data)
        findings += _of_images(split)
        findings += [
            Finding("warning", "notes on annotations", split.name, f"{split.annotations.source}: {note}")
            for note in split.annotations.notes
        ]
    by_name = {split.name: split for split in splits}
    if "train" in by_name and "val" in by_name:
        findings += _of_both(by_name["train"], by_name["val"])
    findings += _of_classes([split for split in splits if split.name != "test"])
    return findings


def try_to_start(data: DetectionDataModule, findings: list[Finding]) -> list[Finding]:
    """Let the data module have the last word, as it would at the start of a training."""
    if any(finding.grade == "error" for finding in findings):
        return []
    try:
        data.load(train=True)
    except UserError as error:
        return [Finding("error", "reasons not to start", "train", str(error))]
    return []


def _of_instances(split: CheckedSplit, data: DetectionDataModule) -> Iterator[Finding]:
    annotations, counted = split.annotations, split.content.counted
    image_of = np.repeat(np.arange(len(annotations.image_ids)), np.diff(annotations.first_instance))
    bare: Literal["error", "warning"] = "warning" if data.allow_boxes_only or split.name == "test" else "error"

    def found(rows: np.ndarray, kind: str, message: str, grade: Literal["error", "warning"] = "warning") -> Iterator:
        for row in np.flatnonzero(rows).tolist():
            id = int(annotations.annotation_ids[row])
            text = f"has annotation {id}, {message.format(*annotations.boxes[row])}"
            yield split.about_image(int(image_of[row]), text, grade=grade, kind=kind, annotation_id=id)

    hint = "it teaches no mask" if data.allow_boxes_only else "add it, or set data.allow_boxes_only=true"
    what = f"which has only a box, no outline: {hint}"
    yield from found(counted & ~annotations.has_outline, "annotations without an outline", what, bare)
    tiny = counted & (annotations.boxes[:, 2:].min(axis=1, initial=np.inf) < data.augment.min_side)
    what = "smaller than augment.min_side ({2:.3g} x {3:.3g}): training leaves it out unless it is enlarged"
    yield from found(tiny, "instances smaller than augment.min_side", what)
    sizes = annotations.sizes[image_of]
    apart = counted & annotations.has_outline & (_box_iou(annotations, sizes) < _MIN_IOU)
    what = "whose box {0:.6g}, {1:.6g}, {2:.6g}, {3:.6g} is not that of its outline (IoU below 0.5)"
    yield from found(apart, "boxes that do not fit their outline", what)


def _box_iou(annotations: Annotations, sizes: np.ndarray) -> np.ndarray:
    """IoU float64 [M] of each box with that of its outline, inside the picture; 1 without an outline."""
    low, high = annotations.boxes[:, :2].copy(), annotations.boxes[:, :2] + annotations.boxes[:, 2:]
    with_rings = np.flatnonzero(np.diff(annotations.first_ring) > 0)
    outline_low, outline_high = low.copy(), high.copy()
    if len(with_rings):
        starts = annotations.first_point[annotations.first_ring[with_rings]]
        outline_low[with_rings] = np.minimum.reduceat(annotations.points, starts)
        outline_high[with_rings] = np.maximum.reduceat(annotations.points, starts)
    for row in np.flatnonzero(np.diff(annotations.first_byte) > 0).tolist():
        box = coco_mask.toBbox(annotations.segmentation(row))
        outline_low[row], outline_high[row] = box[:2], box[:2] + box[2:]
    limit = sizes[:, ::-1].astype(np.float64)
    low, high = low.clip(0, limit), high.clip(0, limit)
    outline_low, outline_high = outline_low.clip(0, limit), outline_high.clip(0, limit)
    shared = (np.minimum(high, outline_high) - np.maximum(low, outline_low)).clip(0).prod(axis=1)
    united = (high - low).prod(axis=1) + (outline_high - outline_low).prod(axis=1) - shared
    return shared / np.where(united > 0, united, 1)


def _of_images(split: CheckedSplit) -> Iterator[Finding]:
    annotations = split.annotations
    positions: dict[str, list[int]] = {}
    for position in range(len(annotations.image_ids)):
        positions.setdefault(annotations.file_name(position), []).append(position)
    for same in positions.values():
        if len(same) > 1:
            ids = ", ".join(str(annotations.image_ids[position]) for position in same[1:])
            what = f"is listed {len(same)} times, also as image id {ids}"
            yield split.about_image(same[0], what, kind="pictures listed twice")
    for position, (height, width) in enumerate(annotations.sizes.tolist()):
        extreme = min(height, width) < _NARROW or max(height, width) >= _ELONGATED * min(height, width)
        if extreme or height * width > _HUGE:
            what = f"is {width} x {height} pixels, an extreme size"
            yield split.about_image(position, what, kind="pictures of an extreme size")
    if annotations.annotated:
        for position in np.flatnonzero(split.content.instances_per_image == 0).tolist():
            yield split.about_image(position, "has no instance", kind="pictures without an instance")


def _of_both(train: CheckedSplit, val: CheckedSplit) -> Iterator[Finding]:
    """What only shows when the two splits are compared."""
    seen: dict[bytes, int] = {}
    for position, digest in enumerate(train.digests):
        if digest:
            seen.setdefault(digest, position)
    for position, digest in enumerate(val.digests):
        if digest in seen:
            path = train.dataset.image_path(seen[digest])
            other = f"{path} (image id {train.annotations.image_ids[seen[digest]]})"
            what = f"holds the same as {other}: scores on what was trained on are too high"
            yield val.about_image(position, what, kind="pictures in both train and val")
    ours, theirs = ({(c["id"], c["name"]) for c in split.content.categories} for split in (train, val))
    for id, name in sorted(ours ^ theirs):
        here, there = (train, val) if (id, name) in ours else (val, train)
        message = f"category {id} {name} is in {here.annotations.source}, not in {there.annotations.source}"
        kind = "categories that only one split lists"
        yield Finding("error", kind, here.name, f"{message}; both must list the same ids and names")


def _of_classes(splits: list[CheckedSplit]) -> Iterator[Finding]:
    counts = {split.name: _instances_by_name(split) for split in splits if split.annotations.annotated}
    for name, mine in counts.items():
        for category, count in mine.items():
            if not count:
                others = [f"{theirs.get(category, 0)} in {other}" for other, theirs in counts.items() if other != name]
                hint = f" ({', '.join(others)})" if others else ""
                kind = "classes without an instance"
                yield Finding("warning", kind, name, f"class {category} has no instance in {name}{hint}")


def _instances_by_name(split: CheckedSplit) -> dict[str, int]:
    names = [category["name"] for category in split.content.categories]
    return dict(zip(names, np.bincount(split.content.labels, minlength=len(names) + 1)[1:].tolist(), strict=True))

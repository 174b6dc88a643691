"""Detections and annotations in flat arrays, and how much they overlap."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from maskrcnn.evaluation.comparable import compared, sizes_of
from maskrcnn.evaluation.regions import to_rle

MOST = 100  # detections of a class in a picture; COCO leaves out the others


@dataclass(frozen=True)
class Overlaps:
    """D detections and N annotations in flat arrays, and the P pairs of them that overlap.

    Both are in the order of `image_ids`, detections in each picture best score first. Labels are 0..K-1.

    Attributes:
        image_ids: The pictures, ascending.
        names: Of the K classes.
        image: int64 [D], position in `image_ids`.
        label: int64 [D].
        score: float64 [D].
        rank: int64 [D], how many detections of its class in its picture come before it.
        area: float64 [D], of its box, or of its mask if it has no box, in pixels.
        truth_image: int64 [N].
        truth_label: int64 [N].
        truth_area: float64 [N], in pixels.
        crowd: bool [N], whether any number of detections may find it.
        ignored: bool [N], whether to find it is neither right nor wrong, as for all crowds.
        detection: int64 [P], ascending.
        truth: int64 [P], of any class.
        iou: float64 [P], above 0; of a crowd, the share of the detection that lies in it.
    """

    image_ids: list[int]
    names: list[str]
    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    rank: np.ndarray
    area: np.ndarray
    truth_image: np.ndarray
    truth_label: np.ndarray
    truth_area: np.ndarray
    crowd: np.ndarray
    ignored: np.ndarray
    detection: np.ndarray
    truth: np.ndarray
    iou: np.ndarray


def overlap(
    complete: dict[str, Any],
    results: list[dict[str, Any]],
    *,
    kind: str,
    image_ids: Iterable[int] | None = None,
) -> Overlaps:
    """Compares results with all annotations of their picture.

    Args:
        complete: A ground truth as `comparable.complete` returns it.
        results: COCO results, each for a picture of the ground truth; those of unknown categories are left out.
        kind: "box" or "mask".
        image_ids: The pictures (all of them by default).
    """
    truth, results = compared(complete, results, kind)
    sizes = sizes_of(truth)
    scored = sorted(sizes if image_ids is None else set(image_ids))
    position = dict.fromkeys(sizes, -1) | {image_id: i for i, image_id in enumerate(scored)}
    label_of = {category["id"]: label for label, category in enumerate(truth["categories"])}

    found, image, label = _select(results, position, label_of)
    score = np.array([entry["score"] for entry in found], dtype=np.float64)
    order = np.lexsort((-score, image))
    rank = _rank(image[order], label[order])
    order, rank = order[rank < MOST], rank[rank < MOST]
    found, image, label, score = [found[i] for i in order], image[order], label[order], score[order]
    annotations, truth_image, truth_label = _select(truth["annotations"], position, label_of)
    crowd = np.array([bool(entry["iscrowd"]) for entry in annotations], dtype=bool)

    steps = np.arange(len(scored) + 1)
    edges, truth_edges = np.searchsorted(image, steps).tolist(), np.searchsorted(truth_image, steps).tolist()
    pairs = [(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))]
    for i, image_id in enumerate(scored):
        mine, theirs = slice(edges[i], edges[i + 1]), slice(truth_edges[i], truth_edges[i + 1])
        if found[mine] and annotations[theirs]:
            ious = _ious(found[mine], annotations[theirs], crowd[theirs], kind, sizes[image_id])
            detection, annotation = np.nonzero(ious)
            pairs.append((detection + mine.start, annotation + theirs.start, ious[detection, annotation]))
    detection, annotation, iou = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return Overlaps(
        image_ids=scored,
        names=[category["name"] for category in truth["categories"]],
        image=image,
        label=label,
        score=score,
        rank=rank,
        area=np.array([_area(entry) for entry in found], dtype=np.float64),
        truth_image=truth_image,
        truth_label=truth_label,
        truth_area=np.array([entry["area"] for entry in annotations], dtype=np.float64),
        crowd=crowd,
        ignored=crowd | np.array([bool(entry["ignore"]) for entry in annotations], dtype=bool),
        detection=detection,
        truth=annotation,
        iou=iou,
    )


def _select(
    entries: list[dict[str, Any]], position: dict[int, int], label_of: dict[int, int]
) -> tuple[list[dict[str, Any]], np.ndarray, np.ndarray]:
    """The entries of known classes in pictures with a position, picture by picture; their positions and labels."""
    kept = [entry for entry in entries if position[entry["image_id"]] >= 0 and entry["category_id"] in label_of]
    kept.sort(key=lambda entry: position[entry["image_id"]])
    image = np.array([position[entry["image_id"]] for entry in kept], dtype=np.int64)
    return kept, image, np.array([label_of[entry["category_id"]] for entry in kept], dtype=np.int64)


def _rank(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """How many of the same picture and label come before each entry [D]."""
    order = np.lexsort((label, image))
    first = np.diff(image[order], prepend=-1).astype(bool) | np.diff(label[order], prepend=-1).astype(bool)
    place = np.arange(len(order))
    rank = np.empty_like(place)
    rank[order] = place - np.maximum.accumulate(np.where(first, place, 0))
    return rank


def _area(result: dict[str, Any]) -> float:
    box = result.get("bbox")
    return box[2] * box[3] if box else float(coco_mask.area(result["segmentation"]))


def _ious(
    found: list[dict[str, Any]], annotations: list[dict[str, Any]], crowd: np.ndarray, kind: str, size: tuple[int, int]
) -> np.ndarray:
    """IoU [d, g] in one picture; of a crowd, the share of the detection that lies in it."""
    crowds = crowd.astype(int).tolist()
    if kind == "mask":
        regions = [to_rle(entry, size) for entry in annotations]
        return coco_mask.iou([entry["segmentation"] for entry in found], regions, crowds)
    boxes, others = (
        np.array([entry["bbox"] for entry in entries], dtype=np.float64) for entries in (found, annotations)
    )
    return coco_mask.iou(boxes, others, crowds)

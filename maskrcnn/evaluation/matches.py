"""Which detection found which annotation, for all that is asked of it afterwards."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from maskrcnn.evaluation.coco import prepare
from maskrcnn.evaluation.regions import to_rle

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of the IoU
MOST = 100  # detections of a class in a picture; COCO leaves out the others
_LIMITS = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]  # as COCO has it: rounding must not spoil a perfect overlap


@dataclass(frozen=True)
class Matches:
    """D detections and the G annotations that are to be found (neither crowds nor ignored), in flat arrays.

    Detections are in the order of `image_ids`, in each picture best score first. Labels are 0..K-1.

    Attributes:
        image_ids: The pictures.
        names: Of the K classes.
        image: int64 [D], position in `image_ids`.
        label: int64 [D].
        score: float64 [D].
        hit: bool [T, D], whether it found an annotation, for each of `THRESHOLDS`.
        spared: bool [T, D], whether it is neither right nor wrong: it found a crowd or an ignored annotation.
        own_iou: float64 [D], the largest IoU with an annotation of its class, 0 without one.
        own_truth: int64 [D], that annotation.
        other_iou: float64 [D], the largest IoU with one of another class.
        other_truth: int64 [D], that annotation.
        truth_image: int64 [G].
        truth_label: int64 [G].
        finder: int64 [G], the detection that found it at an IoU of 0.5, or -1.
        confused: int64 [P, 2], detections and annotations of different classes with an IoU of 0.5 at least; by
            detection, then the largest IoU first.
    """

    image_ids: list[int]
    names: list[str]
    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    hit: np.ndarray
    spared: np.ndarray
    own_iou: np.ndarray
    own_truth: np.ndarray
    other_iou: np.ndarray
    other_truth: np.ndarray
    truth_image: np.ndarray
    truth_label: np.ndarray
    finder: np.ndarray
    confused: np.ndarray

    @cached_property
    def counts(self) -> np.ndarray:
        """How many annotations of each class are to be found, int64 [K]."""
        return np.bincount(self.truth_label, minlength=len(self.names))

    @cached_property
    def by_class(self) -> list[np.ndarray]:
        """Detections of each class, best score first."""
        order = np.argsort(-self.score, kind="stable")
        order = order[np.argsort(self.label[order], kind="stable")]
        return np.split(order, np.searchsorted(self.label[order], np.arange(1, len(self.names))))

    @property
    def wrong(self) -> np.ndarray:
        """Whether a detection is wrong at an IoU of 0.5, bool [D]."""
        return ~self.hit[0] & ~self.spared[0]


def match(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    *,
    kind: str,
    image_ids: Iterable[int] | None = None,
) -> Matches:
    """Matches results as COCO's evaluation does, and compares them with the annotations of other classes too.

    In each picture, best score first, a detection finds the free annotation of its class with the largest IoU.

    Args:
        ground_truth: A parsed COCO instances file, as for `coco.score`.
        results: COCO results, each for a picture of the ground truth; those of unknown categories are left out.
        kind: "box" or "mask".
        image_ids: The pictures (all of them by default).
    """
    truth, results = prepare(ground_truth, results, kind)
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    scored = sorted(sizes if image_ids is None else set(image_ids))
    label_of = {category["id"]: label for label, category in enumerate(truth["categories"])}
    found, annotations = _by_image(results, label_of), _by_image(truth["annotations"], label_of)
    parts = [
        _match_picture(found[image_id], annotations[image_id], label_of, kind, sizes[image_id]) for image_id in scored
    ]
    return _join(parts, scored, [category["name"] for category in truth["categories"]])


def _by_image(entries: list[dict[str, Any]], label_of: dict[int, int]) -> dict[int, list[dict[str, Any]]]:
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        if entry["category_id"] in label_of:
            groups[entry["image_id"]].append(entry)
    return groups


def _match_picture(
    found: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    label_of: dict[int, int],
    kind: str,
    size: tuple[int, int],
) -> dict[str, np.ndarray]:
    """The arrays of one picture; detections and annotations are numbered from 0 on."""
    labels = np.array([label_of[entry["category_id"]] for entry in found], dtype=np.int64)
    scores = np.array([entry["score"] for entry in found], dtype=np.float64)
    order = _best(scores, labels)
    labels, scores = labels[order], scores[order]

    crowd = np.array([bool(entry["iscrowd"]) for entry in annotations], dtype=bool)
    counted = ~crowd & ~np.array([bool(entry["difficult"]) for entry in annotations], dtype=bool)
    truth_labels = np.array([label_of[entry["category_id"]] for entry in annotations], dtype=np.int64)
    ious = _ious([found[i] for i in order], annotations, crowd, kind, size)

    own = labels[:, None] == truth_labels
    hit, spared, finder = _find(ious, own, counted, crowd)
    ious, own = ious[:, counted], own[:, counted]
    own_iou, own_truth = _largest(np.where(own, ious, 0))
    other_iou, other_truth = _largest(np.where(own, 0, ious))
    confused = np.argwhere(~own & (ious >= _LIMITS[0]))
    confused = confused[np.lexsort((-ious[tuple(confused.T)], confused[:, 0]))]
    return {
        "label": labels,
        "score": scores,
        "hit": hit,
        "spared": spared,
        "own_iou": own_iou,
        "own_truth": own_truth,
        "other_iou": other_iou,
        "other_truth": other_truth,
        "truth_label": truth_labels[counted],
        "finder": finder[counted],
        "confused": confused,
    }


def _best(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which detections of a picture count, best first."""
    order = np.argsort(-scores, kind="stable")
    if len(order) <= MOST:
        return order
    kept = np.zeros(len(order), dtype=bool)
    for label in np.unique(labels):
        kept[np.flatnonzero(labels[order] == label)[:MOST]] = True
    return order[kept]


def _ious(
    found: list[dict[str, Any]], annotations: list[dict[str, Any]], crowd: np.ndarray, kind: str, size: tuple[int, int]
) -> np.ndarray:
    """IoU [d, g]; of a crowd, the share of the detection that lies in it."""
    if not found or not annotations:
        return np.zeros((len(found), len(annotations)))
    if kind == "mask":
        regions = [to_rle(entry, size) for entry in annotations]
        return coco_mask.iou([entry["segmentation"] for entry in found], regions, crowd.astype(int).tolist())
    boxes, others = ([entry["bbox"] for entry in entries] for entries in (found, annotations))
    return coco_mask.iou(
        np.array(boxes, dtype=np.float64), np.array(others, dtype=np.float64), crowd.astype(int).tolist()
    )


def _find(
    ious: np.ndarray, own: np.ndarray, counted: np.ndarray, crowd: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`hit` [T, d], `spared` [T, d] and `finder` [g] of one picture.

    Args:
        ious: [d, g], best detection first.
        own: bool [d, g], whether the classes are the same.
        counted: bool [g], whether an annotation is to be found.
        crowd: bool [g], whether any number of detections may find it.
    """
    detections, annotations = ious.shape
    hit = np.zeros((len(THRESHOLDS), detections), dtype=bool)
    spared = np.zeros_like(hit)
    taken = np.zeros((len(THRESHOLDS), annotations), dtype=bool)
    finder = np.full(annotations, -1)
    near = own & (ious >= _LIMITS[0])
    for d in np.flatnonzero(near.any(axis=1)):
        candidates = np.flatnonzero(near[d])
        for group, kind in ((candidates[counted[candidates]], hit), (candidates[~counted[candidates]], spared)):
            if not len(group):
                continue
            free = (ious[d, group] >= _LIMITS) & (~taken[:, group] | crowd[group]) & ~hit[:, d, None]
            levels = np.flatnonzero(free.any(axis=1))
            # Of several with the same IoU the last, as in COCO's evaluation.
            best = group[::-1][np.where(free, ious[d, group], -1)[levels, ::-1].argmax(axis=1)]
            kind[levels, d] = True
            taken[levels, best] = True
            if kind is hit and len(levels) and levels[0] == 0:
                finder[best[0]] = d
    return hit, spared, finder


def _largest(ious: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest IoU of each row, and its column."""
    if not ious.size:
        return np.zeros(len(ious)), np.zeros(len(ious), dtype=np.int64)
    columns = ious.argmax(axis=1)
    return ious[np.arange(len(ious)), columns], columns


def _join(parts: list[dict[str, np.ndarray]], image_ids: list[int], names: list[str]) -> Matches:
    """The arrays of all pictures."""
    detections = np.array([len(part["label"]) for part in parts], dtype=np.int64)
    annotations = np.array([len(part["truth_label"]) for part in parts], dtype=np.int64)
    first, first_truth = np.cumsum(detections) - detections, np.cumsum(annotations) - annotations
    joined: dict[str, list[np.ndarray]] = defaultdict(list)
    for part, d, g in zip(parts, first, first_truth, strict=True):
        part["own_truth"] += g
        part["other_truth"] += g
        part["finder"] = np.where(part["finder"] < 0, -1, part["finder"] + d)
        part["confused"] = part["confused"] + (d, g)
        for name, values in part.items():
            joined[name].append(values)
    arrays = {
        name: np.concatenate(values, axis=-1 if name in ("hit", "spared") else 0) for name, values in joined.items()
    }
    pictures = np.arange(len(parts))
    return Matches(
        image_ids=image_ids,
        names=names,
        image=pictures.repeat(detections),
        truth_image=pictures.repeat(annotations),
        **arrays,
    )

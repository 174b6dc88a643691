"""COCO average precision of boxes and masks, with pycocotools' numbers.

Works on parsed COCO files only: a ground truth (``instances_*.json``) and result dictionaries
``{image_id, category_id, score, bbox: [x, y, width, height], segmentation: compressed RLE}`` in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch.distributed as dist
from torchmetrics import Metric

from maskrcnn.evaluation.analysis import ClassScore, class_ap, class_scores, defined_mean
from maskrcnn.evaluation.comparable import complete
from maskrcnn.evaluation.matches import AREAS, THRESHOLDS, match_area
from maskrcnn.evaluation.overlaps import Overlaps, overlap
from maskrcnn.evaluation.precision import precision_curves, recalls
from maskrcnn.evaluation.voc import has_void, voc_scores

# IoU range, area and detections per image of each metric, in the order in which pycocotools prints them.
_SETTINGS = {
    "ap": ("0.50:0.95", "all", 100),
    "ap50": ("0.50", "all", 100),
    "ap75": ("0.75", "all", 100),
    "ap_small": ("0.50:0.95", "small", 100),
    "ap_medium": ("0.50:0.95", "medium", 100),
    "ap_large": ("0.50:0.95", "large", 100),
    "ar1": ("0.50:0.95", "all", 1),
    "ar10": ("0.50:0.95", "all", 10),
    "ar100": ("0.50:0.95", "all", 100),
    "ar_small": ("0.50:0.95", "small", 100),
    "ar_medium": ("0.50:0.95", "medium", 100),
    "ar_large": ("0.50:0.95", "large", 100),
}
METRICS = tuple(_SETTINGS)
KINDS = {"box": "bbox", "mask": "segm"}


def score(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    *,
    image_ids: Iterable[int] | None = None,
    kinds: Iterable[str] = tuple(KINDS),
) -> dict[str, dict[str, float]]:
    """Scores results as ``COCOeval(gt, gt.loadRes(results), KINDS[kind])`` of pycocotools does.

    As there, a result that has a box is counted small, medium or large by the area of that box, for masks
    too. Neither argument is changed.

    Three things that COCO's own files don't have are left out of the numbers. A result that matches an
    annotation with ``ignore`` 1 is neither right nor wrong, and that annotation is not missed; it is matched by
    ordinary IoU, unlike a crowd. The pixels of an image's ``void`` mask are taken out of the masks found there.
    To masks, an annotation without a segmentation is a crowd that fills its box; if all lack one, the mask
    numbers are -1.

    Args:
        ground_truth: a parsed COCO instances file. Annotations may lack ``area``, ``iscrowd`` and ``id``, and
            may have ``ignore``; images may have ``void``, compressed run lengths.
        results: COCO results, each for an image of the ground truth (else KeyError); those of unknown categories
            are ignored.
        image_ids: the images to score (all of them by default).
        kinds: keys of KINDS. "box" needs a ``bbox`` in every result, "mask" a ``segmentation``.

    Returns:
        For each kind the twelve METRICS, in [0, 1], or -1 where there is no ground truth of that size. Where
        images have void pixels, as in VOC, "voc" holds VOC's own numbers, see ``voc_scores``.
    """
    return score_classes(ground_truth, results, image_ids=image_ids, kinds=kinds)[0]


def score_classes(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    *,
    image_ids: Iterable[int] | None = None,
    kinds: Iterable[str] = tuple(KINDS),
) -> tuple[dict[str, dict[str, float]], list[ClassScore]]:
    """The numbers of ``score``, and those of each class from the same pass."""
    kinds = tuple(kinds)
    completed = complete(ground_truth)
    scored = sorted({image["id"] for image in ground_truth["images"]} if image_ids is None else set(image_ids))
    category_ids = [category["id"] for category in ground_truth["categories"]]
    numbers: dict[str, dict[str, float]] = {}
    by_class: dict[str, dict[int, tuple[float, float]]] = {}
    for kind in kinds:
        overlaps = overlap(completed, results, kind=kind, image_ids=scored)
        numbers[kind], by_class[kind] = _evaluate(overlaps, category_ids)
    if has_void(ground_truth):
        numbers["voc"] = voc_scores(ground_truth, results, image_ids=scored, kinds=kinds)
    return numbers, class_scores(ground_truth, scored, by_class)


def format_table(numbers: dict[str, float], kind: str) -> str:
    """The twelve lines that pycocotools prints for ``numbers``; they are worded alike for both kinds."""
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, should be one of {', '.join(KINDS)}")
    lines = []
    for name, (iou, area, detections) in _SETTINGS.items():
        title = "Average Precision  (AP)" if name.startswith("ap") else "Average Recall     (AR)"
        limits = f"IoU={iou:<9} | area={area:>6} | maxDets={detections:>3}"
        lines.append(f" {title} @[ {limits} ] = {numbers[name]:0.3f}")
    return "\n".join(lines)


class CocoMetric(Metric):
    """Collects the results of a validation run and scores them once, over all ranks.

    After ``compute()``, ``image_ids`` (ascending) and ``results`` (by image, best score first) hold what was
    scored, and ``classes`` the scores of each class, on every rank. An image that came more than once counts the
    first time only, so the images that a distributed sampler repeats to fill its last round do no harm.
    """

    def __init__(self, ground_truth: dict[str, Any] | None) -> None:
        # compute() gathers by itself, and is not cached: if only some ranks had an update since the last
        # compute(), the others would return what they cached and never join the gathering.
        super().__init__(sync_on_compute=False, compute_with_cache=False)
        self._ground_truth = ground_truth
        self._by_image: dict[int, list[dict[str, Any]]] = {}
        self.image_ids: list[int] = []
        self.results: list[dict[str, Any]] = []
        self.classes: list[ClassScore] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> CocoMetric:
        """An empty metric on the same ground truth: that may be large, and nobody changes it."""
        return CocoMetric(self._ground_truth)

    def update(self, image_ids: list[int], results: list[dict[str, Any]]) -> None:
        """Adds a batch.

        Args:
            image_ids: all images of the batch, those without any detection too.
            results: COCO results with box and mask, each for one of ``image_ids``.
        """
        batch: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in image_ids}
        for result in results:
            batch[result["image_id"]].append(result)
        for image_id, found in batch.items():
            self._by_image.setdefault(image_id, found)

    def forward(self, image_ids: list[int], results: list[dict[str, Any]]) -> None:
        """Same as ``update``: a score of every single batch would be slow and mean nothing."""
        self.update(image_ids, results)

    def compute(self) -> dict[str, dict[str, float]]:
        """The numbers of ``score`` over all images seen; the same on every rank, and none without a ground truth."""
        distributed = dist.is_initialized()
        parts = [self._by_image]
        if distributed:
            parts = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(parts, self._by_image)
        merged = _merge(parts)
        self.image_ids = sorted(merged)
        self.results = [result for image_id in self.image_ids for result in _best_first(merged[image_id])]

        scores: list[tuple[dict[str, dict[str, float]], list[ClassScore]]] = [({}, [])]
        if self._ground_truth is not None and (not distributed or dist.get_rank() == 0):
            scores = [score_classes(self._ground_truth, self.results, image_ids=self.image_ids)]
        if distributed:
            dist.broadcast_object_list(scores, src=0)
        numbers, self.classes = scores[0]
        return numbers

    def reset(self) -> None:
        """Forgets all batches."""
        super().reset()
        self._by_image, self.image_ids, self.results, self.classes = {}, [], [], []


def _evaluate(overlaps: Overlaps, category_ids: list[int]) -> tuple[dict[str, float], dict[int, tuple[float, float]]]:
    """The twelve METRICS, and AP and AP50 by category."""
    by_id = np.argsort(category_ids)  # the order in which pycocotools adds numbers up
    precision: dict[str, np.ndarray] = {}
    recall: dict[tuple[str, int], np.ndarray] = {}
    for area in AREAS:
        matches = match_area(overlaps, area)
        precision[area] = precision_curves(matches)
        recall |= {(area, most): recalls(matches, most) for most in (1, 10, 100)}
    numbers = {}
    for name, (iou, area, most) in _SETTINGS.items():
        values = (precision[area] if name.startswith("ap") else recall[area, most])[..., by_id]
        numbers[name] = defined_mean(values if ":" in iou else values[float(iou) == THRESHOLDS])
    return numbers, class_ap(precision["all"], category_ids)


def _merge(parts: Iterable[dict[int, list[dict[str, Any]]]]) -> dict[int, list[dict[str, Any]]]:
    """Joins results per image; the first part that has an image gives its results."""
    merged: dict[int, list[dict[str, Any]]] = {}
    for part in parts:
        for image_id, results in part.items():
            merged.setdefault(image_id, results)
    return merged


def _best_first(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(results, key=lambda result: -result["score"])

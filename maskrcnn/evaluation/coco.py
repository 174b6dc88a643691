"""COCO average precision of boxes and masks, with pycocotools' numbers.

Works on parsed COCO files only: a ground truth (``instances_*.json``) and result dictionaries
``{image_id, category_id, score, bbox: [x, y, width, height], segmentation: compressed RLE}`` in pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pycocotools.mask as mask_utils
import torch.distributed as dist
from faster_coco_eval import COCO, COCOeval_faster, mask_api_new_cpp
from torchmetrics import Metric

from maskrcnn.errors import UserError

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

    Args:
        ground_truth: a parsed COCO instances file. Annotations may lack ``area``, ``iscrowd`` and ``id``.
        results: COCO results, each for an image of the ground truth; those of unknown categories are ignored.
        image_ids: the images to score (all of them by default).
        kinds: keys of KINDS. "box" needs a ``bbox`` in every result, "mask" a ``segmentation``.

    Returns:
        For each kind the twelve METRICS, in [0, 1], or -1 where there is no ground truth of that size.
    """
    truth = COCO(_complete(ground_truth), print_function=_silent)
    detections = truth.loadRes([dict(result) for result in results])
    images = sorted(truth.imgs if image_ids is None else set(image_ids))
    return {kind: _twelve_numbers(truth, detections, KINDS[kind], images) for kind in kinds}


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
    scored, on every rank. An image that came more than once counts the first time only, so the images that a
    distributed sampler repeats to fill its last round do no harm.
    """

    def __init__(self, ground_truth: dict[str, Any]) -> None:
        # compute() gathers by itself, and is not cached: if only some ranks had an update since the last
        # compute(), the others would return what they cached and never join the gathering.
        super().__init__(sync_on_compute=False, compute_with_cache=False)
        self._ground_truth = ground_truth
        self._by_image: dict[int, list[dict[str, Any]]] = {}
        self.image_ids: list[int] = []
        self.results: list[dict[str, Any]] = []

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
        """The numbers of ``score`` over all images seen; the same on every rank."""
        distributed = dist.is_available() and dist.is_initialized()
        parts = [self._by_image]
        if distributed:
            parts = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(parts, self._by_image)
        merged = _merge(parts)
        self.image_ids = sorted(merged)
        self.results = [result for image_id in self.image_ids for result in _best_first(merged[image_id])]

        numbers: list[dict[str, dict[str, float]]] = [{}]
        if not distributed or dist.get_rank() == 0:
            numbers = [score(self._ground_truth, self.results, image_ids=self.image_ids)]
        if distributed:
            dist.broadcast_object_list(numbers, src=0)
        return numbers[0]

    def reset(self) -> None:
        """Forgets all batches."""
        super().reset()
        self._by_image, self.image_ids, self.results = {}, [], []


def read_results(path: Path, ground_truth: dict[str, Any]) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Reads and checks a COCO results file.

    Returns:
        The results and the kinds they can be scored for: ("box",), ("mask",) or both.

    Raises:
        UserError: the file can't be read or an entry is wrong; names the file and the entry (from 0).
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}); give a COCO results file") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); give a COCO results file") from error
    if not isinstance(results, list):
        raise UserError(f"{path}: should be a list of COCO results, is a JSON {type(results).__name__}")
    sizes = _sizes(ground_truth)
    categories = {category["id"] for category in ground_truth["categories"]}
    kinds = tuple(KINDS)
    for index, entry in enumerate(results):
        where = f"{path}: entry {index}"
        found = _check_result(entry, where, sizes, categories)
        if index and found != kinds:
            raise UserError(f"{where} has not the same of 'bbox' and 'segmentation' as the entries before it")
        kinds = found
    return results, kinds


def _silent(*_: object) -> None:
    """Takes the library's messages, which a logging setup would otherwise print."""


def _sizes(ground_truth: dict[str, Any]) -> dict[int, tuple[int, int]]:
    """Height and width of each image."""
    return {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}


def _complete(ground_truth: dict[str, Any]) -> dict[str, Any]:
    """A copy of the ground truth whose annotations all have an area, iscrowd and a good id."""
    sizes = _sizes(ground_truth)
    annotations: list[dict[str, Any]] = []
    for annotation in ground_truth["annotations"]:
        if annotation["image_id"] not in sizes:
            continue
        # New ids for all: they only mark matches, for which each must be unique and none 0 ("unmatched").
        copy = {"iscrowd": 0, **annotation, "id": len(annotations) + 1}
        if "area" not in copy:
            copy["area"] = _area(copy, *sizes[copy["image_id"]])
        annotations.append(copy)
    images = [dict(image) for image in ground_truth["images"]]
    return {"images": images, "annotations": annotations, "categories": ground_truth["categories"]}


def _area(annotation: dict[str, Any], height: int, width: int) -> float:
    """Area of an annotation's mask, or of its box if it has no mask, in pixels."""
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return float(annotation["bbox"][2] * annotation["bbox"][3])
    if isinstance(segmentation, list):
        segmentation = mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = mask_utils.frPyObjects(segmentation, height, width)
    return float(mask_utils.area(segmentation))


def _twelve_numbers(truth: COCO, detections: COCO, iou_type: str, image_ids: list[int]) -> dict[str, float]:
    if not image_ids:
        return dict.fromkeys(METRICS, -1.0)  # to the library, an empty list means all images
    evaluation = COCOeval_faster(truth, detections, iou_type, print_function=_silent)
    evaluation.params.imgIds = image_ids
    evaluation.run()
    return dict(zip(METRICS, map(float, evaluation.stats), strict=True))


def _merge(parts: Iterable[dict[int, list[dict[str, Any]]]]) -> dict[int, list[dict[str, Any]]]:
    """Joins results per image; the first part that has an image gives its results."""
    merged: dict[int, list[dict[str, Any]]] = {}
    for part in parts:
        for image_id, results in part.items():
            merged.setdefault(image_id, results)
    return merged


def _best_first(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(results, key=lambda result: -result["score"])


def _check_result(entry: Any, where: str, sizes: dict[int, tuple[int, int]], categories: set[int]) -> tuple[str, ...]:
    """Checks one entry of a results file, the one that messages call ``where``.

    Returns:
        The kinds it can be scored for.
    """
    if not isinstance(entry, dict):
        raise UserError(f"{where} should be a COCO result, an object with an image_id, a category_id and a score")
    for key in ("image_id", "category_id", "score"):
        if key not in entry:
            raise UserError(f"{where} has no {key!r}")
    for key, known in (("image_id", sizes), ("category_id", categories)):
        if not isinstance(entry[key], int) or entry[key] not in known:
            raise UserError(f"{where} has an unknown {key}, the ground truth has no {entry[key]!r}")
    if not _is_finite(entry["score"]):
        raise UserError(f"{where} has a score that is not a finite number: {entry['score']!r}")
    if "bbox" in entry:
        _check_box(entry["bbox"], where)
    if "segmentation" in entry:
        _check_mask(entry["segmentation"], where, *sizes[entry["image_id"]])
    kinds = tuple(kind for kind, field in (("box", "bbox"), ("mask", "segmentation")) if field in entry)
    if not kinds:
        raise UserError(f"{where} has neither 'bbox' nor 'segmentation'")
    return kinds


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_box(box: Any, where: str) -> None:
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        raise UserError(f"{where} has a bbox that is not four finite numbers [x, y, width, height]")


def _check_mask(rle: Any, where: str, height: int, width: int) -> None:
    if not isinstance(rle, dict) or not isinstance(rle.get("counts"), str) or "size" not in rle:
        raise UserError(f"{where} has a segmentation that is not a compressed RLE (size and counts)")
    if rle["size"] != [height, width]:
        raise UserError(f"{where} has an RLE of size {rle['size']!r}, its image is [{height}, {width}]")
    try:
        runs = mask_api_new_cpp.toUncompressedRLE([rle])[0]["counts"]
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{where} has a malformed RLE ({error})") from error
    # With too few pixels the library's IoU would never end.
    if sum(runs) != height * width:
        raise UserError(f"{where} has a malformed RLE ({sum(runs)} pixels, its image has {height * width})")

"""The same drawn results, scored by this package and by pycocotools."""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import cache
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn.evaluation.coco import KINDS, METRICS, score

_HEIGHT, _WIDTH = 480, 640  # of a picture of COCO
_CLASSES = 80
_FOUND = 0.3  # share of the detections that are an instance moved a little
_CORNERS = 12

Content = tuple[dict[str, Any], list[dict[str, Any]]]
Numbers = dict[str, dict[str, float]]


@cache
def drawn(images: int, instances: int, detections: int, seed: int) -> Content:
    """An instances file of polygons, and results with boxes and run lengths; so many of each in an image."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image_id in range(1, images + 1):
        boxes, classes = _boxes(rng, instances), rng.integers(1, _CLASSES + 1, instances)
        for box, category_id in zip(boxes, classes.tolist(), strict=True):
            about = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category_id, "iscrowd": 0}
            shape = {"bbox": box.tolist(), "area": float(box[2] * box[3]), "segmentation": [_polygon(box)]}
            annotations.append(about | shape)
        found = rng.random(detections) < _FOUND
        which = rng.integers(0, instances, detections)
        moved = boxes[which] * rng.uniform(0.9, 1.1, (detections, 4))
        places = np.where(found[:, None], moved, _boxes(rng, detections))
        labels = np.where(found, classes[which], rng.integers(1, _CLASSES + 1, detections))
        for box, category_id, value in zip(places, labels.tolist(), rng.random(detections).tolist(), strict=True):
            rle = coco_mask.frPyObjects([_polygon(box)], _HEIGHT, _WIDTH)[0]
            mask = {"size": rle["size"], "counts": rle["counts"].decode()}
            about = {"image_id": image_id, "category_id": category_id, "score": value}
            results.append(about | {"bbox": box.tolist(), "segmentation": mask})
    pictures = [{"id": image_id, "height": _HEIGHT, "width": _WIDTH} for image_id in range(1, images + 1)]
    categories = [{"id": number, "name": str(number)} for number in range(1, _CLASSES + 1)]
    return {"images": pictures, "annotations": annotations, "categories": categories}, results


def ours(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> Numbers:
    """The numbers of an evaluation."""
    return score(ground_truth, results)


def pycocotools(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> Numbers:
    """The same from the reference."""
    numbers = {}
    with redirect_stdout(io.StringIO()):
        truth = COCO()
        # Copies, since it turns their polygons into run lengths: the next round would have less to do.
        truth.dataset = ground_truth | {"annotations": [dict(each) for each in ground_truth["annotations"]]}
        truth.createIndex()
        detections = truth.loadRes([dict(result) for result in results])
        for kind, iou_type in KINDS.items():
            evaluation = COCOeval(truth, detections, iou_type)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            numbers[kind] = dict(zip(METRICS, evaluation.stats.tolist(), strict=True))
    return numbers


def largest_difference(one: Numbers, other: Numbers) -> float:
    """Of any two numbers that should be the same."""
    return max(abs(one[kind][name] - other[kind][name]) for kind in one for name in one[kind])


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """x, y, width, height [N, 4] with sides of 10 to 200 pixels."""
    sides = rng.uniform(10, 200, (count, 2))
    return np.concatenate((rng.random((count, 2)) * ((_WIDTH, _HEIGHT) - sides), sides), axis=1)


def _polygon(box: Sequence[float] | np.ndarray) -> list[float]:
    """An ellipse that fills the box."""
    angles = 2 * np.pi * np.arange(_CORNERS) / _CORNERS
    x, y = ((box[i] + box[i + 2] * (1 + wave) / 2) for i, wave in enumerate((np.cos(angles), np.sin(angles))))
    return np.stack((x, y), axis=1).ravel().tolist()

"""Average precision at an IoU of 0.5 by the rule of the PASCAL VOC challenge.

Everingham, Van Gool, Williams, Winn and Zisserman, "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010,
section 4.2, and ``VOCevaldet.m`` of its development kit; for masks in place of boxes (AP^r), Hariharan, Arbelaez,
Girshick and Malik, "Simultaneous Detection and Segmentation", ECCV 2014.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from maskrcnn.evaluation.regions import to_rle, without_void

KINDS = ("box", "mask")
_LEAST_IOU = 0.5


def voc_ap50(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    *,
    kind: str,
    image_ids: Iterable[int] | None = None,
    use_07_metric: bool = False,
) -> dict[str, Any]:
    """Scores results by VOC's rule.

    In falling order of score, each result is assigned to the annotation of its class with the largest IoU. If
    that is at least 0.5, the first result of an annotation is right and each further one is wrong; those of a
    difficult annotation are neither. All others are wrong.

    Annotations with ``ignore`` or ``iscrowd`` 1 are difficult, and to masks also those without a segmentation,
    which are compared by their box. The pixels of an image's ``void`` mask are taken out of the masks found
    there. Neither argument is changed.

    Args:
        ground_truth: a parsed COCO instances file.
        results: COCO results, each for an image of the ground truth; those of unknown categories are ignored.
        kind: "box" or "mask".
        image_ids: the images to score (all of them by default).
        use_07_metric: the mean of the precision at 11 recalls, as until 2009, in place of the area under the
            curve.

    Returns:
        "ap50": the mean over classes in [0, 1], or -1 without any annotation that counts; "per_class": the AP
        of each category id that has such annotations.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, should be one of {', '.join(KINDS)}")
    sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    scored = set(sizes) if image_ids is None else set(image_ids)
    results = [result for result in results if result["image_id"] in scored]
    if kind == "mask":
        results = without_void(results, ground_truth["images"])

    annotations_of: dict[int, dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for annotation in ground_truth["annotations"]:
        if annotation["image_id"] in scored:
            annotations_of[annotation["category_id"]][annotation["image_id"]].append(annotation)
    results_of: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        results_of[result["category_id"]].append(result)

    per_class = {}
    for category in sorted(annotations_of):
        of_image = annotations_of[category]
        count = sum(not _is_difficult(entry, kind) for entries in of_image.values() for entry in entries)
        if count:
            right = _judge(of_image, results_of[category], kind, sizes)
            per_class[category] = _average_precision(right, count, use_07_metric)
    mean = sum(per_class.values()) / len(per_class) if per_class else -1.0
    return {"ap50": mean, "per_class": per_class}


def voc_scores(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    *,
    image_ids: Iterable[int] | None = None,
    kinds: Iterable[str] = KINDS,
) -> dict[str, float]:
    """``voc_ap50`` of each kind, as "box_ap50" and "mask_ap50"."""
    scored = None if image_ids is None else list(image_ids)
    return {f"{kind}_ap50": voc_ap50(ground_truth, results, kind=kind, image_ids=scored)["ap50"] for kind in kinds}


def has_void(ground_truth: dict[str, Any]) -> bool:
    """Whether images have void pixels, as VOC's do: then its own score is worth a look."""
    return any(image.get("void") for image in ground_truth["images"])


def _is_difficult(annotation: dict[str, Any], kind: str) -> bool:
    no_mask = kind == "mask" and not annotation.get("segmentation")
    return bool(annotation.get("ignore") or annotation.get("iscrowd") or no_mask)


def _judge(
    annotations_of: dict[int, list[dict[str, Any]]],
    results: list[dict[str, Any]],
    kind: str,
    sizes: dict[int, tuple[int, int]],
) -> np.ndarray:
    """Bool [D]: whether each result that is right or wrong is right, best score first.

    Args:
        annotations_of: Annotations of one class by image.
        results: Results of this class.
        kind: "box" or "mask".
        sizes: Height and width of each image.
    """
    best, overlap = _assign(annotations_of, results, kind, sizes)
    taken = set()
    verdicts = []
    scores = np.array([result["score"] for result in results])
    for index in np.argsort(-scores, kind="stable").tolist():
        image_id = results[index]["image_id"]
        if overlap[index] < _LEAST_IOU:
            verdicts.append(False)
        elif not _is_difficult(annotations_of[image_id][best[index]], kind):
            verdicts.append((image_id, best[index]) not in taken)
            taken.add((image_id, best[index]))
    return np.array(verdicts, dtype=bool)


def _assign(
    annotations_of: dict[int, list[dict[str, Any]]],
    results: list[dict[str, Any]],
    kind: str,
    sizes: dict[int, tuple[int, int]],
) -> tuple[np.ndarray, np.ndarray]:
    """Index in its image of the annotation with the largest IoU, and that IoU, for each result [D]."""
    best, overlap = np.zeros(len(results), dtype=np.int64), np.zeros(len(results))
    rows_of = defaultdict(list)
    for row, result in enumerate(results):
        rows_of[result["image_id"]].append(row)
    for image_id, rows in rows_of.items():
        annotations = annotations_of.get(image_id)
        if not annotations:
            continue
        if kind == "mask":
            regions = [to_rle(annotation, sizes[image_id]) for annotation in annotations]
            found = [results[row]["segmentation"] for row in rows]
        else:
            regions = [annotation["bbox"] for annotation in annotations]
            found = [results[row]["bbox"] for row in rows]
        ious = coco_mask.iou(found, regions, [0] * len(regions))
        best[rows], overlap[rows] = ious.argmax(axis=1), ious.max(axis=1)
    return best, overlap


def _average_precision(right: np.ndarray, count: int, use_07_metric: bool) -> float:
    """AP of results [D], best first, of a class with `count` annotations."""
    hits = np.cumsum(right)
    recall, precision = hits / count, hits / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]  # the best precision at this recall or a larger one
    if use_07_metric:
        reached = [envelope[recall >= level] for level in np.arange(11) / 10]
        return float(sum(part[0] for part in reached if len(part)) / len(reached))
    return float(np.sum(np.diff(recall, prepend=0) * envelope))

"""Ground truth and results made comparable: all annotations with the same fields, and masks that can be compared."""

from typing import Any

from pycocotools import mask as coco_mask

from maskrcnn.evaluation.regions import to_rle, without_void


def complete(ground_truth: dict[str, Any]) -> dict[str, Any]:
    """A copy of the ground truth whose annotations all have ``area``, ``iscrowd`` and ``ignore``."""
    sizes = sizes_of(ground_truth)
    annotations = []
    for annotation in ground_truth["annotations"]:
        if annotation["image_id"] not in sizes:
            continue
        copy = {"iscrowd": 0, "ignore": 0, **annotation}
        if "area" not in copy:
            copy["area"] = _area(copy, sizes[copy["image_id"]])
        annotations.append(copy)
    return ground_truth | {"annotations": annotations}


def compared(
    complete: dict[str, Any], results: list[dict[str, Any]], kind: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What is compared for a kind: another ground truth and other results only where masks can't be as they are."""
    if kind == "mask" and _needs_care(complete):
        return _boxes_as_crowds(complete), without_void(results, complete["images"])
    return complete, results


def sizes_of(ground_truth: dict[str, Any]) -> dict[int, tuple[int, int]]:
    """Height and width of each image."""
    return {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}


def _area(annotation: dict[str, Any], size: tuple[int, int]) -> float:
    """Area of an annotation's mask, or of its box if it has no mask, in pixels."""
    if not annotation.get("segmentation"):
        return float(annotation["bbox"][2] * annotation["bbox"][3])
    return float(coco_mask.area(to_rle(annotation, size)))


def _needs_care(ground_truth: dict[str, Any]) -> bool:
    """Whether masks can't be compared as they are."""
    return any(image.get("void") for image in ground_truth["images"]) or not all(
        annotation.get("segmentation") for annotation in ground_truth["annotations"]
    )


def _boxes_as_crowds(ground_truth: dict[str, Any]) -> dict[str, Any]:
    """The ground truth with a crowd that fills the box for each annotation without a mask."""
    sizes = sizes_of(ground_truth)
    annotations = [
        annotation
        if annotation.get("segmentation")
        else annotation | {"iscrowd": 1, "segmentation": to_rle(annotation, sizes[annotation["image_id"]])}
        for annotation in ground_truth["annotations"]
    ]
    return ground_truth | {"annotations": annotations}

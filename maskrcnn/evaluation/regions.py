"""Regions as run lengths: what an annotation covers, and what counts of a mask where pixels are void."""

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

RLE = dict[str, Any]


def to_rle(annotation: dict[str, Any], size: tuple[int, int]) -> RLE:
    """Compressed run lengths of an annotation's mask, or of its box if it has no mask.

    Args:
        annotation: COCO annotation; its segmentation may be polygons, run lengths, empty or missing.
        size: Height and width of its picture.
    """
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return coco_mask.frPyObjects(np.array([annotation["bbox"]], dtype=np.float64), *size)[0]
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, *size)
    return segmentation


def without_void(results: list[dict[str, Any]], images: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results with void pixels taken out of their masks.

    An annotator can't tell what the pixels of a void region belong to, such as those on the border of an object.

    Args:
        results: COCO results with a compressed segmentation; not changed.
        images: Image entries of the ground truth; "void" may hold the run lengths of such a region.
    """
    kept = {image["id"]: _complement(image["void"]) for image in images if image.get("void")}
    return [
        result | {"segmentation": coco_mask.merge([result["segmentation"], kept[result["image_id"]]], intersect=True)}
        if result["image_id"] in kept
        else result
        for result in results
    ]


def _complement(rle: RLE) -> RLE:
    return coco_mask.encode(np.asfortranarray(1 - coco_mask.decode(rle)))

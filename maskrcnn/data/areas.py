"""Areas of annotations: which of a file's are right, and what the others should be.

COCO sorts objects into small, medium and large by this number, and many exporters get it wrong.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

# An area is that of the outline if it differs by this share at most, and by rounding.
_SAME = 0.01
_ROUNDING = 0.5
# Farther than this share, and a rim of one pixel, is no other way to count but a mistake.
_FAR = 0.25


@dataclass(frozen=True)
class AreaCheck:
    """Areas of A annotations.

    Attributes:
        areas: float64 [A], the right ones.
        corrected: For each kind of mistake, rows of the areas that had it.
    """

    areas: np.ndarray
    corrected: dict[str, np.ndarray]


def check_areas(
    *,
    areas: np.ndarray,
    boxes: np.ndarray,
    crowd: np.ndarray,
    rle_areas: np.ndarray,
    first_ring: np.ndarray,
    first_point: np.ndarray,
    points: np.ndarray,
    sizes: np.ndarray,
) -> AreaCheck:
    """Find areas that are missing or wrong and compute those from the outline, or the box without one.

    A polygon's area is COCO's (the shoelace formula, parts added up), that of run lengths their pixels. A
    crowd's is left alone where there is one: COCO's own are rough, and nothing depends on them.

    Args:
        areas: float64 [A] of the file, NaN where it has none.
        boxes: float64 [A, 4], x y width height.
        crowd: bool [A].
        rle_areas: int64 [A], pixels of run lengths, 0 without.
        first_ring: int64 [A + 1], rings of each annotation.
        first_point: int64 [R + 1], points of each ring.
        points: float64 [P, 2].
        sizes: int64 [A, 2], height and width of the picture of each annotation.
    """
    num_rings = np.diff(first_ring)
    owner = np.repeat(np.arange(len(areas)), num_rings)
    of_rings = np.bincount(owner, _ring_areas(first_point, points), len(areas))
    of_box = boxes[:, 2:].clip(0).prod(axis=1)
    has_outline = (num_rings > 0) | (rle_areas > 0)
    right = np.where(num_rings > 0, of_rings, np.where(rle_areas > 0, rle_areas, of_box))

    with np.errstate(invalid="ignore"):
        missing = ~(areas > 0) & ~((areas == 0) & _same(right, 0))
        other = ~missing & has_outline & ~crowd & ~_same(areas, right)
        far = other & (abs(areas - right) > _rim(boxes, right))
        is_box = other & _same(areas, of_box, share=0.001)

    # Parts that overlap count twice above, and what lies outside of the picture counts: the pixels tell.
    several = num_rings > 1
    for row in np.flatnonzero((missing & several) | (is_box & several) | (far & (num_rings > 0))):
        rings = [points[first_point[r] : first_point[r + 1]].ravel() for r in range(*first_ring[row : row + 2])]
        pixels = float(coco_mask.area(coco_mask.merge(coco_mask.frPyObjects(rings, *map(int, sizes[row])))))
        if several[row]:
            right[row] = pixels
        far[row] &= abs(areas[row] - pixels) > _rim(boxes[row], pixels)
        is_box[row] &= not _same(areas[row], pixels)
    reasons = {
        "have no area": missing,
        "have the area of their box": is_box,
        "have an area far from that of their outline": far & ~is_box,
    }
    return AreaCheck(
        areas=np.where(missing | is_box | far, right, areas),
        corrected={reason: np.flatnonzero(rows) for reason, rows in reasons.items() if rows.any()},
    )


def _ring_areas(first_point: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Area float64 [R] of each polygon, by the shoelace formula."""
    if len(first_point) == 1:
        return np.zeros(0)
    x, y = points[:, 0], points[:, 1]
    first, last = first_point[:-1], first_point[1:] - 1
    terms = np.empty(len(points))
    np.multiply(x[:-1], y[1:], out=terms[:-1])
    terms[:-1] -= x[1:] * y[:-1]
    terms[last] = x[last] * y[first] - x[first] * y[last]
    return abs(np.add.reduceat(terms, first)) / 2


def _same(area: np.ndarray, right: Any, share: float = _SAME) -> np.ndarray:
    return abs(area - right) <= share * abs(right) + _ROUNDING


def _rim(boxes: np.ndarray, area: np.ndarray | float) -> np.ndarray:
    return _FAR * area + 2 * boxes[..., 2:].sum(axis=-1)

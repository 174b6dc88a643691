"""Masks as polygons, for annotation tools.

Polygons are float64 [P, 2], x and y in pixels; pixel (0, 0) covers 0..1 in both.
"""

from functools import reduce

import cv2
import numpy as np

from maskrcnn.ops.masks import RLE, crop_rle

_TOLERANCE = 0.5  # px between a polygon and the outline of the mask
_FINENESS = 1000  # of a mask of more pixels along a side, the tolerance is this fraction of it


def mask_to_polygons(rle: RLE) -> list[np.ndarray]:
    """One polygon for each part of a mask; a hole hangs on its part by a slit without width. Largest part first."""
    mask, corner = crop_rle(rle)
    if not mask.size:
        return []
    # A contour runs through the centres of pixels. With each pixel as 2 x 2, halves rounded up are its edges.
    doubled = mask.repeat(2, axis=0).repeat(2, axis=1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    tolerance = max(_TOLERANCE, max(mask.shape) / _FINENESS)
    outlines = [_simplify((contour[:, 0] + 1) // 2, tolerance) for contour in contours]
    parents = hierarchy[0, :, 3]
    parts = []
    for number, parent in enumerate(parents):
        if parent < 0:
            holes = [outlines[hole] for hole in np.flatnonzero(parents == number) if len(outlines[hole]) > 2]
            parts.append(reduce(_join, holes, outlines[number]) + corner)
    return sorted(parts, key=lambda part: -_area(part))


def join_polygons(parts: list[np.ndarray]) -> np.ndarray:
    """All parts as one polygon, joined by lines without width, for formats that know one polygon an instance."""
    return reduce(_join, parts)


def _simplify(corners: np.ndarray, tolerance: float) -> np.ndarray:
    """A closed path of unit steps in fewer points."""
    steps = corners[(corners != np.roll(corners, 1, axis=0)).any(axis=1)]
    middles = (steps + np.roll(steps, -1, axis=0)) / 2  # those of a staircase lie on its slope
    simple = cv2.approxPolyDP(middles.astype(np.float32)[:, None], tolerance, True)[:, 0]
    return (simple if len(simple) > 2 else steps).astype(np.float64)


def _join(path: np.ndarray, other: np.ndarray) -> np.ndarray:
    """A closed path that goes round both, there and back between their nearest points."""
    nearest = ((path[:, None] - other[None]) ** 2).sum(axis=2).argmin()
    here, there = np.unravel_index(nearest, (len(path), len(other)))
    tour = np.roll(other, -there, axis=0)
    return np.concatenate((path[: here + 1], tour, tour[:1], path[here:]))


def _area(path: np.ndarray) -> float:
    x, y = path.T
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2

"""The Sample contract: a picture, and what each instance in it covers.

Coordinates are continuous: pixel (column 0, row 0) covers [0, 1] x [0, 1], so a flip maps x to width - x
and a resize multiplies.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

IDENTITY = np.eye(3)


@dataclass(frozen=True)
class Outline:
    """What an instance covers: the union of polygons, or a bitmap where the annotation is one.

    Attributes:
        polygons: Vertices [V, 2] of each part, x y. Parts unite where they overlap, they never cancel.
        bitmap: uint8 [h, w] of 0 and 1, in place of polygons.
        matrix: 3 x 3, from the coordinates of `bitmap` to those of the picture.
    """

    polygons: tuple[np.ndarray, ...] = ()
    bitmap: np.ndarray | None = None
    matrix: np.ndarray = field(default_factory=lambda: IDENTITY)

    def transform(self, matrix: np.ndarray) -> "Outline":
        """The outline after the picture was mapped by an affine `matrix` [3, 3]."""
        if self.bitmap is not None:
            return replace(self, matrix=matrix @ self.matrix)
        return Outline(tuple(_map_points(matrix, points) for points in self.polygons))

    def box(self, size: tuple[int, int]) -> np.ndarray:
        """The tight box [4] of what lies in a picture of `size` (height, width); no area if nothing does."""
        if self.bitmap is None:
            points = np.concatenate([np.zeros((0, 2)), *(_clip(ring, size) for ring in self.polygons)])
        else:
            points = self._bitmap_extremes
        if not len(points):
            return np.zeros(4, dtype=np.float32)
        low, high = points.min(axis=0), points.max(axis=0)
        limit = np.array([size[1], size[0]])
        return np.concatenate((low.clip(0, limit), high.clip(0, limit))).astype(np.float32)

    def crop(self, box: np.ndarray, side: int) -> np.ndarray:
        """Coverage uint8 [side, side] in 0..255 of the outline, stretched from `box` [4] to a square."""
        scale = side / (box[2:] - box[:2])
        to_crop = np.array([[scale[0], 0, -box[0] * scale[0]], [0, scale[1], -box[1] * scale[1]], [0, 0, 1]])
        if self.bitmap is not None:
            return warp(self.bitmap * np.uint8(255), to_crop @ self.matrix, (side, side), fill=0)
        rings = [_map_points(to_crop, points).ravel() for points in self.polygons]
        return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(rings, side, side))) * np.uint8(255)

    def rle(self, size: tuple[int, int]) -> dict[str, Any]:
        """COCO run lengths of the outline in a picture of `size` (height, width)."""
        if self.bitmap is not None:
            covered = warp(self.bitmap * np.uint8(255), self.matrix, size, fill=0) > 127
            return coco_mask.encode(np.asfortranarray(covered.astype(np.uint8)))
        rings = [points.astype(np.float64).ravel() for points in self.polygons]
        return coco_mask.merge(coco_mask.frPyObjects(rings, *size))

    @cached_property
    def _bitmap_extremes(self) -> np.ndarray:
        """Points [P, 2] in the picture whose hull is the bitmap's hull."""
        assert self.bitmap is not None
        rows = np.flatnonzero(self.bitmap.any(axis=1))
        filled = self.bitmap[rows] > 0
        left = filled.argmax(axis=1)
        right = self.bitmap.shape[1] - filled[:, ::-1].argmax(axis=1)
        x = np.concatenate((left, left, right, right))
        y = np.concatenate((rows, rows + 1, rows, rows + 1))
        return _map_points(self.matrix, np.stack((x, y), axis=1))


@dataclass(frozen=True)
class Sample:
    """A picture with its instances.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        outlines: What each of the N instances covers.
        labels: int64 [N], 1..K.
        image_id: The data set's own id.
    """

    image: np.ndarray
    outlines: list[Outline]
    labels: np.ndarray
    image_id: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.shape[0], self.image.shape[1]


def to_target(sample: Sample, *, mask_size: int, min_side: float = 1.0) -> dict[str, Tensor]:
    """The dict the model trains on: boxes, labels, masks, image_id.

    Instances whose box has a side under `min_side` pixels leave boxes, labels and masks together. Masks are
    uint8 [N, mask_size, mask_size], each cropped to its own box.
    """
    boxes = np.array([outline.box(sample.size) for outline in sample.outlines], dtype=np.float32).reshape(-1, 4)
    keep = np.flatnonzero((boxes[:, 2:] - boxes[:, :2] >= min_side).all(axis=1))
    masks = np.zeros((len(keep), mask_size, mask_size), dtype=np.uint8)
    for row, i in enumerate(keep):
        masks[row] = sample.outlines[i].crop(boxes[i].astype(np.float64), mask_size)
    return {
        "boxes": torch.from_numpy(boxes[keep]),
        "labels": torch.from_numpy(sample.labels[keep]),
        "masks": torch.from_numpy(masks),
        "image_id": torch.tensor(sample.image_id),
    }


def to_tensor(image: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] -> uint8 [3, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def warp(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], *, fill: int | None = None) -> np.ndarray:
    """Map a picture by an affine `matrix` [3, 3] onto a canvas of `size` (height, width), bilinearly.

    `fill` is the level outside the picture; without one its border is continued.
    """
    # OpenCV counts from pixel centres, `matrix` from pixel corners.
    to_corner, to_centre = np.eye(3), np.eye(3)
    to_corner[:2, 2], to_centre[:2, 2] = 0.5, -0.5
    border = cv2.BORDER_REPLICATE if fill is None else cv2.BORDER_CONSTANT
    return cv2.warpAffine(
        image,
        (to_centre @ matrix @ to_corner)[:2],
        (size[1], size[0]),
        flags=cv2.INTER_LINEAR,
        borderMode=border,
        borderValue=(fill or 0,) * 3,
    )


def _clip(ring: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Vertices [V, 2] of the part of a polygon in a picture of `size` (Sutherland and Hodgman 1974)."""
    for axis, sign, limit in ((0, -1, 0), (1, -1, 0), (0, 1, size[1]), (1, 1, size[0])):
        beyond = sign * (ring[:, axis] - limit)
        if not (beyond > 0).any():
            continue
        beyond_next = np.roll(beyond, -1)
        crosses = (beyond > 0) != (beyond_next > 0)
        share = beyond / np.where(crosses, beyond - beyond_next, 1)
        crossings = ring + share[:, None] * (np.roll(ring, -1, axis=0) - ring)
        ring = np.stack((ring, crossings), axis=1)[np.stack((beyond <= 0, crosses), axis=1)]
    return ring


def _map_points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:2, :2].T + matrix[:2, 2]

"""What an instance covers, through every change of the picture.

Coordinates are continuous: pixel (column 0, row 0) covers [0, 1] x [0, 1], so a flip maps x to width - x
and a resize multiplies. A matrix is 3 x 3 and maps column vectors (x, y, 1); it may be a perspective.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

IDENTITY = np.eye(3)
# OpenCV counts from pixel centres, our matrices from pixel corners.
_TO_CORNER = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
_TO_CENTRE = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])

Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Outline:
    """The union of polygons, or a bitmap where the annotation is one or something hides a part of it.

    Attributes:
        polygons: Vertices [V, 2] of each part, x y. Parts unite where they overlap, they never cancel.
        bitmap: uint8 [h, w] of 0 and 1, in place of polygons.
        matrix: 3 x 3, from the coordinates of `bitmap` to those of the picture.
        box_only: The annotation has no outline, this is its box; masks are not learnt from it.
    """

    polygons: tuple[np.ndarray, ...] = ()
    bitmap: np.ndarray | None = None
    matrix: np.ndarray = field(default_factory=lambda: IDENTITY)
    box_only: bool = False

    @staticmethod
    def from_rle(rle: dict[str, Any]) -> "Outline":
        """The outline of compressed COCO run lengths; only the part of the picture inside its box is kept."""
        x, y, width, height = (int(side) for side in coco_mask.toBbox(rle))
        if not width * height:
            return Outline()
        bitmap = coco_mask.decode(rle)[y : y + height, x : x + width]
        return Outline(bitmap=np.ascontiguousarray(bitmap), matrix=shift(x, y))

    @cached_property
    def box(self) -> np.ndarray:
        """The tight box x1 y1 x2 y2, float32 [4]; without area if nothing is covered."""
        points = self._extremes
        if not len(points):
            return np.zeros(4, dtype=np.float32)
        return np.concatenate((points.min(axis=0), points.max(axis=0))).astype(np.float32)

    @property
    def area(self) -> float:
        """Square pixels covered; those of a bitmap in perspective are taken as at its centre."""
        if self.bitmap is not None:
            height, width = self.bitmap.shape
            return float(self.bitmap.sum()) * magnification(self.matrix, (width / 2, height / 2))
        if len(self.polygons) > 1:  # they may overlap
            return float(self.raster(self.region).sum())
        return sum(_shoelace(points) for points in self.polygons)

    @property
    def region(self) -> np.ndarray:
        """The box widened to whole pixels, int [4]."""
        return np.concatenate((np.floor(self.box[:2]), np.ceil(self.box[2:]))).astype(int)

    def transform(self, matrix: np.ndarray) -> "Outline":
        """The outline after the picture was mapped by `matrix`."""
        if self.bitmap is not None:
            return replace(self, matrix=matrix @ self.matrix)
        return replace(self, polygons=tuple(map_points(matrix, points) for points in self.polygons))

    def clip(self, window: Box) -> "Outline":
        """The part inside `window`, x1 y1 x2 y2 in whole pixels."""
        low, high = np.array(window[:2]), np.array(window[2:])
        box = self.box
        if (box[:2] >= low).all() and (box[2:] <= high).all():
            return self
        if (box[:2] >= high).any() or (box[2:] <= low).any():
            return Outline(box_only=self.box_only)
        if self.bitmap is None:
            rings = [_clip_ring(points, low, high) for points in self.polygons]
            return replace(self, polygons=tuple(points for points in rings if len(points)))
        region = np.concatenate((np.maximum(self.region[:2], low), np.minimum(self.region[2:], high))).astype(int)
        return replace(self, **_trimmed(self.raster(region), region))

    def cut(self, hidden: np.ndarray) -> "Outline":
        """The part that `hidden`, bool [H, W] over the picture, leaves uncovered."""
        height, width = hidden.shape
        x1, y1, x2, y2 = region = self.region.clip(0, (width, height, width, height))
        over = hidden[y1:y2, x1:x2]
        if not over.any():
            return self
        covered = self.raster(region)
        if not (covered & over).any():
            return self
        return replace(self, polygons=(), **_trimmed(covered & ~over, region))

    def crop(self, box: np.ndarray, side: int) -> np.ndarray:
        """Coverage uint8 [side, side] in 0..255, stretched from `box` [4] to a square."""
        scale = side / (box[2:] - box[:2])
        return self._render(np.diag([*scale, 1.0]) @ shift(*-box[:2]), (side, side))

    def raster(self, region: np.ndarray) -> np.ndarray:
        """Pixels covered, bool [y2 - y1, x2 - x1], in a `region` x1 y1 x2 y2 of whole pixels."""
        x1, y1, x2, y2 = region
        if x2 <= x1 or y2 <= y1:
            return np.zeros((max(y2 - y1, 0), max(x2 - x1, 0)), dtype=bool)
        return self._render(shift(-x1, -y1), (y2 - y1, x2 - x1)) > 127

    def rle(self, size: tuple[int, int]) -> dict[str, Any]:
        """COCO run lengths of the outline in a picture of `size` (height, width)."""
        if self.bitmap is None:
            return _rasterise(self.polygons, size)
        covered = self.raster(np.array([0, 0, size[1], size[0]]))
        return coco_mask.encode(np.asfortranarray(covered.astype(np.uint8)))

    def _render(self, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Coverage uint8 [H, W] in 0..255 after a mapping by `matrix`."""
        if self.bitmap is not None:
            return warp(self.bitmap * np.uint8(255), matrix @ self.matrix, size)
        return coco_mask.decode(_rasterise([map_points(matrix, ring) for ring in self.polygons], size)) * np.uint8(255)

    @cached_property
    def _extremes(self) -> np.ndarray:
        """Points [P, 2] whose hull is that of the outline."""
        if self.bitmap is None:
            return np.concatenate(self.polygons) if self.polygons else np.zeros((0, 2))
        # The middles of the outer edges: the corners of a turned pixel lie beyond what is drawn of it.
        (rows, left, right), (columns, top, bottom) = _extents(self.bitmap), _extents(self.bitmap.T)
        x = np.concatenate((left, right, columns + 0.5, columns + 0.5))
        y = np.concatenate((rows + 0.5, rows + 0.5, top, bottom))
        return map_points(self.matrix, np.stack((x, y), axis=1))


def shift(x: float, y: float) -> np.ndarray:
    """The matrix of a translation."""
    return np.array([[1.0, 0, x], [0, 1, y], [0, 0, 1]])


def map_points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points [P, 2] mapped by `matrix`."""
    mapped = points @ matrix[:2, :2].T + matrix[:2, 2]
    if is_affine(matrix):
        return mapped
    return mapped / (points @ matrix[2, :2] + matrix[2, 2])[:, None]


def is_affine(matrix: np.ndarray) -> bool:
    """Whether `matrix` is no perspective."""
    return matrix[2, 0] == 0 and matrix[2, 1] == 0 and matrix[2, 2] == 1


def magnification(matrix: np.ndarray, point: tuple[float, float]) -> float:
    """By which factor `matrix` changes the area around a point x, y."""
    depth = matrix[2] @ (*point, 1)
    return float(abs(np.linalg.det(matrix) / depth**3))


def warp(
    image: np.ndarray,
    matrix: np.ndarray,
    size: tuple[int, int],
    *,
    fill: tuple[int, ...] | None = (0, 0, 0),
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Map a picture uint8 [h, w] or [h, w, 3] by `matrix` onto a canvas of `size` (height, width), bilinearly.

    `fill` is the level outside of the picture; with None its border is continued.
    """
    centred = _TO_CENTRE @ matrix @ _TO_CORNER
    options: dict[str, Any] = {
        "dsize": (int(size[1]), int(size[0])),
        "dst": out,
        "flags": cv2.INTER_LINEAR,
        "borderMode": cv2.BORDER_REPLICATE if fill is None else cv2.BORDER_CONSTANT,
        "borderValue": fill or 0,
    }
    if is_affine(matrix):
        return cv2.warpAffine(image, centred[:2], **options)
    return cv2.warpPerspective(image, centred, **options)


def _rasterise(polygons: Any, size: tuple[int, int]) -> dict[str, Any]:
    height, width = int(size[0]), int(size[1])
    rings = [np.asarray(points, np.float64).ravel() for points in polygons]
    if not rings:
        return coco_mask.encode(np.zeros((height, width), np.uint8, order="F"))
    return coco_mask.merge(coco_mask.frPyObjects(rings, height, width))


def _trimmed(covered: np.ndarray, region: np.ndarray) -> dict[str, Any]:
    """`bitmap` and `matrix` of an outline that covers `covered` bool [h, w] at the corner of `region`."""
    rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
    if not len(rows):
        return {"bitmap": None, "matrix": IDENTITY}
    inner = covered[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return {"bitmap": inner.astype(np.uint8), "matrix": shift(region[0] + columns[0], region[1] + rows[0])}


def _extents(bitmap: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows that are not empty, and where each starts and ends."""
    rows = np.flatnonzero(bitmap.any(axis=1))
    filled = bitmap[rows] > 0
    return rows, filled.argmax(axis=1), bitmap.shape[1] - filled[:, ::-1].argmax(axis=1)


def _shoelace(ring: np.ndarray) -> float:
    """Area of a polygon [V, 2]."""
    x, y = ring[:, 0], ring[:, 1]
    open_sum = x[:-1] @ y[1:] - y[:-1] @ x[1:]
    return abs(float(open_sum + x[-1] * y[0] - y[-1] * x[0])) / 2


def _clip_ring(ring: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Vertices [V, 2] of the part of a polygon between two corners; none if nothing is left."""
    clipped, crossings = _half_planes(ring, low, high)
    if not crossings or not len(clipped):
        return clipped
    # A polygon that leaves and comes back, or only touches, is left with edges along the border that would
    # stretch its box. Its pixels tell how far it really reaches.
    x, y, width, height = coco_mask.toBbox(_rasterise([clipped - low], tuple(np.ceil(high - low)[::-1])))
    if not width * height:
        return clipped[:0]
    corner = low + np.array((x, y))
    tight_low, tight_high = corner - 0.5, corner + np.array((width, height)) + 0.5
    if (clipped.min(axis=0) >= tight_low).all() and (clipped.max(axis=0) <= tight_high).all():
        return clipped
    return _half_planes(clipped, np.maximum(low, tight_low), np.minimum(high, tight_high))[0]


def _half_planes(ring: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, int]:
    """The clipped vertices, and how often the polygon crossed a border (Sutherland and Hodgman 1974)."""
    crossings = 0
    for axis, sign, limit in ((0, -1, low[0]), (1, -1, low[1]), (0, 1, high[0]), (1, 1, high[1])):
        beyond = sign * (ring[:, axis] - limit)
        if not (beyond > 0).any():
            continue
        following = np.arange(1 - len(ring), 1)  # of vertex i is vertex i + 1, of the last the first
        beyond_next = beyond[following]
        crosses = (beyond > 0) != (beyond_next > 0)
        crossings += int(crosses.sum())
        share = beyond / np.where(crosses, beyond - beyond_next, 1)
        points = ring + share[:, None] * (ring[following] - ring)
        points[:, axis] = limit
        ring = np.stack((ring, points), axis=1)[np.stack((beyond <= 0, crosses), axis=1)]
    return ring, crossings

"""One picture on a canvas: how much of it has to be decoded, where it goes, and the drawing itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from maskrcnn.data.geometry import Size
from maskrcnn.data.mixing import Window
from maskrcnn.data.outline import is_affine, magnification, map_points, shift, warp

FILL = (124, 116, 104)  # the mean of ImageNet: about 0 once normalised


@dataclass(frozen=True)
class Patch:
    """Where a picture goes.

    Attributes:
        matrix: 3 x 3, from the whole picture to the canvas.
        window: The part of the canvas that it covers, x1 y1 x2 y2 in whole pixels.
        shrink: 1, 2, 4 or 8, how much smaller it may be decoded.
        source: The part of the decoded picture that is needed, x1 y1 x2 y2.
        upright: Its sides are parallel to those of the canvas; it may be mirrored left and right.
    """

    matrix: np.ndarray
    window: Window
    shrink: int
    source: Window
    upright: bool

    def meets(self, boxes: np.ndarray) -> np.ndarray:
        """Which of the boxes [N, 4] in the whole picture may have a part in the window, bool [N]."""
        corners = map_points(self.matrix, boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2)).reshape(-1, 4, 2)
        low, high = corners.min(axis=1), corners.max(axis=1)
        return ((low < self.window[2:]) & (high > self.window[:2])).all(axis=1)

    def needed(self, image: np.ndarray) -> np.ndarray:
        """The part of the decoded picture [h, w, 3] that `draw` takes; a view."""
        x1, y1, x2, y2 = self.source
        return np.ascontiguousarray(image[y1:y2, x1:x2])

    def draw(self, canvas: np.ndarray, image: np.ndarray) -> None:
        """Resize or warp what is `needed` into the window of a canvas [H, W, 3]."""
        x1, y1, x2, y2 = self.window
        target = canvas[y1:y2, x1:x2]
        if self.upright:
            image = cv2.flip(image, 1) if self.matrix[0, 0] < 0 else image
            cv2.resize(image, (x2 - x1, y2 - y1), dst=target, interpolation=cv2.INTER_LINEAR)
        else:
            scale = np.diag([self.shrink, self.shrink, 1.0])
            to_target = shift(-x1, -y1) @ self.matrix @ scale @ shift(*self.source[:2])
            warp(image, to_target, target.shape[:2], fill=FILL, out=target)


def new_canvas(size: Size, patches: Sequence[Patch]) -> np.ndarray:
    """A canvas uint8 [H, W, 3] for disjoint patches, filled unless they cover it."""
    canvas = np.empty((*size, 3), dtype=np.uint8)
    covered = sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (patch.window for patch in patches if patch.upright))
    if covered < size[0] * size[1]:
        cv2.rectangle(canvas, (0, 0), (size[1], size[0]), FILL, thickness=-1)
    return canvas


def fit(matrix: np.ndarray, size: Size, window: Window) -> Patch | None:
    """How to draw a picture of `size` (height, width) by `matrix` into a window of the canvas; None if it misses it.

    An upright picture is resized from whole pixels to whole pixels, which is several times faster than a warp;
    for this its borders move by half a pixel of the canvas, or half a decoded pixel where it is cut.
    """
    height, width = size
    shrink = _shrink(matrix, size)
    decoded = (-(-width // shrink), -(-height // shrink))
    upright = is_affine(matrix) and matrix[0, 1] == 0 and matrix[1, 0] == 0 and matrix[1, 1] > 0
    corners = map_points(matrix, np.array([(0, 0), (width, 0), (width, height), (0, height)], dtype=float))
    margin = 0 if upright else 1  # the border of a turned picture is blended with what is around it
    low = np.maximum(np.round(corners.min(axis=0)).astype(int) - margin, window[:2])
    high = np.minimum(np.round(corners.max(axis=0)).astype(int) + margin, window[2:])
    if (low >= high).any():
        return None
    covered = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
    if not upright:
        return Patch(matrix, covered, shrink, (0, 0, *decoded), upright=False)
    snapped = np.eye(3)
    source = np.zeros((2, 2), dtype=int)
    for axis in (0, 1):
        ends = (np.array((low[axis], high[axis])) - matrix[axis, 2]) / matrix[axis, axis]
        first, last = sorted(np.round(ends / shrink).astype(int).clip(0, decoded[axis]).tolist())
        first = min(first, decoded[axis] - 1)
        last = max(last, first + 1)
        source[:, axis] = first, last
        to = (low[axis], high[axis]) if matrix[axis, axis] > 0 else (high[axis], low[axis])
        snapped[axis, axis] = (to[1] - to[0]) / ((last - first) * shrink)
        snapped[axis, 2] = to[0] - snapped[axis, axis] * first * shrink
    x1, y1, x2, y2 = source.ravel().tolist()
    return Patch(snapped, covered, shrink, (x1, y1, x2, y2), upright=True)


def _shrink(matrix: np.ndarray, size: Size) -> int:
    """The strongest reduction (1, 2, 4 or 8) that still leaves a pixel for each pixel of the canvas."""
    height, width = size
    corners = ((0, 0), (width, 0), (0, height), (width, height))  # a perspective has its extremes there
    scale = max(magnification(matrix, corner) for corner in corners) ** 0.5
    return next(shrink for shrink in (8, 4, 2, 1) if scale * shrink <= 1 + 1e-6 or shrink == 1)

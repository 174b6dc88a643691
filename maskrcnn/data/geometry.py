"""Where the pixels of a training picture go: each step yields one 3 x 3 matrix and the size of its canvas.

A step is called with the (height, width) that the steps before it made, and with a generator. Its probability
`p` stands first; a step with p = 0 draws nothing.
"""

import math
from collections.abc import Sequence

import numpy as np

from maskrcnn.data.outline import IDENTITY, shift
from maskrcnn.ops.image_batch import resized_shape

Size = tuple[int, int]  # height, width
Placement = tuple[np.ndarray, Size]  # a matrix, and the canvas it maps to


def check_probability(p: float) -> None:
    """Raises ValueError unless `p` is a probability."""
    if not 0 <= p <= 1:
        raise ValueError(f"p must be between 0 and 1, got {p}")


def check_range(name: str, limits: Sequence[float], *, least: float = 0.0) -> None:
    """Raises ValueError unless `limits` are two numbers above `least`, the smaller first."""
    if len(limits) != 2 or not least < limits[0] <= limits[1] < math.inf:
        raise ValueError(f"{name} must be two numbers above {least:g}, the smaller first, got {list(limits)}")


class HorizontalFlip:
    """Mirrors left and right.

    Args:
        p: Probability.
    """

    def __init__(self, *, p: float = 0.0) -> None:
        check_probability(p)
        self.p = p

    def __call__(self, size: Size, rng: np.random.Generator) -> Placement:
        """The mirroring of a picture of `size`, or the identity."""
        if not self.p or rng.random() >= self.p:
            return IDENTITY, size
        return np.array([[-1.0, 0, size[1]], [0, 1, 0], [0, 0, 1]]), size


class RandomCrop:
    """Cuts out a part.

    Args:
        p: Probability.
        min_share: Each side of the part is at least this share of the picture's.
    """

    def __init__(self, *, p: float = 0.0, min_share: float = 0.6) -> None:
        check_probability(p)
        if not 0 < min_share <= 1:
            raise ValueError(f"min_share must be above 0 and at most 1, got {min_share}")
        self.p = p
        self.min_share = min_share

    def __call__(self, size: Size, rng: np.random.Generator) -> Placement:
        """Moves the part to the corner of a canvas of its size."""
        if not self.p or rng.random() >= self.p:
            return IDENTITY, size
        height, width = (max(round(side * rng.uniform(self.min_share, 1)), 1) for side in size)
        top, left = rng.integers(size[0] - height + 1), rng.integers(size[1] - width + 1)
        return shift(-float(left), -float(top)), (height, width)


class MultiScale:
    """Resizes to a random one of several sizes, the aspect ratio kept.

    Args:
        min_sizes: Short sides in pixels, one of which is drawn.
        max_size: The long side never passes this.
    """

    def __init__(self, *, min_sizes: Sequence[int], max_size: int) -> None:
        self.min_sizes = list(min_sizes)
        self.max_size = max_size

    def __call__(self, size: Size, rng: np.random.Generator) -> Placement:
        """Fits a picture of `size`."""
        resized = resized_shape(size, min_size=int(rng.choice(self.min_sizes)), max_size=self.max_size)
        return np.diag([resized[1] / size[1], resized[0] / size[0], 1.0]), resized


class LargeScaleJitter:
    """Resizes by a factor from a wide range onto a square canvas (Ghiasi et al. 2021, section 3).

    Factor 1 fits the picture to the canvas; a larger one is cropped at random, below a smaller one the rest
    of the canvas is filled.

    Args:
        p: Probability; otherwise the picture is resized to one of `data.min_sizes`. The caller draws.
        scale: Smallest and largest factor.
    """

    def __init__(self, *, p: float = 0.0, scale: Sequence[float] = (0.1, 2.0)) -> None:
        check_probability(p)
        check_range("scale", scale)
        self.p = p
        self.scale = (scale[0], scale[1])

    def __call__(self, size: Size, rng: np.random.Generator, *, side: int) -> Placement:
        """Places a picture of `size` on a canvas of `side` x `side`."""
        factor = rng.uniform(*self.scale) * side / max(size)
        offset = [-rng.random() * max(length * factor - side, 0) for length in size]
        return shift(offset[1], offset[0]) @ np.diag([factor, factor, 1.0]), (side, side)


class Perspective:
    """Rotates, scales, shears, moves and tilts about the centre; the canvas keeps its size.

    Args:
        p: Probability.
        degrees: Largest rotation either way.
        scale: Smallest and largest factor.
        shear: Largest shear angle either way, in degrees, of each axis.
        translate: Largest move either way, as a share of each side.
        perspective: Largest tilt either way: by which share the scale changes from the centre to a border.
    """

    def __init__(
        self,
        *,
        p: float = 0.0,
        degrees: float = 10.0,
        scale: Sequence[float] = (1.0, 1.0),
        shear: float = 0.0,
        translate: float = 0.0,
        perspective: float = 0.0,
    ) -> None:
        check_probability(p)
        check_range("scale", scale)
        for name, value, most in (
            ("degrees", degrees, 180),
            ("shear", shear, 60),
            ("translate", translate, 1),
            ("perspective", perspective, 0.4),
        ):
            if not 0 <= value <= most:
                raise ValueError(f"{name} must be between 0 and {most}, got {value}")
        self.p = p
        self.degrees = degrees
        self.scale = (scale[0], scale[1])
        self.shear = shear
        self.translate = translate
        self.perspective = perspective

    def __call__(self, size: Size, rng: np.random.Generator) -> Placement:
        """Changes a picture of `size` in its own frame."""
        if not self.p or rng.random() >= self.p:
            return IDENTITY, size
        height, width = size
        angle = np.radians(rng.uniform(-self.degrees, self.degrees))
        factor = rng.uniform(*self.scale)
        shear_x, shear_y = np.tan(np.radians(rng.uniform(-self.shear, self.shear, 2)))
        move_x, move_y = rng.uniform(-self.translate, self.translate, 2) * (width, height)
        tilt_x, tilt_y = rng.uniform(-self.perspective, self.perspective, 2) / (width / 2, height / 2)
        cos, sin = factor * np.cos(angle), factor * np.sin(angle)
        tilted = np.array([[1, 0, 0], [0, 1, 0], [tilt_x, tilt_y, 1]])
        sheared = np.array([[1, shear_x, 0], [shear_y, 1, 0], [0, 0, 1]])
        turned = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        centre = shift(width / 2, height / 2)
        return shift(move_x, move_y) @ centre @ sheared @ turned @ tilted @ shift(-width / 2, -height / 2), size


def chain(steps: Sequence[Placement]) -> Placement:
    """One after the other."""
    matrix = IDENTITY
    for step, _ in steps:
        matrix = step @ matrix
    return matrix, steps[-1][1]

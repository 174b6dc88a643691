"""Geometry of a training picture: each step yields one 3 x 3 matrix, and the picture is warped once."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from maskrcnn.data.sample import IDENTITY, Sample, warp
from maskrcnn.ops.image_batch import resized_shape


class PixelTransform(Protocol):
    """Changes pixels and leaves their places alone."""

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """uint8 [H, W, 3] -> uint8 [H, W, 3]."""


class HorizontalFlip:
    """Mirrors left and right with probability `p`."""

    def __init__(self, *, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"p must be between 0 and 1, got {p}")
        self.p = p

    def matrix(self, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """The mirroring of a picture of `size` (height, width), or the identity."""
        if rng.random() >= self.p:
            return IDENTITY
        return np.array([[-1.0, 0, size[1]], [0, 1, 0], [0, 0, 1]])


class Augment:
    """What is done to a training picture besides resizing.

    Args:
        flip: Mirroring, or null.
        color: Colour changes, or null.
    """

    def __init__(self, *, flip: HorizontalFlip | None = None, color: PixelTransform | None = None) -> None:
        self.flip = flip
        self.color = color


class TrainTransform:
    """Resize to a random one of several sizes, and augment.

    Args:
        min_sizes: Short sides in pixels, one of which is drawn.
        max_size: The long side never passes this.
        augment: The rest.
    """

    def __init__(self, *, min_sizes: Sequence[int], max_size: int, augment: Augment) -> None:
        self.min_sizes = list(min_sizes)
        self.max_size = max_size
        self.augment = augment

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """A changed copy of `sample`; every draw comes from `rng`."""
        height, width = sample.size
        size = resized_shape((height, width), min_size=int(rng.choice(self.min_sizes)), max_size=self.max_size)
        matrix = np.diag([size[1] / width, size[0] / height, 1.0])
        if self.augment.flip is not None:
            matrix = self.augment.flip.matrix(size, rng) @ matrix
        image = sample.image if np.array_equal(matrix, IDENTITY) else warp(sample.image, matrix, size)
        if self.augment.color is not None:
            image = self.augment.color(image, rng)
        return replace(sample, image=image, outlines=[outline.transform(matrix) for outline in sample.outlines])

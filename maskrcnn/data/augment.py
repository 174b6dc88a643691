"""From data set and index to a training sample: place, draw, mix.

Every step is a node of `conf/augment`. Geometry comes first and knows only sizes, so that a picture is decoded
no larger than it is needed, and warped once, straight onto its canvas.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from maskrcnn.data.geometry import (
    HorizontalFlip,
    LargeScaleJitter,
    MultiScale,
    Perspective,
    Placement,
    RandomCrop,
    Size,
    chain,
)
from maskrcnn.data.mixing import CopyPaste, MixUp, Mosaic, Window
from maskrcnn.data.outline import Outline
from maskrcnn.data.patch import FILL, Patch, fit, new_canvas
from maskrcnn.data.pixels import Blur, ColorJitter, Noise
from maskrcnn.data.sample import Sample


class Source(Protocol):
    """Pictures with instances, whose pixels are read last."""

    def __len__(self) -> int: ...

    def size(self, index: int) -> Size:
        """(height, width) of the whole picture."""

    def instances(self, index: int) -> tuple[list[Outline], np.ndarray]:
        """Outlines and labels, int64 [N]."""

    def image_id(self, index: int) -> int:
        """The data set's own id."""

    def read(self, index: int, *, shrink: int = 1) -> np.ndarray:
        """uint8 [ceil(H / shrink), ceil(W / shrink), 3]; shrink is 1, 2, 4 or 8."""


class Augment:
    """What is done to a training picture besides resizing; a step with p = 0 is off.

    Args:
        mosaic: Four pictures in one; takes the place of jitter, crop, resizing and perspective.
        jitter: Large-scale jitter onto a square canvas; takes the place of crop and resizing.
        crop: Cuts out a part.
        perspective: Rotates, scales, shears, moves, tilts.
        flip: Mirrors.
        color: Of each picture, before it is placed.
        mixup: Blends two results.
        copy_paste: Pastes instances of a second result.
        blur, noise: Of the final picture.
        min_visibility: An instance of whose area less than this share is left is dropped.
        min_side: So is one whose box has a side below this, in pixels.
        max_aspect: So is one whose box has one side more than this many times the other; null for no limit.
        close_mixing_epochs: The last so many epochs do without mosaic, mixup and copy-paste.
    """

    def __init__(
        self,
        *,
        mosaic: Mosaic | None = None,
        jitter: LargeScaleJitter | None = None,
        crop: RandomCrop | None = None,
        perspective: Perspective | None = None,
        flip: HorizontalFlip | None = None,
        color: ColorJitter | None = None,
        mixup: MixUp | None = None,
        copy_paste: CopyPaste | None = None,
        blur: Blur | None = None,
        noise: Noise | None = None,
        min_visibility: float = 0.0,
        min_side: float = 1.0,
        max_aspect: float | None = None,
        close_mixing_epochs: int = 0,
    ) -> None:
        if not 0 <= min_visibility < 1:
            raise ValueError(f"min_visibility must be at least 0 and below 1, got {min_visibility}")
        if not 0 < min_side < math.inf:
            raise ValueError(f"min_side must be above 0, got {min_side}")
        if max_aspect is not None and not max_aspect >= 1:
            raise ValueError(f"max_aspect must be at least 1 or null, got {max_aspect}")
        if close_mixing_epochs < 0:
            raise ValueError(f"close_mixing_epochs must be at least 0, got {close_mixing_epochs}")
        self.mosaic = mosaic or Mosaic()
        self.jitter = jitter or LargeScaleJitter()
        self.crop = crop or RandomCrop()
        self.perspective = perspective or Perspective()
        self.flip = flip or HorizontalFlip()
        self.color = color or ColorJitter()
        self.mixup = mixup or MixUp()
        self.copy_paste = copy_paste or CopyPaste()
        self.blur = blur or Blur()
        self.noise = noise or Noise()
        self.min_visibility = min_visibility
        self.min_side = min_side
        self.max_aspect = max_aspect
        self.close_mixing_epochs = close_mixing_epochs


class TrainTransform:
    """Makes training samples.

    Args:
        min_sizes: Short sides in pixels, one of which is drawn.
        max_size: The long side never passes this; also the side of the canvas of mosaic and large-scale jitter.
        augment: The rest.
    """

    def __init__(self, *, min_sizes: Sequence[int], max_size: int, augment: Augment) -> None:
        self.multi_scale = MultiScale(min_sizes=min_sizes, max_size=max_size)
        self.side = max_size
        self.augment = augment

    def __call__(self, source: Source, index: int, rng: np.random.Generator, *, mixing: bool = True) -> Sample:
        """Sample `index`; every draw comes from `rng`. Without `mixing` no other picture takes part."""
        augment = self.augment
        sample = self._compose(source, index, rng, mixing)
        if mixing and _happens(augment.copy_paste.p, rng):
            other = self._compose(source, _partner(source, rng), rng, mixing)
            sample = augment.copy_paste(sample, other, rng, remains=self._remains)
        if mixing and _happens(augment.mixup.p, rng):
            other = self._compose(source, _partner(source, rng), rng, mixing)
            sample = augment.mixup(sample, other, rng, fill=FILL)
        return replace(sample, image=augment.noise(augment.blur(sample.image, rng), rng))

    def _compose(self, source: Source, index: int, rng: np.random.Generator, mixing: bool) -> Sample:
        """One picture, or the four of a mosaic."""
        if mixing and _happens(self.augment.mosaic.p, rng):
            indices = [index, *(_partner(source, rng) for _ in range(3))]
            size = (self.side, self.side)
            layout = self.augment.mosaic.layout([source.size(i) for i in indices], rng, side=self.side)
        else:
            indices = [index]
            matrix, size = self._place(source.size(index), rng)
            layout = [(matrix, (0, 0, size[1], size[0]))]
        flip, _ = self.augment.flip(size, rng)
        fits = [
            (i, fit(flip @ matrix, source.size(i), _mirrored(window, flip)))
            for i, (matrix, window) in zip(indices, layout, strict=True)
        ]
        patches = [(i, patch) for i, patch in fits if patch is not None]
        canvas = new_canvas(size, [patch for _, patch in patches])
        outlines: list[Outline] = []
        labels = [np.zeros(0, dtype=np.int64)]
        for i, patch in patches:
            left, kept = self._instances(source, i, patch)
            outlines += left
            labels.append(kept)
            image = source.read(i, shrink=patch.shrink)
            patch.draw(canvas, self.augment.color(patch.needed(image), rng))
        partners = tuple(source.image_id(i) for i, _ in patches if i != index)
        return Sample(canvas, outlines, np.concatenate(labels), source.image_id(index), partners)

    def _place(self, size: Size, rng: np.random.Generator) -> Placement:
        """Where a single picture of `size` goes."""
        augment = self.augment
        # Tilted first: in a frame that was cut already, parts of the picture could lie behind the horizon.
        steps = [augment.perspective(size, rng)]
        if _happens(augment.jitter.p, rng):
            steps.append(augment.jitter(size, rng, side=self.side))
        else:
            steps.append(augment.crop(size, rng))
            steps.append(self.multi_scale(steps[-1][1], rng))
        return chain(steps)

    def _instances(self, source: Source, index: int, patch: Patch) -> tuple[list[Outline], np.ndarray]:
        """What is left of the instances inside the patch, and their labels."""
        outlines, labels = source.instances(index)
        kept, left = [], []
        for i in np.flatnonzero(patch.meets(np.array([outline.box for outline in outlines]).reshape(-1, 4))):
            moved = outlines[i].transform(patch.matrix)
            clipped = moved.clip(patch.window)
            if self._remains(moved, clipped):
                kept.append(i)
                left.append(clipped)
        return left, labels[kept]

    def _remains(self, whole: Outline, left: Outline) -> bool:
        width, height = (left.box[2:] - left.box[:2]).tolist()
        if min(width, height) < self.augment.min_side:
            return False
        if self.augment.max_aspect is not None and max(width, height) > self.augment.max_aspect * min(width, height):
            return False
        share = self.augment.min_visibility
        return not share or left is whole or left.area >= share * whole.area


def _happens(p: float, rng: np.random.Generator) -> bool:
    return p > 0 and rng.random() < p


def _partner(source: Source, rng: np.random.Generator) -> int:
    return int(rng.integers(len(source)))


def _mirrored(window: Window, flip: np.ndarray) -> Window:
    if flip[0, 0] > 0:
        return window
    width = int(flip[0, 2])
    return width - window[2], window[1], width - window[0], window[3]

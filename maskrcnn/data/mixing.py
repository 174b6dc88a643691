"""Several pictures in one: mosaic, mixup, copy-paste."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import cv2
import numpy as np

from maskrcnn.data.geometry import Size, check_probability, check_range
from maskrcnn.data.outline import Outline, shift
from maskrcnn.data.sample import Sample

Window = tuple[int, int, int, int]  # x1 y1 x2 y2 in whole pixels
Remains = Callable[[Outline, Outline], bool]  # of a whole outline, is what is left enough?


class Mosaic:
    """Four pictures around a common corner (Bochkovskiy et al. 2020, section 3.3).

    They meet at a random point of a canvas of twice the side, each fitted to the side; the canvas is then
    scaled and moved, and a square of the side is cut out of it.

    Args:
        p: Probability.
        scale: Smallest and largest factor.
        translate: Largest move either way, as a share of the side.
    """

    def __init__(self, *, p: float = 0.0, scale: Sequence[float] = (0.5, 1.5), translate: float = 0.1) -> None:
        check_probability(p)
        check_range("scale", scale)
        if not 0 <= translate <= 1:
            raise ValueError(f"translate must be between 0 and 1, got {translate}")
        self.p = p
        self.scale = (scale[0], scale[1])
        self.translate = translate

    def layout(self, sizes: Sequence[Size], rng: np.random.Generator, *, side: int) -> list[tuple[np.ndarray, Window]]:
        """The matrix of each of four pictures of `sizes` (height, width), and its window on the square."""
        meeting = rng.uniform(side / 2, 3 * side / 2, 2)
        factor = rng.uniform(*self.scale)
        origin = side * (0.5 + rng.uniform(-self.translate, self.translate, 2)) - factor * side
        x, y = (int(corner) for corner in np.round(origin + factor * meeting).clip(0, side))
        # Outside of the doubled canvas there is nothing to see.
        low = np.round(origin).clip(0, side).astype(int)
        high = np.round(origin + 2 * factor * side).clip(0, side).astype(int)
        layout = []
        for i, (height, width) in enumerate(sizes):
            right, below = i % 2, i // 2
            fitted = factor * side / max(height, width)
            corner = origin + factor * meeting
            corner -= fitted * np.array((width * (1 - right), height * (1 - below)))
            window = (
                x if right else int(low[0]),
                y if below else int(low[1]),
                int(high[0]) if right else x,
                int(high[1]) if below else y,
            )
            layout.append((shift(*corner) @ np.diag([fitted, fitted, 1.0]), window))
        return layout


class MixUp:
    """Blends two pictures, the instances of both stay (Zhang et al. 2019, "Bag of Freebies", section 3.1).

    Args:
        p: Probability.
        alpha: The share of each is drawn from Beta(alpha, alpha).
    """

    def __init__(self, *, p: float = 0.0, alpha: float = 8.0) -> None:
        check_probability(p)
        if not alpha > 0:
            raise ValueError(f"alpha must be above 0, got {alpha}")
        self.p = p
        self.alpha = alpha

    def __call__(self, first: Sample, second: Sample, rng: np.random.Generator, *, fill: tuple[int, ...]) -> Sample:
        """Both on a canvas that holds them; it keeps the id of `first`."""
        share = float(rng.beta(self.alpha, self.alpha))
        height, width = (max(sides) for sides in zip(first.size, second.size, strict=True))
        pair = [_extended(sample.image, (height, width), fill) for sample in (first, second)]
        return Sample(
            cv2.addWeighted(pair[0], share, pair[1], 1 - share, 0),
            first.outlines + second.outlines,
            np.concatenate((first.labels, second.labels)),
            first.image_id,
            (*first.partners, second.image_id, *second.partners),
        )


class CopyPaste:
    """Pastes instances of another picture; what lies under them is hidden (Ghiasi et al. 2021).

    Args:
        p: Probability.
        share: Probability of each instance of the other picture to be pasted.
    """

    def __init__(self, *, p: float = 0.0, share: float = 0.5) -> None:
        check_probability(p)
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {share}")
        self.p = p
        self.share = share

    def __call__(self, base: Sample, other: Sample, rng: np.random.Generator, *, remains: Remains) -> Sample:
        """`base` with instances of `other` on it, of which enough `remains`; so it must of those they hide."""
        height, width = base.size
        window = (0, 0, min(width, other.size[1]), min(height, other.size[0]))
        drawn = rng.random(len(other.outlines)) < self.share
        pasted: list[tuple[Outline, int]] = []
        hidden = np.zeros((height, width), dtype=bool)
        for i in np.flatnonzero(drawn):
            outline = other.outlines[i].clip(window)
            # Nobody knows which pixels belong to a mere box.
            if outline.box_only or not remains(other.outlines[i], outline):
                continue
            x1, y1, x2, y2 = outline.region
            covered = outline.raster(outline.region)
            if covered.any():
                hidden[y1:y2, x1:x2] |= covered
                pasted.append((outline, other.labels[i]))
        if not pasted:
            return base
        image = base.image.copy()
        x2, y2 = window[2:]
        image[:y2, :x2][hidden[:y2, :x2]] = other.image[:y2, :x2][hidden[:y2, :x2]]
        cuts = [(outline, outline.cut(hidden)) for outline in base.outlines]
        kept = [
            (cut, label)
            for (outline, cut), label in zip(cuts, base.labels, strict=True)
            if cut is outline or remains(outline, cut)
        ]
        outlines, labels = zip(*kept, *pasted, strict=True)
        return replace(
            base,
            image=image,
            outlines=list(outlines),
            labels=np.array(labels, dtype=np.int64),
            partners=(*base.partners, other.image_id, *other.partners),
        )


def _extended(image: np.ndarray, size: Size, fill: tuple[int, ...]) -> np.ndarray:
    below, right = size[0] - image.shape[0], size[1] - image.shape[1]
    if not below and not right:
        return image
    return cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_CONSTANT, value=fill)

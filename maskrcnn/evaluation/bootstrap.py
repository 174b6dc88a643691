"""How far the difference of two runs is chance: a paired bootstrap over the pictures.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13: percentile intervals.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskrcnn.evaluation.matches import Matches
from maskrcnn.evaluation.precision import weighted_ap

RESAMPLES = 500
CONFIDENCE = 0.95
LEAST = 10  # pictures with something to find; fewer are too much alike in all resamples


@dataclass(frozen=True)
class Difference:
    """AP of one run less that of another, with a 95 % confidence interval.

    The interval is nan where fewer than `LEAST` pictures have something to find, the value where none has.
    """

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Comparison:
    """Runs on the same pictures, the first of which the others are compared with.

    Attributes:
        ap: AP of each run, in [0, 1].
        ap50: Likewise.
        difference: Of the AP, for each run but the first.
        difference50: Likewise of AP50.
        class_ap: AP of each run and class, [R, K]; nan where nothing is to be found.
        class_difference: Of each run but the first, for each class.
    """

    ap: list[float]
    ap50: list[float]
    difference: list[Difference]
    difference50: list[Difference]
    class_ap: np.ndarray
    class_difference: list[list[Difference]]


def compare(runs: Sequence[Matches], *, resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """Compares runs on the same pictures; each resample draws as many pictures with replacement, for all runs alike.

    Args:
        runs: Two or more.
        resamples: How many.
        seed: Of the draws.
    """
    pictures = len(runs[0].image_ids)
    weights = np.ones((resamples + 1, pictures), dtype=np.int64)  # the first is the set as it is
    if pictures:
        weights[1:] = np.random.default_rng(seed).multinomial(pictures, [1 / pictures] * pictures, size=resamples)
    by_run = [weighted_ap(matches, weights) for matches in runs]
    ap = [numbers.mean(axis=1) for numbers in by_run]  # [B, K]
    ap50 = [numbers[:, 0] for numbers in by_run]
    shown = np.unique(np.stack((runs[0].truth_image, runs[0].truth_label)), axis=1)
    everywhere, of_class = len(np.unique(shown[0])), np.bincount(shown[1], minlength=len(runs[0].names))
    return Comparison(
        ap=[float(_mean(numbers)[0]) for numbers in ap],
        ap50=[float(_mean(numbers)[0]) for numbers in ap50],
        difference=[_difference(_mean(ap[0]), _mean(numbers), everywhere) for numbers in ap[1:]],
        difference50=[_difference(_mean(ap50[0]), _mean(numbers), everywhere) for numbers in ap50[1:]],
        class_ap=np.stack([numbers[0] for numbers in ap]),
        class_difference=[
            [_difference(*columns) for columns in zip(ap[0].T, numbers.T, of_class.tolist(), strict=True)]
            for numbers in ap[1:]
        ],
    )


def _mean(numbers: np.ndarray) -> np.ndarray:
    """Mean over the classes [B, K] that have something to find, nan without any."""
    defined = ~np.isnan(numbers)
    with np.errstate(invalid="ignore"):
        return np.where(defined, numbers, 0).sum(axis=1) / defined.sum(axis=1)


def _difference(first: np.ndarray, second: np.ndarray, pictures: int) -> Difference:
    """Of AP [B] of two runs, the first entry of which is not resampled, on pictures with something to find."""
    value, drawn = float(second[0] - first[0]), (second - first)[1:]
    drawn = drawn[~np.isnan(drawn)]  # a class may be missing from a resample
    if pictures < LEAST or not len(drawn):
        return Difference(value, float("nan"), float("nan"))
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Difference(value, float(low), float(high))

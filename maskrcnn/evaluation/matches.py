"""Which detection found which annotation, for all that is asked of it afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from maskrcnn.evaluation.comparable import complete
from maskrcnn.evaluation.overlaps import MOST, Overlaps, overlap

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of the IoU
AREAS = {"all": (0, 1e5**2), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e5**2)}  # in pixels
_LIMITS = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]  # as COCO has it: rounding must not spoil a perfect overlap


@dataclass(frozen=True)
class Matches:
    """D detections and the G annotations that are to be found (neither crowds nor ignored), in flat arrays.

    Detections are in the order of `image_ids`, in each picture best score first. Labels are 0..K-1.

    Attributes:
        image_ids: The pictures.
        names: Of the K classes.
        image: int64 [D], position in `image_ids`.
        label: int64 [D].
        score: float64 [D].
        rank: int64 [D], how many detections of its class in its picture come before it.
        hit: bool [T, D], whether it found an annotation, for each of `THRESHOLDS`.
        spared: bool [T, D], whether it is neither right nor wrong: it found a crowd or an ignored annotation, or
            nothing and is of a size that is not scored.
        truth_image: int64 [G].
        truth_label: int64 [G].
        finder: int64 [G], the detection that found it at an IoU of 0.5, or -1.
        pairs: int64 [P, 2], detections and annotations, of any classes, that overlap.
        iou: float64 [P], of each pair.
    """

    image_ids: list[int]
    names: list[str]
    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    rank: np.ndarray
    hit: np.ndarray
    spared: np.ndarray
    truth_image: np.ndarray
    truth_label: np.ndarray
    finder: np.ndarray
    pairs: np.ndarray
    iou: np.ndarray

    @cached_property
    def counts(self) -> np.ndarray:
        """How many annotations of each class are to be found, int64 [K]."""
        return np.bincount(self.truth_label, minlength=len(self.names))

    @cached_property
    def by_class(self) -> list[np.ndarray]:
        """Detections of each class, best score first."""
        order = np.argsort(-self.score, kind="stable")
        order = order[np.argsort(self.label[order], kind="stable")]
        return np.split(order, np.searchsorted(self.label[order], np.arange(1, len(self.names))))

    @property
    def wrong(self) -> np.ndarray:
        """Whether a detection is wrong at an IoU of 0.5, bool [D]."""
        return ~self.hit[0] & ~self.spared[0]

    @property
    def own_iou(self) -> np.ndarray:
        """The largest IoU with an annotation of its class, float64 [D], 0 without one."""
        return self._nearest_own[0]

    @property
    def own_truth(self) -> np.ndarray:
        """That annotation, int64 [D]."""
        return self._nearest_own[1]

    @property
    def other_iou(self) -> np.ndarray:
        """The largest IoU with an annotation of another class, float64 [D], 0 without one."""
        return self._nearest_other[0]

    @property
    def other_truth(self) -> np.ndarray:
        """That annotation, int64 [D]."""
        return self._nearest_other[1]

    @property
    def confused(self) -> np.ndarray:
        """Detections and annotations of different classes with an IoU of 0.5 at least, int64 [C, 2].

        They are in the order of detections, of each the largest IoU first.
        """
        near = ~self._of_own_class & (self.iou >= _LIMITS[0])
        pairs, iou = self.pairs[near], self.iou[near]
        return pairs[np.lexsort((-iou, pairs[:, 0]))]

    @cached_property
    def _nearest_own(self) -> tuple[np.ndarray, np.ndarray]:
        return self._nearest(self._of_own_class)

    @cached_property
    def _nearest_other(self) -> tuple[np.ndarray, np.ndarray]:
        return self._nearest(~self._of_own_class)

    @cached_property
    def _of_own_class(self) -> np.ndarray:
        detection, truth = self.pairs.T
        return self.label[detection] == self.truth_label[truth]

    def _nearest(self, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (detection, truth), iou = self.pairs[among].T, self.iou[among]
        order = np.lexsort((-truth, iou, detection))  # of each detection, the last one counts
        largest, nearest = np.zeros(len(self.label)), np.zeros(len(self.label), dtype=np.int64)
        largest[detection[order]], nearest[detection[order]] = iou[order], truth[order]
        return largest, nearest


def match(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    *,
    kind: str,
    image_ids: Iterable[int] | None = None,
) -> Matches:
    """Matches results as COCO's evaluation does, and compares them with the annotations of other classes too.

    Args:
        ground_truth: A parsed COCO instances file, as for `coco.score`.
        results: COCO results, each for a picture of the ground truth; those of unknown categories are left out.
        kind: "box" or "mask".
        image_ids: The pictures (all of them by default).
    """
    return match_area(overlap(complete(ground_truth), results, kind=kind, image_ids=image_ids))


def match_area(overlaps: Overlaps, area: str = "all") -> Matches:
    """Matches detections with annotations.

    In each picture, best score first, a detection finds the free annotation of its class with the largest IoU. It
    finds an ignored one only where there is no other.

    Args:
        overlaps: Of detections and annotations.
        area: One of `AREAS`; annotations of other sizes are ignored.
    """
    low, high = AREAS[area]
    counted = ~overlaps.ignored & (low <= overlaps.truth_area) & (overlaps.truth_area <= high)
    hit, spared, finder = _find(overlaps, counted)
    spared |= ~hit & ((overlaps.area < low) | (overlaps.area > high))
    kept = counted[overlaps.truth]
    new = np.cumsum(counted) - 1
    return Matches(
        image_ids=overlaps.image_ids,
        names=overlaps.names,
        image=overlaps.image,
        label=overlaps.label,
        score=overlaps.score,
        rank=overlaps.rank,
        hit=hit,
        spared=spared,
        truth_image=overlaps.truth_image[counted],
        truth_label=overlaps.truth_label[counted],
        finder=finder[counted],
        pairs=np.stack((overlaps.detection[kept], new[overlaps.truth[kept]]), axis=1),
        iou=overlaps.iou[kept],
    )


def _find(overlaps: Overlaps, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`hit` [T, D] and `spared` [T, D] of the detections and `finder` [N] of the annotations.

    Classes and pictures have nothing to do with each other: in each, the best detections choose at once, then the
    second best, and so on.

    Args:
        overlaps: D detections and N annotations.
        counted: bool [N], whether an annotation is to be found.
    """
    hit = np.zeros((len(THRESHOLDS), len(overlaps.label)), dtype=bool)
    spared = np.zeros_like(hit)
    taken = np.zeros((len(THRESHOLDS), len(counted)), dtype=bool)
    finder = np.full(len(counted), -1)

    near = overlaps.iou >= _LIMITS[0]
    near &= overlaps.label[overlaps.detection] == overlaps.truth_label[overlaps.truth]
    detection, truth, iou = overlaps.detection[near], overlaps.truth[near], overlaps.iou[near]
    rank = overlaps.rank[detection]
    # A detection takes the last free one: the largest IoU, and of several the last, as in COCO's evaluation.
    order = np.lexsort((truth, iou, detection, rank))
    edges = np.flatnonzero(np.diff(rank[order], prepend=-1, append=MOST))
    for start, end in pairwise(edges.tolist()):
        d, t, overlapping = (values[order[start:end]] for values in (detection, truth, iou))
        first = np.flatnonzero(np.diff(d, prepend=-1))
        choosing, place = d[first], np.arange(len(d))
        free = (overlapping >= _LIMITS) & (~taken[:, t] | overlaps.crowd[t])
        for wanted, found in ((counted[t], hit), (~counted[t], spared)):
            last = np.maximum.reduceat(np.where(free & wanted, place, -1), first, axis=1)
            chosen = (last >= 0) & ~hit[:, choosing]
            found[:, choosing] = chosen
            levels, columns = np.nonzero(chosen)
            taken[levels, t[last[levels, columns]]] = True
            if found is hit:
                finder[t[last[0, chosen[0]]]] = choosing[chosen[0]]
    return hit, spared, finder

"""How far scores can be trusted, where to cut them, what is taken for what, and which pictures go wrong most."""

from dataclasses import dataclass

import numpy as np

from maskrcnn.evaluation.matches import Matches

DEFAULT_THRESHOLD = 0.5  # of a class of which nothing was found
BINS = 10


@dataclass(frozen=True)
class OperatingPoint:
    """The best score threshold of a class at an IoU of 0.5: detections with this score or a higher one are kept.

    Attributes:
        threshold: `DEFAULT_THRESHOLD` where nothing was found.
        f1: The largest there is, in [0, 1]; -1 where nothing is to be found.
        precision: There; -1 where no detection is kept.
        recall: There; -1 where nothing is to be found.
    """

    threshold: float
    f1: float
    precision: float
    recall: float


@dataclass(frozen=True)
class Calibration:
    """Scores beside the share of detections with such a score that are right at an IoU of 0.5.

    Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, section 2, for detections.

    Attributes:
        counts: int64 [B], detections in each of B equal parts of [0, 1].
        score: float64 [B], their mean score; nan without any.
        precision: float64 [B], share of them that are right; nan without any.
        error: The expected calibration error: mean distance of the two, over detections; nan without any.
    """

    counts: np.ndarray
    score: np.ndarray
    precision: np.ndarray
    error: float


@dataclass(frozen=True)
class Failure:
    """A picture that went wrong.

    Attributes:
        image_id: Of the picture.
        cost: The sum of the scores of wrong detections, and 1 for each annotation that was not found.
        wrong: Wrong detections.
        missed: Annotations that were not found.
    """

    image_id: int
    cost: float
    wrong: int
    missed: int


def operating_points(matches: Matches) -> list[OperatingPoint]:
    """The score threshold of each class with the largest F1, of several the highest."""
    points = []
    for label, detections in enumerate(matches.by_class):
        detections = detections[~matches.spared[0, detections]]
        count = int(matches.counts[label])
        scores, hits = matches.score[detections], np.cumsum(matches.hit[0, detections])
        last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if len(scores) else np.zeros(0, dtype=int)
        f1 = 2 * hits[last] / (last + 1 + count)
        if count and len(f1) and f1.max() > 0:
            best = last[f1.argmax()]
            found, kept, threshold = int(hits[best]), int(best) + 1, float(scores[best])
        else:
            kept = int((scores >= DEFAULT_THRESHOLD).sum())
            found, threshold = 0, DEFAULT_THRESHOLD
        points.append(
            OperatingPoint(
                threshold=threshold,
                f1=2 * found / (kept + count) if count else -1.0,
                precision=found / kept if kept else -1.0,
                recall=found / count if count else -1.0,
            )
        )
    return points


def kept_detections(matches: Matches, points: list[OperatingPoint]) -> np.ndarray:
    """Bool [D]: whether a detection's score reaches the threshold of its class."""
    return matches.score >= np.array([point.threshold for point in points])[matches.label]


def confusion(matches: Matches, kept: np.ndarray) -> np.ndarray:
    """What annotations are taken for at an IoU of 0.5, int64 [K + 1, K + 1].

    A detection belongs to the annotation that it found; one that found none, best score first, to the free
    annotation of another class with the largest IoU; otherwise to the background, as do free annotations.

    Args:
        matches: What was matched.
        kept: bool [D], the detections that count.

    Returns:
        Row: class of the annotation, the last one for background. Column: class of the detection, the last one for
        nothing.
    """
    size = len(matches.names) + 1
    matrix = np.zeros((size, size), dtype=np.int64)
    open_detections = kept & matches.wrong
    open_truth = ~_found(matches, kept)
    np.add.at(matrix, (matches.truth_label[~open_truth],) * 2, 1)
    confused = matches.confused[open_detections[matches.confused[:, 0]] & open_truth[matches.confused[:, 1]]]
    for detection, truth in confused.tolist():
        if open_detections[detection] and open_truth[truth]:
            open_detections[detection] = open_truth[truth] = False
            matrix[matches.truth_label[truth], matches.label[detection]] += 1
    matrix[-1, :-1] = np.bincount(matches.label[open_detections], minlength=size - 1)
    matrix[:-1, -1] = np.bincount(matches.truth_label[open_truth], minlength=size - 1)
    return matrix


def calibration(matches: Matches) -> Calibration | None:
    """How far the score of a detection is its probability to be right; None if scores are not in [0, 1]."""
    counted = ~matches.spared[0]
    scores, right = matches.score[counted], matches.hit[0, counted]
    if len(scores) and not 0 <= scores.min() <= scores.max() <= 1:
        return None
    bins = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        score = np.bincount(bins, scores, minlength=BINS) / counts
        precision = np.bincount(bins, right, minlength=BINS) / counts
        error = float(np.nansum(counts * np.abs(score - precision)) / np.float64(counts.sum()))
    return Calibration(counts, score, precision, error)


def worst_pictures(matches: Matches, kept: np.ndarray, *, count: int) -> list[Failure]:
    """The pictures that cost most, worst first; none without an error.

    Args:
        matches: What was matched.
        kept: bool [D], the detections that count.
        count: At most so many.
    """
    size = len(matches.image_ids)
    wrong = kept & matches.wrong
    missed = ~_found(matches, kept)
    numbers = (
        np.bincount(matches.image[wrong], minlength=size),
        np.bincount(matches.truth_image[missed], minlength=size),
    )
    cost = np.bincount(matches.image[wrong], matches.score[wrong], minlength=size) + numbers[1]
    worst = [i for i in np.argsort(-cost, kind="stable")[:count] if numbers[0][i] + numbers[1][i]]
    return [Failure(matches.image_ids[i], float(cost[i]), int(numbers[0][i]), int(numbers[1][i])) for i in worst]


def _found(matches: Matches, kept: np.ndarray) -> np.ndarray:
    """Whether one of the detections that count found an annotation, bool [G]."""
    found = matches.finder >= 0
    found[found] = kept[matches.finder[found]]
    return found

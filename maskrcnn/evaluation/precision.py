"""Precision over recall, and average precision, of matched detections, with COCO's numbers."""

import numpy as np

from maskrcnn.evaluation.matches import THRESHOLDS, Matches

RECALLS = np.linspace(0, 1, 101)
_BLOCK = 4_000_000  # numbers that are held at a time


def average_precision(right: np.ndarray, count: int) -> float:
    """AP of one class at one IoU.

    Args:
        right: bool [D], best score first.
        count: Annotations that are to be found, at least 1.
    """
    return float(_curve(right, count).mean())


def precision_curves(matches: Matches) -> np.ndarray:
    """Precision at each of `RECALLS`, [T, R, K], as COCO's evaluation has it; -1 for classes with nothing to find."""
    curves = np.full((len(THRESHOLDS), len(RECALLS), len(matches.names)), -1.0)
    for label, detections in enumerate(matches.by_class):
        if not matches.counts[label]:
            continue
        for level, (hit, spared) in enumerate(zip(matches.hit, matches.spared, strict=True)):
            counted = detections[~spared[detections]]
            curves[level, :, label] = _curve(hit[counted], matches.counts[label])
    return curves


def recalls(matches: Matches, most: int) -> np.ndarray:
    """Share of annotations that the first `most` detections of a class in a picture find, [T, K]; -1 without any."""
    first = matches.rank < most
    found = [np.bincount(matches.label[hit & first], minlength=len(matches.names)) for hit in matches.hit]
    return np.where(matches.counts > 0, np.stack(found) / np.maximum(matches.counts, 1), -1.0)


def weighted_ap(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """AP of each class, [B, T, K], when each picture counts `weights` times; nan where nothing is to be found.

    Args:
        matches: Of I pictures.
        weights: int [B, I].
    """
    result = np.full((len(weights), len(THRESHOLDS), len(matches.names)), np.nan)
    for label, detections in enumerate(matches.by_class):
        truth_images = matches.truth_image[matches.truth_label == label]
        if not len(truth_images):
            continue
        step = max(1, _BLOCK // max(len(detections), 1))
        for start in range(0, len(weights), step):
            block = weights[start : start + step]
            counts = block[:, truth_images].sum(axis=1)
            result[start : start + step, :, label] = _class_ap(matches, detections, block, counts)
    return result


def _class_ap(matches: Matches, detections: np.ndarray, weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """AP [b, T] of one class, whose detections come best score first."""
    drawn = weights[:, matches.image[detections]]
    result = np.full((len(weights), len(THRESHOLDS)), np.nan)
    some = counts > 0
    spared_before, seen = None, np.zeros(0)
    for level in range(len(THRESHOLDS)):
        hit, spared = matches.hit[level, detections], matches.spared[level, detections]
        if spared_before is None or (spared != spared_before).any():
            seen, spared_before = np.cumsum(drawn * ~spared, axis=1), spared
        hits = np.flatnonzero(hit)  # between them precision only falls
        found = np.cumsum(drawn[:, hits], axis=1)
        precision = found / np.maximum(seen[:, hits], 1)
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        reached = np.searchsorted(RECALLS, found / np.maximum(counts, 1)[:, None], side="right")
        # A hit that was not drawn reaches no further recall; the first one that was also reaches a recall of 0.
        steps = np.diff(np.where(found > 0, reached, 0), axis=1, prepend=0)
        result[some, level] = (best * steps).sum(axis=1)[some] / len(RECALLS)
    return result


def _curve(right: np.ndarray, count: int) -> np.ndarray:
    """Precision [R] of one class at one IoU: the best at this recall or a larger one."""
    hits = np.cumsum(right)
    precision = hits / (np.arange(1, len(right) + 1) + np.spacing(1))  # as COCO has it, to the last digit
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
    return best[np.searchsorted(hits / count, RECALLS, side="left")]

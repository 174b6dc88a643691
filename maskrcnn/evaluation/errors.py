"""What kinds of errors detections have, and what each kind costs: the TIDE decomposition.

Bolya, Foley, Hays and Hoffman, "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020, section 2.
An error costs what AP50 gains when errors of this type alone are put right; the costs do not add up.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from maskrcnn.evaluation.matches import THRESHOLDS, Matches
from maskrcnn.evaluation.precision import average_precision

FOREGROUND, BACKGROUND = float(THRESHOLDS[0]), 0.1  # IoU

# Of a detection that is wrong, by its largest IoU with an annotation of its class and with one of another class.
TYPES = {
    "classification": "on an object of another class",
    "localisation": "right class, but too little overlap with the object",
    "both": "too little overlap, and of another class",
    "duplicate": "on an object that a better detection has found",
    "background": "on no object at all",
    "missed": "an object that no detection comes near",
}
_CODES = {name: code for code, name in enumerate(TYPES)}


@dataclass(frozen=True)
class Errors:
    """The errors of matched detections, at an IoU of 0.5.

    Attributes:
        kind: int64 [D], position in `TYPES`, or -1 for no error.
        target: int64 [D], the annotation that a classification or localisation error would find; else -1.
        rescued: bool [D], of these the best of each annotation that no detection has found.
        missed: bool [G], annotations that neither a detection nor a rescued error finds.
    """

    kind: np.ndarray
    target: np.ndarray
    rescued: np.ndarray
    missed: np.ndarray


@dataclass(frozen=True)
class Costs:
    """AP50, and how much higher it would be without some errors, all in [0, 1].

    Attributes:
        ap50: As it is, the mean over classes with something to find; -1 without any.
        counts: How many errors of each of `TYPES` there are.
        types: What each of `TYPES` costs.
        false_positives: Cost of all wrong detections: with them last.
        false_negatives: Cost of everything that was not found: with fewer annotations.
    """

    ap50: float
    counts: dict[str, int]
    types: dict[str, float]
    false_positives: float
    false_negatives: float


def find_errors(matches: Matches) -> Errors:
    """Gives each wrong detection and each annotation that was not found its type.

    A detection that is neither right nor wrong, on a crowd for example, has no error.
    """
    wrong, own, other = matches.wrong, matches.own_iou, matches.other_iou
    conditions = {
        "localisation": (own >= BACKGROUND) & (own < FOREGROUND),
        "classification": other >= FOREGROUND,
        "duplicate": own >= FOREGROUND,
        "background": np.maximum(own, other) <= BACKGROUND,
        "both": np.ones(len(wrong), dtype=bool),
    }
    codes = np.select(
        [wrong & condition for condition in conditions.values()], [_CODES[name] for name in conditions], -1
    )
    target = np.select(
        [codes == _CODES["localisation"], codes == _CODES["classification"]],
        [matches.own_truth, matches.other_truth],
        -1,
    )
    free = matches.finder < 0
    useful = np.flatnonzero(target >= 0)
    useful = useful[free[target[useful]]]
    best = useful[np.lexsort((useful, -matches.score[useful], target[useful]))]
    best = best[np.unique(target[best], return_index=True)[1]]
    rescued = np.zeros(len(wrong), dtype=bool)
    rescued[best] = True
    missed = free.copy()
    missed[target[best]] = False
    return Errors(codes, target, rescued, missed)


def error_costs(matches: Matches) -> Costs:
    """What each type of error costs."""
    errors = find_errors(matches)
    ap50 = ap_without(matches, errors, ())
    counts = {name: int((errors.kind == code).sum()) for name, code in _CODES.items()}
    counts["missed"] = int(errors.missed.sum())
    if not matches.counts.any():
        return Costs(-1.0, counts, dict.fromkeys(TYPES, 0.0), 0.0, 0.0)
    # Where precision is read at 101 recalls, a correction may lower it by a trifle.
    types = {name: max(0.0, ap_without(matches, errors, (name,)) - ap50) for name in TYPES}
    kept = ~matches.spared[0]
    labels, right = matches.label[kept], matches.hit[0, kept]
    perfect_order = _mean_ap(labels, (~right).astype(float), right, matches.counts, matches.counts)
    found = np.bincount(matches.truth_label[matches.finder >= 0], minlength=len(matches.names))
    all_found = _mean_ap(labels, -matches.score[kept], right, found, matches.counts)
    return Costs(ap50, counts, types, perfect_order - ap50, all_found - ap50)


def ap_without(matches: Matches, errors: Errors, fixed: Collection[str]) -> float:
    """AP50 if errors of some types were put right.

    Of classification and localisation errors, the rescued become right and the others vanish; so do duplicates,
    detections on the background, and those with both errors. What was missed needs no longer be found.

    Args:
        matches: What was matched.
        errors: Their errors.
        fixed: Some of `TYPES`.
    """
    corrected = np.isin(errors.kind, [_CODES[name] for name in fixed if name != "missed"])
    rescued = corrected & errors.rescued
    label = matches.label.copy()
    label[rescued] = matches.truth_label[errors.target[rescued]]
    kept = ~matches.spared[0] & (~corrected | rescued)
    counts = matches.counts
    if "missed" in fixed:
        counts = counts - np.bincount(matches.truth_label[errors.missed], minlength=len(counts))
    return _mean_ap(label[kept], -matches.score[kept], (matches.hit[0] | rescued)[kept], counts, matches.counts)


def _mean_ap(label: np.ndarray, order: np.ndarray, right: np.ndarray, left: np.ndarray, counts: np.ndarray) -> float:
    """Mean AP of the classes that have annotations.

    A class of which nothing is left to find counts 0 if there are detections of it, else not at all.

    Args:
        label: int64 [D].
        order: [D], ascending from the best detection.
        right: bool [D].
        left: int64 [K], annotations that are to be found.
        counts: int64 [K], annotations that the class has.
    """
    best_first = np.argsort(order, kind="stable")
    label, right = label[best_first], right[best_first]
    scores = []
    for k in np.flatnonzero(counts):
        of_class = right[label == k]
        if left[k]:
            scores.append(average_precision(of_class, left[k]))
        elif len(of_class):
            scores.append(0.0)
    return float(np.mean(scores)) if scores else 1.0

"""The report of one evaluation: where the model errs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.data.datamodule import DetectionDataModule
from maskrcnn.evaluation.analysis import ClassScore
from maskrcnn.evaluation.coco import KINDS, METRICS
from maskrcnn.evaluation.diagnosis import (
    Calibration,
    calibration,
    confusion,
    kept_detections,
    operating_points,
    worst_pictures,
)
from maskrcnn.evaluation.errors import TYPES, Costs, error_costs
from maskrcnn.evaluation.matches import match
from maskrcnn.evaluation.precision import precision_curves
from maskrcnn.report.page import write_page
from maskrcnn.report.pictures import draw_failures
from maskrcnn.report.plots import plot_calibration, plot_confusion, plot_costs, plot_precision

_PICTURES = 9
_CONFUSIONS = 12  # lines of the list


def write_evaluation(
    folder: Path,
    data: DetectionDataModule,
    results: list[dict[str, Any]],
    *,
    scores: Mapping[str, dict[str, float]],
    classes: Sequence[ClassScore],
    image_ids: Sequence[int],
    notes: Sequence[str],
) -> Path:
    """Write `report.html` and print what errors cost.

    Args:
        folder: Where to.
        data: Holds the split that was evaluated, with annotations.
        results: COCO results.
        scores: As `coco.score` has them, of each kind that was scored.
        classes: The same class by class.
        image_ids: The pictures that were scored.
        notes: What is odd about them.

    Returns:
        The file.
    """
    split = data.datasets["val"]
    ground_truth = split.ground_truth()
    assert ground_truth is not None
    kinds = [kind for kind in KINDS if kind in scores]
    matched = {kind: match(ground_truth, results, kind=kind, image_ids=image_ids) for kind in kinds}
    costs = {kind: error_costs(matches) for kind, matches in matched.items()}
    main = kinds[-1]  # masks, if there are any
    matches = matched[main]
    points = operating_points(matches)
    kept = kept_detections(matches, points)
    matrix = confusion(matches, kept)
    trust = calibration(matches)
    thresholds = {
        category["id"]: point.threshold for category, point in zip(ground_truth["categories"], points, strict=True)
    }
    failures = worst_pictures(matches, kept, count=_PICTURES)
    print(f"\n{format_costs(costs)}")
    return write_page(
        folder,
        "evaluation.html",
        source=str(split.dataset.annotations.source),
        pictures=len(image_ids),
        detections=len(results),
        notes=notes,
        kinds=kinds,
        main=main,
        metrics=[(name, [scores[kind][name] for kind in kinds]) for name in METRICS],
        types=TYPES,
        costs=costs,
        costs_plot=plot_costs(costs),
        confusion_plot=plot_confusion(matrix, matches.names),
        confusions=_largest(matrix, matches.names),
        precision_plots={kind: plot_precision(precision_curves(of_kind)) for kind, of_kind in matched.items()},
        trust=trust,
        trust_plot=None if trust is None else plot_calibration(trust, main),
        trust_words=_in_words(trust),
        classes=[(score, *score.ap[main], point) for score, point in zip(classes, points, strict=True)],
        failures=draw_failures(failures, split, results, thresholds),
    )


def format_costs(costs: Mapping[str, Costs]) -> str:
    """What errors cost in AP50 and how many there are, for a terminal."""
    head = "".join(f"  {f'{kind} dAP50':>10}  {'errors':>9}" for kind in costs)
    lines = [f"{'error':<16}{head}"]
    for name in TYPES:
        cells = "".join(f"  {of_kind.types[name]:>10.3f}  {of_kind.counts[name]:>9}" for of_kind in costs.values())
        lines.append(f"{name:<16}{cells}")
    for name, numbers in (
        ("false positives", [of_kind.false_positives for of_kind in costs.values()]),
        ("false negatives", [of_kind.false_negatives for of_kind in costs.values()]),
    ):
        lines.append((f"{name:<16}" + "".join(f"  {value:>10.3f}{'':11}" for value in numbers)).rstrip())
    return "\n".join(lines)


def _largest(matrix: np.ndarray, names: Sequence[str]) -> list[tuple[str, str, int, float]]:
    """The most frequent confusions of two classes: annotated, detected, how often, share of what was annotated so."""
    between = matrix[:-1, :-1].copy()
    np.fill_diagonal(between, 0)
    shares = between / np.maximum(matrix[:-1].sum(axis=1, keepdims=True), 1)
    order = np.lexsort((-shares.ravel(), -between.ravel()))[:_CONFUSIONS]
    pairs = [divmod(int(place), len(names)) for place in order]
    return [
        (names[row], names[column], int(between[row, column]), float(shares[row, column]))
        for row, column in pairs
        if between[row, column]
    ]


def _in_words(trust: Calibration | None) -> str:
    if trust is None:
        return "Scores are not between 0 and 1, so they are no probabilities."
    if not trust.counts.sum():
        return "There are no detections."
    bias = float(np.nansum(trust.counts * (trust.score - trust.precision)) / trust.counts.sum())
    promise = "more" if bias > 0 else "less"
    mean = f"on average, scores promise {abs(bias):.3f} {promise} than holds"
    return f"Expected calibration error {trust.error:.3f}; {mean}."

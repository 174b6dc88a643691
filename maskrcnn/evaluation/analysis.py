"""Scores class by class, and the table of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

COLUMNS = ("class", "instances", "box AP", "box AP50", "mask AP", "mask AP50")
WIDTH = 80  # columns of a terminal


@dataclass(frozen=True)
class ClassScore:
    """What one class got.

    Attributes:
        name: Of the class.
        instances: Annotations that are to be found: neither crowds nor ignored.
        ap: AP and AP50, in [0, 1], of each kind; -1 without instances, and no entry for a kind that is not scored.
    """

    name: str
    instances: int
    ap: dict[str, tuple[float, float]]


def class_ap(precision: np.ndarray, category_ids: Sequence[int]) -> dict[int, tuple[float, float]]:
    """AP and AP50 of each category, as pycocotools has them when it scores that category alone.

    Args:
        precision: Of a COCO evaluation, [IoU thresholds, recalls, categories]; the first threshold is 0.50.
        category_ids: The categories, in the order of their axis.
    """
    return {
        category_id: (defined_mean(precision[:, :, i]), defined_mean(precision[0, :, i]))
        for i, category_id in enumerate(category_ids)
    }


def defined_mean(values: np.ndarray) -> float:
    """Mean of what is not -1, which stands for nothing to find; -1 without any."""
    defined = values[values > -1]
    return float(defined.mean()) if len(defined) else -1.0


def class_scores(
    ground_truth: Mapping[str, Any], image_ids: Sequence[int], by_kind: Mapping[str, dict[int, tuple[float, float]]]
) -> list[ClassScore]:
    """The scores of all classes of a ground truth, in its order.

    Args:
        ground_truth: A parsed COCO instances file.
        image_ids: The images that were scored.
        by_kind: `class_ap` of each kind.
    """
    scored = set(image_ids)
    instances = Counter(
        annotation["category_id"]
        for annotation in ground_truth["annotations"]
        if annotation["image_id"] in scored and not annotation.get("iscrowd") and not annotation.get("ignore")
    )
    return [
        ClassScore(
            name=category["name"],
            instances=instances[category["id"]],
            ap={kind: numbers.get(category["id"], (-1.0, -1.0)) for kind, numbers in by_kind.items()},
        )
        for category in ground_truth["categories"]
    ]


def class_rows(classes: Sequence[ClassScore]) -> list[list[str]]:
    """The cells of the table below its head `COLUMNS`; "-" where there is nothing to score."""
    missing = (-1.0, -1.0)
    return [
        [
            score.name,
            str(score.instances),
            *(_cell(value) for kind in ("box", "mask") for value in score.ap.get(kind, missing)),
        ]
        for score in classes
    ]


def format_class_table(classes: Sequence[ClassScore]) -> str:
    """The table for a terminal; a name that is too long for it is cut."""
    numbers = "".join(f"  {title:>9}" for title in COLUMNS[1:])
    room = WIDTH - len(numbers)
    width = min(room, max(len(name) for name in [COLUMNS[0], *(score.name for score in classes)]))
    lines = [f"{COLUMNS[0]:<{width}}{numbers}"]
    for name, *cells in class_rows(classes):
        shown = name if len(name) <= width else f"{name[: width - 3]}..."
        lines.append(f"{shown:<{width}}" + "".join(f"  {cell:>9}" for cell in cells))
    return "\n".join(lines)


def _cell(value: float) -> str:
    return "-" if value < 0 else f"{value:.3f}"

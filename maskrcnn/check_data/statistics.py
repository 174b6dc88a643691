"""Counts and distributions of a split."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from maskrcnn.check_data.splits import CheckedSplit

# Areas, in square pixels, between COCO's small, medium and large.
MEDIUM, LARGE = 32**2, 96**2


@dataclass(frozen=True)
class Statistics:
    """N images, M instances, K classes.

    An instance is what training counts: of a class that takes part, not a crowd region (without
    `data.use_crowd`), not difficult, and with a box of some area inside of the picture.

    Attributes:
        counts: Of the split as a whole.
        classes: The same for each class.
        instances_per_class: int64 [K].
        instances_per_image: int64 [N].
        areas: float64 [M], square pixels.
        aspect_ratios: float64 [M], width / height of the boxes.
        image_sizes: int64 [N, 2], height and width.
    """

    counts: dict[str, Any]
    classes: list[dict[str, Any]]
    instances_per_class: np.ndarray
    instances_per_image: np.ndarray
    areas: np.ndarray
    aspect_ratios: np.ndarray
    image_sizes: np.ndarray

    @staticmethod
    def of(split: CheckedSplit) -> "Statistics":
        """Count what there is in a split."""
        annotations, content = split.annotations, split.content
        counted = np.flatnonzero(content.counted)
        # Crowds and difficult ones too, as long as their class takes part.
        chosen = [category["id"] for category in content.categories]
        column_of = {id: column for column, id in enumerate(chosen)}
        columns = np.array([-1, *(column_of.get(category["id"], -1) for category in annotations.categories)])
        column = columns[annotations.labels]
        image_of = np.repeat(np.arange(len(annotations.image_ids)), np.diff(annotations.first_instance))
        areas = annotations.areas
        groups = {
            "instances": content.counted,
            "small": content.counted & (areas < MEDIUM),
            "medium": content.counted & (areas >= MEDIUM) & (areas < LARGE),
            "large": content.counted & (areas >= LARGE),
            "box_only": content.counted & ~annotations.has_outline,
            "crowd": annotations.crowd & (column >= 0),
            "difficult": annotations.difficult & (column >= 0),
        }
        per_class = {
            name: np.bincount(column[rows & (column >= 0)], minlength=len(chosen)) for name, rows in groups.items()
        }
        pairs = np.unique(np.stack((image_of[counted], column[counted]), axis=1), axis=0)
        per_class = {"images": np.bincount(pairs[:, 1], minlength=len(chosen)), **per_class}
        per_image = content.instances_per_image
        width, height = annotations.boxes[counted, 2:].T
        return Statistics(
            counts={
                "images": len(per_image),
                "images_without_instance": int((per_image == 0).sum()),
                "most_instances_in_an_image": int(per_image.max(initial=0)),
                "median_image_size": np.median(annotations.sizes, axis=0).tolist() if len(per_image) else None,
                **{name: int(rows.sum()) for name, rows in groups.items()},
            },
            classes=[
                {**category, **{name: int(numbers[k]) for name, numbers in per_class.items()}}
                for k, category in enumerate(content.categories)
            ],
            instances_per_class=per_class["instances"],
            instances_per_image=per_image,
            areas=areas[counted],
            aspect_ratios=width / height,
            image_sizes=annotations.sizes,
        )

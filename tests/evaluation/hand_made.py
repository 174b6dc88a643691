"""A picture whose matches can be told by hand."""

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

SIZE = 200
Box = tuple[float, float, float, float]


def entry(category: int, box: Box, *, image: int = 1, **more: Any) -> dict[str, Any]:
    """An annotation or a result: a box x, y, width, height, and a mask that fills it."""
    rle = coco_mask.frPyObjects(np.array([box], dtype=np.float64), SIZE, SIZE)[0]
    segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
    return {"image_id": image, "category_id": category, "bbox": list(box), "segmentation": segmentation, **more}


def ground_truth(annotations: list[dict[str, Any]], *, images: int = 1, names: str = "ab") -> dict[str, Any]:
    """An instances file of categories 1, 2, ... called a, b, ..."""
    return {
        "images": [{"id": i, "height": SIZE, "width": SIZE} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, start=1)],
    }


A, B = 1, 2
TRUTH = ground_truth(
    [
        entry(A, (0, 0, 10, 10)),
        entry(A, (50, 0, 10, 10)),
        entry(B, (100, 0, 10, 10)),
        entry(B, (150, 0, 10, 10)),
        entry(A, (0, 150, 10, 10)),
        entry(B, (50, 100, 10, 10)),
    ]
)
RESULTS = [
    entry(A, (0, 0, 10, 10), score=0.9),  # right
    entry(A, (0, 0, 10, 10), score=0.8),  # duplicate
    entry(B, (50, 0, 10, 10), score=0.7),  # classification
    entry(B, (106, 0, 10, 10), score=0.6),  # localisation, an IoU of 0.25
    entry(A, (156, 0, 10, 10), score=0.5),  # both
    entry(A, (0, 100, 10, 10), score=0.4),  # background
    entry(A, (0, 150, 10, 10), score=0.3),  # right
    entry(B, (50, 100, 10, 10), score=0.2),  # right
]

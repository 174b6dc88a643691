"""A tiny validation set: two pictures of shapes, and results for them."""

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

CATEGORIES = [{"id": 2, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 9, "name": "emu"}]


def result(image_id: int, category_id: int, box: tuple[int, int, int, int], score: float) -> dict[str, Any]:
    """A COCO result that fills its box x1, y1, x2, y2 in a picture of 64 x 64."""
    x1, y1, x2, y2 = box
    mask = np.zeros((64, 64), np.uint8, order="F")
    mask[y1:y2, x1:x2] = 1
    counts = coco_mask.encode(mask)["counts"].decode()
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "score": score,
        "segmentation": {"size": [64, 64], "counts": counts},
    }


@pytest.fixture
def results() -> list[dict[str, Any]]:
    """One hit, one miss, one with a low score."""
    return [
        result(1, 2, (8, 8, 40, 40), 0.9),
        result(2, 7, (1, 1, 9, 9), 0.8),
        result(2, 9, (0, 0, 9, 9), 0.1),
    ]


@pytest.fixture
def ground_truth() -> dict[str, Any]:
    """Two pictures with one instance each."""
    truth = [result(1, 2, (8, 8, 40, 40), 1), result(2, 9, (20, 20, 60, 60), 1)]
    annotations = [
        {
            **{key: one[key] for key in ("image_id", "category_id", "bbox", "segmentation")},
            "id": id,
            "iscrowd": 0,
        }
        for id, one in enumerate(truth, start=1)
    ]
    for annotation in annotations:
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    images = [{"id": id, "file_name": f"{id}.png", "height": 64, "width": 64} for id in (1, 2)]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}

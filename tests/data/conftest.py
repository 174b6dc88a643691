"""A COCO set by hand: every kind of segmentation, gaps between the ids, an image without annotations."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask


def run_lengths(x1: int, y1: int, x2: int, y2: int, *, size: tuple[int, int], compressed: bool) -> dict[str, Any]:
    """RLE of a rectangle in a picture of `size` (height, width)."""
    mask = np.zeros(size, np.uint8, order="F")
    mask[y1:y2, x1:x2] = 1
    if compressed:
        return {"size": list(size), "counts": coco_mask.encode(mask)["counts"].decode()}
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=0))
    return {"size": list(size), "counts": np.diff(changes, prepend=0, append=flat.size).tolist()}


def instances() -> dict[str, Any]:
    """The parsed instances file of the set."""
    triangle = [[10.5, 10.5, 30.5, 10.5, 30.5, 40.5]]
    parts = [[5, 5, 25, 5, 25, 25, 5, 25], [15, 5, 40, 5, 40, 25, 15, 25]]
    annotations = [
        (3, 12, 90, [10, 10, 21, 31], triangle, 0, 300),
        (17, 12, 5, [5, 5, 35, 20], parts, 0, 700),
        (18, 4, 90, [8, 6, 12, 24], run_lengths(8, 6, 20, 30, size=(48, 64), compressed=True), 0, 288),
        (19, 4, 44, [30, 10, 20, 20], run_lengths(30, 10, 50, 30, size=(48, 64), compressed=False), 0, 400),
        (40, 30, 5, [0, 0, 40, 40], run_lengths(0, 0, 40, 40, size=(40, 40), compressed=False), 1, 1600),
        (41, 30, 5, [2, 2, 10, 10], [[2, 2, 12, 2, 12, 12, 2, 12]], 0, 100),
    ]
    return {
        "images": [
            {"id": 12, "file_name": "a.png", "height": 48, "width": 64},
            {"id": 7, "file_name": "blank.png", "height": 32, "width": 32},
            {"id": 4, "file_name": "b.jpg", "height": 48, "width": 64},
            {"id": 30, "file_name": "c.png", "height": 40, "width": 40},
        ],
        "annotations": [
            {
                "id": id,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": box,
                "segmentation": segmentation,
                "iscrowd": crowd,
                "area": area,
            }
            for id, image_id, category_id, box, segmentation, crowd, area in annotations
        ],
        "categories": [{"id": 90, "name": "kite"}, {"id": 5, "name": "boat"}, {"id": 44, "name": "cup"}],
    }


def write_set(root: Path, content: dict[str, Any] | None = None, *, split: str = "train") -> Path:
    """Write a set in the COCO 2017 layout, pictures of noise; returns the annotation file."""
    content = content or instances()
    rng = np.random.default_rng(0)
    folder = root / f"{split}2017"
    folder.mkdir(parents=True, exist_ok=True)
    for image in content["images"]:
        noise = rng.integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / image["file_name"])
    path = root / "annotations" / f"instances_{split}2017.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def content() -> dict[str, Any]:
    """A parsed instances file to change at will."""
    return instances()


@pytest.fixture
def write():
    """`write_set`."""
    return write_set

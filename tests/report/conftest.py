"""A drawn set, and results for it that are as good as one wants."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from maskrcnn.data.shapes import draw_shapes
from tests.cli_tools import Outcome, run

VAL = "annotations/instances_val2017.json"
IMAGES = 12


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "shapes"
    draw_shapes(folder, train_images=1, val_images=IMAGES, image_size=64)
    return folder


def make_results(root: Path, *, seed: int, wrong_class: float, shift: int) -> list[dict[str, Any]]:
    """Each instance with its class or another one, its mask some pixels beside its place."""
    rng = np.random.default_rng(seed)
    truth = COCO(root / VAL)
    results = []
    for annotation in truth.anns.values():
        for _ in range(2):
            mask = np.roll(truth.annToMask(annotation), rng.integers(-shift, shift + 1, 2), axis=(0, 1))
            rle = coco_mask.encode(np.asfortranarray(mask))
            other = rng.random() < wrong_class
            results.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": int(rng.choice(sorted(truth.cats))) if other else annotation["category_id"],
                    "score": float(rng.uniform(0, 0.6) if other else rng.uniform(0.3, 1)),
                    "bbox": coco_mask.toBbox(rle).tolist(),
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                }
            )
    return results


@pytest.fixture(scope="session")
def files(root, tmp_path_factory) -> dict[str, Path]:
    """Results files: poor, good and perfect."""
    folder = tmp_path_factory.mktemp("results")
    made = {
        "poor": make_results(root, seed=0, wrong_class=0.5, shift=6),
        "good": make_results(root, seed=1, wrong_class=0.2, shift=2),
        "perfect": make_results(root, seed=2, wrong_class=0, shift=0),
    }
    for name, results in made.items():
        (folder / f"{name}.json").write_text(json.dumps(results), encoding="utf-8")
    return {name: folder / f"{name}.json" for name in made}


def evaluate(root: Path, folder: Path, *arguments: str) -> Outcome:
    return run("evaluate", "data=coco", f"data.root={root}", f"hydra.run.dir={folder}", *arguments)

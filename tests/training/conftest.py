"""A tiny validation set: two pictures of shapes, and results for them; stand-ins for what validated it."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from maskrcnn.data.sample import Outline, Sample
from maskrcnn.training.module import MaskRCNNModule

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


class Dataset:
    """Two pictures; the second has no instance."""

    categories = ({"id": 2, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 9, "name": "emu"})

    def __len__(self):
        return 2

    def __getitem__(self, index):
        image = np.full((64, 64, 3), 90, np.uint8)
        square = Outline((np.array([[8.0, 8], [40, 8], [40, 40], [8, 40]]),))
        return Sample(image, [square] * (index == 0), np.ones(int(index == 0), int), image_id=index + 1)


@pytest.fixture
def module(ground_truth, results):
    """A module that has validated."""
    module = MaskRCNNModule(
        model=torch.nn.Linear(10, 100), categories=ground_truth["categories"], ground_truth=ground_truth
    )
    module.metric.update([1, 2], results)
    module.scores = module.metric.compute()
    return module


@pytest.fixture
def trainer(tmp_path):
    data = SimpleNamespace(datasets={"train": range(5), "val": Dataset()})
    return SimpleNamespace(
        datamodule=data,
        default_root_dir=str(tmp_path),
        sanity_checking=False,
        is_global_zero=True,
        fast_dev_run=False,
        loggers=[],
        global_step=3,
        current_epoch=0,
        world_size=1,
        num_devices=1,
        num_nodes=1,
        accelerator=SimpleNamespace(name=lambda: "cpu"),
        precision="32-true",
        log_every_n_steps=2,
        state=SimpleNamespace(fn="fit"),
    )

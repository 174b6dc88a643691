"""The recording comes from github.com/liangheming/maskrcnn, commit ceefc9a2a57034132710ffbc956b36aa4d518999, on a CPU:
names and shapes of its model by its own config, and what its eval.py detects with a narrow one and the weights drawn
here."""

import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from maskrcnn.errors import UserError
from maskrcnn.models.weights import load_weights, read_weights
from maskrcnn.ops.masks import masks_to_rle
from tests.models.weights.weight_files import saved

Factory = Callable[..., Any]

RECORDED = json.loads(Path(__file__).with_name("original.json").read_text(encoding="utf-8"))


def drawn(shapes: dict[str, list[int]], scales: dict[str, float]) -> dict[str, Tensor]:
    """Weights that a network keeps its activations with, by a generator that gives the same on every machine."""
    generator = np.random.RandomState(0)
    state = {}
    for name, shape in shapes.items():
        value = generator.standard_normal(shape)
        if name.endswith("running_var"):
            value = 0.5 + value**2
        elif name.endswith(("bn2.weight", "downsample.1.weight", "bn1.weight")):
            value = 0.6 + 0.1 * value
        elif len(shape) < 2:
            value = 0.05 * value
        else:
            value = value * (2 / prod(shape[1:])) ** 0.5
        value = value * scales.get(name, 1.0)
        state[name] = torch.from_numpy(np.asarray(value)).to(torch.float32 if shape else torch.int64)
    return state


def picture() -> Tensor:
    """Coloured fields, uint8 [3, 112, 122]."""
    fields = np.random.RandomState(1).randint(0, 256, (3, 7, 8)).astype(np.uint8)
    return torch.from_numpy(np.kron(fields, np.ones((16, 16), np.uint8))[:, :, :122].copy())


def test_every_name_and_shape_of_its_model_is_known(make_model: Factory, tmp_path: Path) -> None:
    content = {name: torch.zeros(()).expand(shape) for name, shape in RECORDED["model"].items()}
    weights = read_weights(saved({"ema": content, "map": torch.tensor(39.0), "epoch": 23}, tmp_path / "best_map.pth"))
    with torch.device("meta"):
        ours = make_model(preset="original", num_classes=80).state_dict()
    assert {name: v.shape for name, v in weights.state.items()} == {n: v.shape for n, v in ours.items()}
    assert weights.groups == {"model": "original", "model/backbone": "resnet50"}
    assert weights.config == {}
    assert len(weights.categories) == 80
    assert weights.categories[0] == {"id": 1, "name": "person"}
    assert weights.categories[11] == {"id": 13, "name": "stop sign"}
    assert weights.categories[79] == {"id": 90, "name": "toothbrush"}


def test_a_narrow_model_detects_what_it_detects_there(make_model: Factory, tmp_path: Path) -> None:
    narrow = RECORDED["narrow"]
    state = drawn(narrow["shapes"], narrow["scales"]) | {n: torch.tensor(v) for n, v in narrow["biases"].items()}
    weights = read_weights(saved({"ema": state}, tmp_path / "last.pth"))
    assert weights.categories[0] == {"id": 1, "name": "1"}
    assert weights.groups["model/backbone"] == "resnet18"
    model = make_model(
        "model/backbone=resnet18",
        *(f"model.{key}={value}" for key, value in weights.settings.items()),
        "model.input.min_size=117",
        "model.input.max_size=128",
        "model.anchors.sizes=[32,40,48,64,96]",
        "model.detections_per_image=20",
        preset="original",
        num_classes=12,
    ).eval()
    load_weights(model, weights)
    (found,) = model.predict([picture()])
    expected = narrow["detections"]
    assert len(expected) == len(found["boxes"])
    assert len({detection["label"] for detection in expected}) >= 5
    torch.testing.assert_close(found["boxes"], torch.tensor([d["box"] for d in expected]), atol=0.1, rtol=0)
    torch.testing.assert_close(found["scores"], torch.tensor([d["score"] for d in expected]), atol=1e-3, rtol=0)
    assert found["labels"].tolist() == [d["label"] + 1 for d in expected]
    rles = masks_to_rle(found["mask_probs"], found["boxes"], size=(112, 122), paste=model.roi_heads.mask_head.paste)
    wanted = [{"size": [112, 122], "counts": d["mask"].encode()} for d in expected]
    assert coco_mask.area(wanted).min() > 0
    assert coco_mask.iou(rles, wanted, [0] * len(rles)).diagonal().min() > 0.99


def test_a_file_without_a_neck_is_refused(tmp_path: Path) -> None:
    content = {n: torch.zeros(()).expand(shape) for n, shape in RECORDED["model"].items() if not n.startswith("fpn.")}
    with pytest.raises(UserError, match=r"liangheming/maskrcnn: has no FPN"):
        read_weights(saved({"ema": content}, tmp_path / "w.pth"))


def test_an_unknown_parameter_is_named(tmp_path: Path) -> None:
    content = {name: torch.zeros(()).expand(shape) for name, shape in RECORDED["model"].items()}
    content["fpn.p6.weight"] = torch.zeros(1)
    with pytest.raises(UserError, match=r"liangheming/maskrcnn: fpn\.p6\.weight is not a parameter"):
        read_weights(saved({"ema": content}, tmp_path / "w.pth"))

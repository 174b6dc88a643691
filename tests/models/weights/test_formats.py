from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn.errors import UserError
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.models.weights import CHECKPOINT_KEY, load_weights, read_weights
from tests.models.weights.weight_files import saved


def test_our_checkpoint_comes_back_without_what_is_not_the_model(model: MaskRCNN, tmp_path: Path) -> None:
    categories = [{"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}, {"id": 11, "name": "owl"}]
    config = {"model": {"num_classes": 3}, "data": {"root": "data/set"}}
    content = {
        CHECKPOINT_KEY: {"categories": categories, "config": config},
        "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()}
        | {"metric.total": torch.tensor(1.0)},
        "epoch": 3,
    }
    weights = read_weights(saved(content, tmp_path / "last.ckpt"))
    assert (weights.categories, weights.config) == (categories, config)
    assert (weights.groups, weights.settings) == ({}, {})
    assert set(weights.state) == set(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    load_weights(model, weights)
    for name, value in model.state_dict().items():
        assert torch.equal(value, content["state_dict"][f"model.{name}"]), name


@pytest.mark.parametrize(
    "content",
    [{"conv1.weight": torch.zeros(2)}, {}, torch.zeros(3), [1, 2], {"model": {"a": torch.zeros(1)}}],
    ids=["resnet", "empty", "tensor", "list", "nested"],
)
def test_weights_of_something_else_are_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(UserError, match=r"w\.pth: holds no Mask R-CNN weights that are known here"):
        read_weights(saved(content, tmp_path / "w.pth"))

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor
from torchvision.models import resnet18
from torchvision.models._api import WeightsEnum

from maskrcnn.errors import UserError
from maskrcnn.models.backbones import ResNet
from tests.models.weights.weight_files import saved

State = dict[str, Tensor]


@pytest.mark.parametrize("norm", ["bn", "frozen_bn"])
def test_backbone_weights_come_from_a_file(tmp_path: Path, norm: Any) -> None:
    torch.manual_seed(5)
    state = resnet18().state_dict()
    state["bn1.running_mean"] += 3
    backbone = ResNet(name="resnet18", weights=str(saved(state, tmp_path / "r18.pth")), norm=norm)
    found = backbone.state_dict()
    assert len(found) == (120 if norm == "bn" else 100)
    for name, value in found.items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize(
    "content",
    [
        {"conv1.weight": torch.zeros(64, 3, 7, 7)},
        {"state_dict": {"conv1.weight": torch.zeros(64, 3, 7, 7)}},
        torch.zeros(2),
    ],
    ids=["incomplete", "nested", "no_dict"],
)
def test_backbone_weights_that_do_not_fit_are_refused(tmp_path: Path, content: Any) -> None:
    path = saved(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"model\.backbone\.weights=.*w\.pth: does not fit resnet18: \w+"):
        ResNet(name="resnet18", weights=str(path))


def test_backbone_weights_of_another_shape_are_refused_with_the_parameter(tmp_path: Path) -> None:
    state = resnet18().state_dict()
    state["layer2.0.conv1.weight"] = torch.zeros(128, 64, 1, 1)
    path = saved(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"does not fit resnet18: layer2\.0\.conv1\.weight is missing or"):
        ResNet(name="resnet18", weights=str(path))


def test_a_missing_backbone_file_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^model\.backbone\.weights=.*none\.pth: no such file"):
        ResNet(name="resnet18", weights=str(tmp_path / "none.pth"))


@pytest.mark.parametrize("error", [URLError("no route to host"), OSError("disk"), RuntimeError("invalid hash")])
def test_default_weights_without_network_say_what_to_do(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(self: WeightsEnum, *args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(WeightsEnum, "get_state_dict", fail)
    with pytest.raises(UserError, match=r"model\.backbone\.weights=default: cannot download https://") as caught:
        ResNet(name="resnet18", weights="default")
    for hint in ("resnet18", "checkpoints", "local file", "null"):
        assert hint in str(caught.value)


def test_default_weights_are_checked_and_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(6)
    state = resnet18().state_dict()
    calls = []

    def give(self: WeightsEnum, *args: Any, **kwargs: Any) -> State:
        calls.append((str(self), kwargs["check_hash"]))
        return state

    monkeypatch.setattr(WeightsEnum, "get_state_dict", give)
    backbone = ResNet(name="resnet18", weights="default")
    assert calls == [("ResNet18_Weights.IMAGENET1K_V1", True)]
    assert torch.equal(backbone.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])

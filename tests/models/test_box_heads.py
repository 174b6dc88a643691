from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from maskrcnn.models.box_heads import BoxHead


def make_head(**settings: Any) -> BoxHead:
    torch.manual_seed(0)
    return BoxHead(**{"in_channels": 4, "num_classes": 3, "hidden_dim": 16, "conv_channels": 8} | settings)


def test_four_convolutions_and_one_layer_by_themselves() -> None:
    head = make_head(num_convs=4, num_fcs=1, norm="bn").train()
    channels = [4, 8, 8, 8, 8]
    layers: list[nn.Module] = []
    for a, b in pairwise(channels):
        layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
    reference = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 49, 16), nn.ReLU())
    names = [(f"convs.{i}", f"{3 * i}") for i in range(4)] + [(f"norms.{i}", f"{3 * i + 1}") for i in range(4)]
    names.append(("fc1", "13"))
    for ours, theirs in names:
        reference.get_submodule(theirs).load_state_dict(head.get_submodule(ours).state_dict())
    x = torch.randn(5, 4, 7, 7)
    hidden = reference(x)
    scores, deltas = head(x)
    torch.testing.assert_close(scores, head.scores(hidden))
    torch.testing.assert_close(deltas, head.deltas(hidden))
    torch.testing.assert_close(head.norms[3].running_var, reference[10].running_var)


def test_names_of_the_two_layer_head_are_what_they_were() -> None:
    layers = ("fc1", "fc2", "scores", "deltas")
    assert list(make_head().state_dict()) == [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]


@pytest.mark.parametrize(("norm", "biased"), [(None, True), ("bn", False), ("gn", False)])
def test_convolutions_carry_a_bias_where_no_norm_does(norm: Any, biased: bool) -> None:
    head = make_head(num_convs=2, conv_channels=32, norm=norm)
    assert [conv.bias is not None for conv in head.convs] == [biased, biased]
    names = {name for name in head.state_dict() if name.startswith("norms")}
    assert bool(names) != biased


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("norm", [None, "bn", "gn"])
@pytest.mark.parametrize("class_agnostic", [True, False])
def test_any_number_of_rois_reaches_every_parameter(count: int, norm: Any, class_agnostic: bool) -> None:
    head = make_head(num_convs=2, num_fcs=1, norm=norm, class_agnostic=class_agnostic).train()
    scores, deltas = head(torch.randn(count, 4, 7, 7))
    assert (scores.shape, deltas.shape) == ((count, 4), (count, 4 if class_agnostic else 16))
    (scores.square().sum() + deltas.square().sum()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() == (count > 0), name
    assert all(value.isfinite().all() for value in head.state_dict().values())


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_convs", -1), ("conv_channels", 0), ("num_fcs", 0), ("hidden_dim", 0), ("norm", "frozen_bn")],
)
def test_invalid_arguments_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must"):
        make_head(**{"num_convs": 1, name: value})

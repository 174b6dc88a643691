import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskrcnn.models.bifpn import BiFPN
from tests.models.test_necks import CHANNELS, make_features


def plain(**settings: Any) -> BiFPN:
    """One channel and one repeat; every convolution hands on what it gets."""
    neck = BiFPN(**{"in_channels": [1] * 4, "out_channels": 1, "repeats": 1, "norm": None} | settings)
    for conv in neck.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.dirac_(conv.weight)
    return neck


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def fuse(weights: list[float], *values: float) -> float:
    """Fast normalised fusion, then the activation."""
    kept = [max(weight, 0.0) for weight in weights]
    return silu(sum(w * v for w, v in zip(kept, values, strict=True)) / (sum(kept) + 1e-4))


def constant_features(*values: float) -> list[Tensor]:
    return [torch.full((1, 1, 64 // 2**i, 64 // 2**i), v) for i, v in enumerate(values, start=2)]


def test_one_repeat_by_hand() -> None:
    neck = plain()
    two, three = [1.0, 3.0], [2.0, -1.0, 0.5]
    with torch.no_grad():
        for fusion in (*neck.layers[0].top_down, neck.layers[0].bottom_up[-1]):
            fusion.weights.copy_(torch.tensor(two))
        for fusion in neck.layers[0].bottom_up[:-1]:
            fusion.weights.copy_(torch.tensor(three))
    c2, c3, c4, c5 = 1.0, -2.0, 3.0, 0.5
    d5 = fuse(two, c5, c5)  # p6 starts as c5
    d4 = fuse(two, c4, d5)
    d3 = fuse(two, c3, d4)
    p2 = fuse(two, c2, d3)
    p3 = fuse(three, c3, d3, p2)
    p4 = fuse(three, c4, d4, p3)
    p5 = fuse(three, c5, d5, p4)
    p6 = fuse(two, c5, p5)
    found = neck(constant_features(c2, c3, c4, c5))
    for level, expected in zip(found, (p2, p3, p4, p5, p6), strict=True):
        torch.testing.assert_close(level, torch.full_like(level, expected))
    assert [tuple(level.shape[-2:]) for level in found] == [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]


def test_a_repeat_takes_what_the_one_before_made() -> None:
    features = constant_features(1.0, 2.0, 3.0, 4.0)
    twice = plain(repeats=2)(features)
    once = plain()
    levels = once(features)
    again = once.layers[0](levels)
    for found, expected in zip(twice, again, strict=True):
        torch.testing.assert_close(found, expected)


def test_weights_that_are_all_negative_give_zero_not_nan() -> None:
    neck = plain()
    with torch.no_grad():
        for fusion in (*neck.layers[0].top_down, *neck.layers[0].bottom_up):
            fusion.weights.fill_(-1.0)
    assert all(not level.any() for level in neck(constant_features(1.0, 2.0, 3.0, 4.0)))


def test_a_map_shrinks_to_the_largest_of_its_neighbourhood() -> None:
    neck = plain()
    features = constant_features(0.0, 0.0, 0.0, 0.0)
    features[3] = torch.tensor([[[[0.0, 5.0], [1.0, 2.0]]]])
    _, _, _, p5, p6 = neck(features)
    assert p5[0, 0, 0, 1] == p5.max() > p5.min()
    assert p6.shape == (1, 1, 1, 1)
    # The largest of c5 has become p6, and the largest of p5 joins it.
    assert p6.item() == pytest.approx(fuse([1.0, 1.0], 5.0, p5.max().item()))


@pytest.mark.parametrize("size", [(64, 96), (70, 101), (33, 160)])
@pytest.mark.parametrize("upsampling", ["nearest", "bilinear"])
def test_levels_keep_their_sizes(size: tuple[int, int], upsampling: Any) -> None:
    features = make_features(*size)
    found = BiFPN(in_channels=CHANNELS, out_channels=8, repeats=2, upsampling=upsampling)(features)
    assert [level.shape for level in found[:4]] == [(2, 8, *feature.shape[-2:]) for feature in features]
    height, width = features[3].shape[-2:]
    assert found[4].shape == (2, 8, -(-height // 2), -(-width // 2))


def test_bilinear_differs_from_nearest() -> None:
    features = [torch.randn(1, 1, 64 // 2**i, 64 // 2**i) for i in range(2, 6)]
    nearest, bilinear = (plain(upsampling=mode)(features) for mode in ("nearest", "bilinear"))
    assert not torch.allclose(nearest[0], bilinear[0])


@pytest.mark.parametrize("norm", [None, "bn", "gn"])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_reach_every_parameter(norm: Any, bias: bool) -> None:
    torch.manual_seed(0)
    neck = BiFPN(in_channels=CHANNELS, out_channels=32, repeats=2, norm=norm, bias=bias)
    sum(level.square().mean() for level in neck(make_features(64, 96))).backward()
    for name, parameter in neck.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    assert any(name.endswith("pointwise.bias") for name, _ in neck.named_parameters()) == bias


def test_its_convolutions_are_separable() -> None:
    neck = BiFPN(in_channels=CHANNELS, out_channels=32)
    fusions = [fusion for layer in neck.layers for fusion in (*layer.top_down, *layer.bottom_up)]
    assert len(fusions) == 3 * 8
    for fusion in fusions:
        assert fusion.depthwise.weight.shape == (32, 1, 3, 3)
        assert fusion.pointwise.weight.shape == (32, 32, 1, 1)
        assert isinstance(fusion.norm, nn.BatchNorm2d)


@pytest.mark.parametrize(
    ("name", "value"), [("out_channels", 0), ("repeats", 0), ("norm", "frozen_bn"), ("upsampling", "bicubic")]
)
def test_invalid_arguments_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must"):
        BiFPN(**{"in_channels": CHANNELS, "out_channels": 32, name: value})

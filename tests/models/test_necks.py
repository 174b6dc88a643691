from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from maskrcnn.models.necks import FPN, PANet

CHANNELS = [4, 8, 12, 16]


def make_features(height: int, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = []
    for level, channels in enumerate(CHANNELS, start=2):
        shape = (2, channels, -(-height // 2**level), -(-width // 2**level))
        features.append(torch.randn(*shape, generator=generator))
    return features


@pytest.mark.parametrize("size", [(64, 96), (70, 101)])
def test_pyramid_equals_torchvision(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    theirs = FeaturePyramidNetwork(CHANNELS, 6, extra_blocks=LastLevelMaxPool())
    ours = FPN(in_channels=CHANNELS, out_channels=6)
    for mine, other in (
        *zip(ours.lateral, theirs.inner_blocks, strict=True),
        *zip(ours.output, theirs.layer_blocks, strict=True),
    ):
        nn.init.normal_(other[0].bias)
        mine[0].load_state_dict(other[0].state_dict())
    features = make_features(*size)
    expected = theirs(OrderedDict((str(i), f) for i, f in enumerate(features)))
    found = ours(features)
    assert len(found) == 5
    for level, want in zip(found, expected.values(), strict=True):
        torch.testing.assert_close(level, want)


def test_the_coarsest_level_takes_every_other_cell_of_the_one_before() -> None:
    found = FPN(in_channels=CHANNELS, out_channels=6)(make_features(416, 160))
    assert found[3].shape[-2:] == (13, 5)
    assert found[4].shape[-2:] == (7, 3)
    assert torch.equal(found[4], found[3][:, :, ::2, ::2])


def test_a_coarse_map_flows_into_all_finer_levels_but_not_up() -> None:
    neck = FPN(in_channels=CHANNELS, out_channels=6)
    features = make_features(64, 96)
    before = neck(features)
    features[1] = features[1] + 1
    changed = [not torch.equal(a, b) for a, b in zip(before, neck(features), strict=True)]
    assert changed == [True, True, False, False, False]


@pytest.mark.parametrize(("norm", "kind"), [("bn", nn.BatchNorm2d), ("gn", nn.GroupNorm)])
def test_a_normalisation_follows_each_convolution(norm: Any, kind: type[nn.Module]) -> None:
    neck = FPN(in_channels=CHANNELS, out_channels=32, bias=False, norm=norm)
    assert all(conv.bias is None for conv in neck.modules() if isinstance(conv, nn.Conv2d))
    for block in (*neck.lateral, *neck.output):
        assert [type(layer) for layer in block] == [nn.Conv2d, kind]
    for parameter in neck.parameters():
        nn.init.normal_(parameter) if parameter.dim() > 1 else nn.init.uniform_(parameter, 0.5, 1.5)
    features = make_features(64, 96)
    coarsest = neck.output[3](neck.lateral[3](features[3]))
    found = neck(features)
    torch.testing.assert_close(found[3], coarsest)
    merged = neck.lateral[2](features[2]) + F.interpolate(neck.lateral[3](features[3]), scale_factor=2)
    torch.testing.assert_close(found[2], neck.output[2](merged))


def test_convolutions_start_without_bias_and_with_unit_gain() -> None:
    torch.manual_seed(0)
    neck = FPN(in_channels=[256] * 4, out_channels=64)
    for block, fan_in in ((neck.lateral[0], 256), (neck.output[0], 64 * 9)):
        assert block[0].bias.count_nonzero() == 0
        # Kaiming uniform with a = 1: bound sqrt(3 / fan_in), variance 1 / fan_in.
        assert block[0].weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.03)
        assert block[0].weight.abs().max() <= (3 / fan_in) ** 0.5


def plain(kind: type[FPN], *, gain: float = 1.0, **settings: Any) -> FPN:
    """One channel; every convolution hands on what it gets, the outputs' times `gain`."""
    neck = kind(in_channels=[1] * 4, out_channels=1, **settings)
    for conv in neck.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.dirac_(conv.weight)
    with torch.no_grad():
        for block in neck.output:
            block[0].weight.mul_(gain)
    return neck


def coarse_features(coarsest: list[list[float]]) -> list[Tensor]:
    """Zeros but for c5."""
    c5 = torch.tensor([[coarsest]])
    return [*(torch.zeros(1, 1, *(2**i * side for side in c5.shape[-2:])) for i in (3, 2, 1)), c5]


def test_bilinear_upsampling_meets_the_corners() -> None:
    features = coarse_features([[0.0, 3.0], [6.0, 9.0]])
    p4 = plain(FPN, upsampling="bilinear")(features)[2][0, 0]
    torch.testing.assert_close(p4, torch.tensor([[2.0 * row + column for column in range(4)] for row in range(4)]))
    p4 = plain(FPN)(features)[2][0, 0]
    assert p4.tolist() == [[0, 0, 3, 3], [0, 0, 3, 3], [6, 6, 9, 9], [6, 6, 9, 9]]


@pytest.mark.parametrize(("top_down", "gains"), [("sum", [2, 2, 2, 2]), ("output", [16, 8, 4, 2])])
def test_the_sum_or_the_output_flows_down(top_down: Any, gains: list[int]) -> None:
    found = plain(FPN, gain=2.0, top_down=top_down, upsampling="bilinear")(coarse_features([[1.0]]))
    for level, gain in zip(found, gains, strict=False):
        torch.testing.assert_close(level, torch.full_like(level, gain))


def test_the_bottom_up_path_by_hand() -> None:
    sides = [16, 8, 4, 2]
    features = [torch.full((1, 1, side, side), value) for side, value in zip(sides, (1.0, 2.0, 3.0, -9.0), strict=True)]
    features[0] = features[0] + torch.arange(256.0).view(1, 1, 16, 16)
    # p5 -9, p4 -6, p3 -4, p2 -3 + cell; every step takes every other cell, adds and cuts below 0.
    n2 = torch.arange(256.0).view(16, 16) - 3
    n3 = (n2[::2, ::2].relu() - 4).relu()
    n4 = (n3[::2, ::2] - 6).relu()
    n5 = (n4[::2, ::2] - 9).relu()
    found = plain(PANet)(features)
    for level, expected in zip(found, (n2, n3, n4, n5, n5[::2, ::2]), strict=True):
        assert torch.equal(level[0, 0], expected)
    assert n5.count_nonzero() == 2


def test_a_fine_map_flows_up_to_all_coarser_levels() -> None:
    torch.manual_seed(0)
    neck = PANet(in_channels=CHANNELS, out_channels=6)
    features = make_features(64, 96)
    before = neck(features)
    features[0] = features[0] + 1
    assert not any(torch.equal(a, b) for a, b in zip(before, neck(features), strict=True))


@pytest.mark.parametrize("size", [(64, 96), (70, 101), (33, 160)])
@pytest.mark.parametrize("kind", [FPN, PANet])
@pytest.mark.parametrize("upsampling", ["nearest", "bilinear"])
def test_levels_keep_their_sizes(size: tuple[int, int], kind: type[FPN], upsampling: Any) -> None:
    features = make_features(*size)
    found = kind(in_channels=CHANNELS, out_channels=6, upsampling=upsampling)(features)
    assert [level.shape for level in found[:4]] == [(2, 6, *feature.shape[-2:]) for feature in features]
    height, width = features[3].shape[-2:]
    assert found[4].shape == (2, 6, -(-height // 2), -(-width // 2))


@pytest.mark.parametrize("kind", [FPN, PANet])
@pytest.mark.parametrize("norm", [None, "bn", "gn"])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_reach_every_parameter(kind: type[FPN], norm: Any, bias: bool) -> None:
    torch.manual_seed(0)
    neck = kind(in_channels=CHANNELS, out_channels=32, norm=norm, bias=bias)
    sum(level.square().mean() for level in neck(make_features(64, 96))).backward()
    for name, parameter in neck.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("kind", [FPN, PANet])
@pytest.mark.parametrize(("name", "value"), [("out_channels", 0), ("norm", "frozen_bn"), ("upsampling", "bicubic")])
def test_invalid_arguments_are_named(kind: type[FPN], name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must"):
        kind(**{"in_channels": CHANNELS, "out_channels": 32, name: value})


def test_an_unknown_top_down_path_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^top_down must be sum or output, got 'up'"):
        FPN(in_channels=CHANNELS, top_down="up")  # type: ignore[arg-type]

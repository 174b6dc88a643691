from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from maskrcnn.models.necks import FPN

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


@pytest.mark.parametrize(("name", "value"), [("out_channels", 0), ("norm", "frozen_bn")])
def test_invalid_arguments_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must"):
        FPN(**{"in_channels": CHANNELS, "out_channels": 32, name: value})

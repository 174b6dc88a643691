from typing import Any

import pytest
import torch
from torch import nn

from maskrcnn.models.mask_heads import MaskHead


def make_head(**settings: Any) -> MaskHead:
    torch.manual_seed(0)
    return MaskHead(**{"in_channels": 4, "num_classes": 3, "num_convs": 2, "channels": 8} | settings)


def test_a_norm_follows_each_convolution_but_not_the_doubling() -> None:
    head = make_head(norm="bn").train()
    reference = nn.Sequential(
        *(nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.ConvTranspose2d(8, 8, 2, stride=2), nn.ReLU(), nn.Conv2d(8, 4, 1)),
    )
    names = {"convs.0": 0, "norms.0": 1, "convs.1": 3, "norms.1": 4, "upsample": 6, "logits": 8}
    for ours, index in names.items():
        reference[index].load_state_dict(head.get_submodule(ours).state_dict())
    assert {name.rpartition(".")[0] for name in head.state_dict()} == set(names)
    x = torch.randn(3, 4, 14, 14)
    torch.testing.assert_close(head(x), reference(x))


def test_depth_and_width() -> None:
    head = make_head(num_convs=3, channels=6)
    assert [(conv.in_channels, conv.out_channels) for conv in head.convs] == [(4, 6), (6, 6), (6, 6)]
    assert make_head(num_convs=0)(torch.zeros(2, 4, 14, 14)).shape == (2, 4, 28, 28)
    assert make_head(resolution=7)(torch.zeros(2, 4, 7, 7)).shape == (2, 4, 14, 14)


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("norm", [None, "bn", "gn"])
def test_any_number_of_rois_reaches_every_parameter(count: int, norm: Any) -> None:
    head = make_head(norm=norm).train()
    logits = head(torch.randn(count, 4, 14, 14))
    assert logits.shape == (count, 4, 28, 28)
    logits.square().sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any() == (count > 0), name
    assert all(value.isfinite().all() for value in head.state_dict().values())


@pytest.mark.parametrize(("name", "value"), [("num_convs", -1), ("channels", 0), ("norm", "ln"), ("paste", "opencv")])
def test_invalid_arguments_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must"):
        make_head(**{name: value})

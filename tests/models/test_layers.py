from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskrcnn.models.layers import make_norm, normalize


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (64, 32), (32, 32), (48, 16), (16, 16), (7, 1)])
def test_group_norm_has_as_many_groups_as_fit_up_to_32(channels: int, groups: int) -> None:
    norm = make_norm("gn", channels)
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups == groups
    assert norm(torch.randn(2, channels, 3, 3)).shape == (2, channels, 3, 3)


def test_batch_norm_and_none() -> None:
    assert type(make_norm("bn", 5)) is nn.BatchNorm2d  # what trainer.sync_batchnorm converts
    x = torch.randn(2, 5, 3, 3)
    assert torch.equal(make_norm(None, 5)(x), x)


@pytest.mark.parametrize("name", ["frozen_bn", "BN", ""])
def test_an_unknown_normalisation_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="norm must be bn, gn or null"):
        make_norm(name, 8)


@pytest.mark.parametrize("name", ["bn", "gn"])
def test_nothing_can_be_normalised_in_training(name: Any) -> None:
    norm = make_norm(name, 32).train()
    before = {key: value.clone() for key, value in norm.state_dict().items() if key.startswith("running")}
    found = normalize(norm, torch.zeros(0, 32, 7, 7))
    assert found.shape == (0, 32, 7, 7)
    found.sum().backward()
    for parameter in norm.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()
    for key, value in before.items():
        assert torch.equal(norm.state_dict()[key], value)


class Gathering(nn.Module):
    """Stands for SyncBatchNorm, whose message to the other devices has the type of an empty input."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.dtype if not len(x) else torch.float32)
        return x


def test_a_device_without_maps_speaks_float32_like_the_others() -> None:
    norm = Gathering()
    for count in (0, 3):
        assert normalize(norm, torch.zeros(count, 4, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert norm.seen == [torch.float32, torch.float32]

"""Small layers that backbones, necks and heads share."""

import math
from typing import Literal

from torch import Tensor, nn

NormName = Literal["bn", "gn"]


def make_norm(name: NormName | None, channels: int) -> nn.Module:
    """Normalisation of maps [N, channels, H, W]: BatchNorm, GroupNorm or none.

    Raises:
        ValueError: There is no such normalisation.
    """
    if name is None:
        return nn.Identity()
    if name == "bn":
        return nn.BatchNorm2d(channels)
    if name == "gn":
        return group_norm(channels)
    raise ValueError(f"norm must be bn, gn or null, got {name!r}")


def group_norm(channels: int, *, eps: float = 1e-5) -> nn.GroupNorm:
    """GroupNorm of 32 groups (Wu and He 2018, section 3), fewer where 32 does not divide `channels`."""
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=eps)


def normalize(norm: nn.Module, x: Tensor) -> Tensor:
    """`norm` of maps [N, C, H, W], N = 0 among them."""
    # SyncBatchNorm gathers float32 statistics from devices that have maps, but zeros of the type of x from one that
    # has none: under mixed precision the two would not match.
    return norm(x) if x.shape[0] else norm(x.float()).to(x.dtype)

"""Necks: from the backbone's maps to the pyramid that the heads work on.

in   list of [B, C_i, H / 2^i, W / 2^i], i = 2..5 (c2..c5)
out  list of [B, out_channels, H / 2^i, W / 2^i], i = 2..6 (p2..p6)
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F


class FPN(nn.Module):
    """Feature Pyramid Network (Lin et al. 2017, section 3); P6 is a stride-2 subsampling of P5.

    Args:
        in_channels: Channels of c2..c5, from the backbone.
        out_channels: Channels of every output level.
        bias: Whether the convolutions carry a bias.
        norm: Normalisation after each convolution, `bn`, `gn` or null.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        out_channels: int = 256,
        bias: bool = True,
        norm: Literal["bn", "gn"] | None = None,
    ) -> None:
        super().__init__()
        if out_channels < 1:
            raise ValueError(f"out_channels must be at least 1, got {out_channels}")
        self.out_channels = out_channels
        self.lateral = nn.ModuleList(_conv(c, out_channels, 1, bias=bias, norm=norm) for c in in_channels)
        self.output = nn.ModuleList(_conv(out_channels, out_channels, 3, bias=bias, norm=norm) for _ in in_channels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Pyramid maps p2..p6, finest first."""
        top_down = self.lateral[-1](features[-1])
        outputs = [self.output[-1](top_down)]
        for level in range(len(features) - 2, -1, -1):
            lateral = self.lateral[level](features[level])
            top_down = lateral + F.interpolate(top_down, size=lateral.shape[-2:], mode="nearest")
            outputs.insert(0, self.output[level](top_down))
        outputs.append(F.max_pool2d(outputs[-1], kernel_size=1, stride=2))
        return outputs


def _conv(in_channels: int, out_channels: int, kernel: int, *, bias: bool, norm: str | None) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    layers: list[nn.Module] = [conv]
    if norm == "bn":
        layers.append(nn.BatchNorm2d(out_channels))
    elif norm == "gn":
        layers.append(nn.GroupNorm(32, out_channels))
    elif norm is not None:
        raise ValueError(f"norm must be bn, gn or null, got {norm!r}")
    return nn.Sequential(*layers)

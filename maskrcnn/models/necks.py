"""Necks: from the backbone's maps to the pyramid that the heads work on.

in   list of [B, C_i, H / 2^i, W / 2^i], i = 2..5 (c2..c5)
out  list of [B, out_channels, H / 2^i, W / 2^i], i = 2..6 (p2..p6)
"""

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn.models.layers import NormName, make_norm

Upsampling = Literal["nearest", "bilinear"]
TopDown = Literal["sum", "output"]


class FPN(nn.Module):
    """Feature Pyramid Network (Lin et al. 2017, section 3); P6 is a stride-2 subsampling of P5.

    Args:
        in_channels: Channels of c2..c5, from the backbone.
        out_channels: Channels of every output level.
        bias: Whether the convolutions carry a bias.
        norm: Normalisation after each convolution, `bn`, `gn` or null.
        upsampling: How a map grows to the next finer level, `nearest` or `bilinear` (corners aligned).
        top_down: What flows to the next finer level: the `sum` there, as in the paper, or the `output` that the
            3 x 3 convolution makes of it.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        out_channels: int = 256,
        bias: bool = True,
        norm: NormName | None = None,
        upsampling: Upsampling = "nearest",
        top_down: TopDown = "sum",
    ) -> None:
        super().__init__()
        check_neck(out_channels, upsampling)
        if top_down not in get_args(TopDown):
            raise ValueError(f"top_down must be {' or '.join(get_args(TopDown))}, got {top_down!r}")
        self.out_channels = out_channels
        self.upsampling = upsampling
        self.top_down = top_down
        self.lateral = nn.ModuleList(conv_norm(c, out_channels, 1, bias=bias, norm=norm) for c in in_channels)
        self.output = nn.ModuleList(conv_norm(out_channels, out_channels, 3, bias=bias, norm=norm) for _ in in_channels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Pyramid maps p2..p6, finest first."""
        return with_p6(self._pyramid(features))

    def _pyramid(self, features: list[Tensor]) -> list[Tensor]:
        """p2..p5."""
        merged = self.lateral[-1](features[-1])
        outputs = [self.output[-1](merged)]
        for level in range(len(features) - 2, -1, -1):
            lateral = self.lateral[level](features[level])
            merged = lateral + upsample(merged if self.top_down == "sum" else outputs[0], lateral, self.upsampling)
            outputs.insert(0, self.output[level](merged))
        return outputs


class PANet(FPN):
    """FPN with a second, bottom-up path (Liu et al. 2018, section 3.1); P6 is a stride-2 subsampling of the last N5.

    Args:
        in_channels: Channels of c2..c5, from the backbone.
        out_channels: Channels of every output level.
        bias: Whether the convolutions carry a bias.
        norm: Normalisation after each convolution, `bn`, `gn` or null.
        upsampling: How a map grows to the next finer level, `nearest` or `bilinear` (corners aligned).
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        out_channels: int = 256,
        bias: bool = True,
        norm: NormName | None = None,
        upsampling: Upsampling = "nearest",
    ) -> None:
        super().__init__(
            in_channels=in_channels, out_channels=out_channels, bias=bias, norm=norm, upsampling=upsampling
        )
        steps = range(len(in_channels) - 1)
        self.down, self.merge = (
            nn.ModuleList(conv_norm(out_channels, out_channels, 3, stride=stride, bias=bias, norm=norm) for _ in steps)
            for stride in (2, 1)
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Pyramid maps n2..n5 and p6, finest first."""
        finest, *coarser = self._pyramid(features)
        outputs = [finest]
        for down, merge, level in zip(self.down, self.merge, coarser, strict=True):
            outputs.append(F.relu(merge(level + F.relu(down(outputs[-1])))))
        return with_p6(outputs)


def check_neck(out_channels: int, upsampling: str) -> None:
    """Raise ValueError where a neck cannot have these."""
    if out_channels < 1:
        raise ValueError(f"out_channels must be at least 1, got {out_channels}")
    if upsampling not in get_args(Upsampling):
        raise ValueError(f"upsampling must be {' or '.join(get_args(Upsampling))}, got {upsampling!r}")


def conv_norm(
    in_channels: int, out_channels: int, kernel: int, *, bias: bool, norm: NormName | None, stride: int = 1
) -> nn.Sequential:
    """A convolution that keeps the size up to its stride, and its normalisation."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=bias)
    init_conv(conv)
    return nn.Sequential(conv, make_norm(norm, out_channels))


def init_conv(conv: nn.Conv2d) -> None:
    """Unit gain, no bias."""
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def upsample(x: Tensor, like: Tensor, mode: Upsampling) -> Tensor:
    """`x` [B, C, H, W] at the height and width of `like`."""
    return F.interpolate(x, size=like.shape[-2:], mode=mode, align_corners=True if mode == "bilinear" else None)


def with_p6(levels: list[Tensor]) -> list[Tensor]:
    """p2..p5 and, as p6, every other cell of p5."""
    return [*levels, F.max_pool2d(levels[-1], kernel_size=1, stride=2)]

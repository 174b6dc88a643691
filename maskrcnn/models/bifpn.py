"""BiFPN: a neck that passes its levels down and up several times, and learns how much of each to take.

in   list of [B, C_i, H / 2^i, W / 2^i], i = 2..5 (c2..c5)
out  list of [B, out_channels, H / 2^i, W / 2^i], i = 2..6 (p2..p6)
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn.models.layers import NormName, make_norm
from maskrcnn.models.necks import Upsampling, check_neck, conv_norm, init_conv, upsample

# Keeps the weights of a fusion finite where all are 0 (Tan et al. 2020, section 3.3).
_EPSILON = 1e-4


class BiFPN(nn.Module):
    """Bidirectional feature pyramid with fast normalised fusion (Tan et al. 2020, section 3).

    P6 starts from c5 as its own 1 x 1 convolution and a 3 x 3 max pooling of stride 2; the same pooling takes a
    map to the next coarser level.

    Args:
        in_channels: Channels of c2..c5, from the backbone.
        out_channels: Channels of every output level.
        repeats: How many times the levels are passed down and up.
        bias: Whether the 1 x 1 convolutions carry a bias.
        norm: Normalisation after each 1 x 1 convolution, `bn`, `gn` or null.
        upsampling: How a map grows to the next finer level, `nearest` or `bilinear` (corners aligned).
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        out_channels: int = 256,
        repeats: int = 3,
        bias: bool = False,
        norm: NormName | None = "bn",
        upsampling: Upsampling = "nearest",
    ) -> None:
        super().__init__()
        check_neck(out_channels, upsampling)
        if repeats < 1:
            raise ValueError(f"repeats must be at least 1, got {repeats}")
        self.out_channels = out_channels
        self.lateral = nn.ModuleList(
            conv_norm(c, out_channels, 1, bias=bias, norm=norm) for c in (*in_channels, in_channels[-1])
        )
        self.layers = nn.ModuleList(
            _Layer(len(self.lateral), out_channels, bias=bias, norm=norm, upsampling=upsampling) for _ in range(repeats)
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Pyramid maps p2..p6, finest first."""
        levels = [lateral(x) for lateral, x in zip(self.lateral, (*features, features[-1]), strict=True)]
        levels[-1] = _halve(levels[-1])
        for layer in self.layers:
            levels = layer(levels)
        return levels


class _Layer(nn.Module):
    """One way down and one way up (Tan et al. 2020, figure 2 d).

    Args:
        num_levels: Levels.
        channels: Channels of every level.
        bias, norm: Of each 1 x 1 convolution.
        upsampling: On the way down.
    """

    def __init__(
        self, num_levels: int, channels: int, *, bias: bool, norm: NormName | None, upsampling: Upsampling
    ) -> None:
        super().__init__()
        self.upsampling = upsampling

        def fusion(inputs: int) -> _Fusion:
            return _Fusion(inputs, channels, bias=bias, norm=norm)

        self.top_down = nn.ModuleList(fusion(2) for _ in range(num_levels - 1))
        # The coarsest level has been on no way down: there its input and its output so far are one.
        self.bottom_up = nn.ModuleList([*(fusion(3) for _ in range(num_levels - 2)), fusion(2)])

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        down = [levels[-1]]
        for level, fusion in reversed(list(zip(levels[:-1], self.top_down, strict=True))):
            down.insert(0, fusion(level, upsample(down[0], level, self.upsampling)))
        outputs = down[:1]
        for level, middle, fusion in zip(levels[1:-1], down[1:-1], self.bottom_up[:-1], strict=True):
            outputs.append(fusion(level, middle, _halve(outputs[-1])))
        outputs.append(self.bottom_up[-1](levels[-1], _halve(outputs[-1])))
        return outputs


class _Fusion(nn.Module):
    """Weighted mean of maps (fast normalised fusion), SiLU, depthwise-separable convolution, normalisation."""

    def __init__(self, inputs: int, channels: int, *, bias: bool, norm: NormName | None) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(inputs))
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=bias)
        self.norm = make_norm(norm, channels)
        init_conv(self.depthwise)
        init_conv(self.pointwise)

    def forward(self, *maps: Tensor) -> Tensor:
        weights = F.relu(self.weights)
        weights = weights / (weights.sum() + _EPSILON)
        zero = maps[0].new_zeros(())
        fused = sum((weight * x for weight, x in zip(weights, maps, strict=True)), start=zero)
        return self.norm(self.pointwise(self.depthwise(F.silu(fused))))


def _halve(x: Tensor) -> Tensor:
    return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)

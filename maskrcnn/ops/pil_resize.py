"""Pillow's bilinear resizing on tensors of any device, to the very level.

levels  uint8 or whole numbers [..., h, w] in 0..255
"""

import math

import torch
from torch import Tensor

# Pillow computes with whole numbers: weights times this.
_ONE = 2**22


def pil_resize(levels: Tensor, shape: tuple[int, int]) -> Tensor:
    """int32 [..., *shape] as `Image.resize(..., Image.Resampling.BILINEAR)` has it: along the rows first, then down.

    Pillow 13 takes the other order for some pictures that become lower: one level more or less then.
    """
    return _resize(_resize(levels.int(), -1, shape[1]), -2, shape[0])


def _resize(levels: Tensor, dim: int, size: int) -> Tensor:
    """Along one dimension, antialiased where it shrinks."""
    old = levels.shape[dim]
    if old == size:
        return levels
    reach = max(old / size, 1.0)  # of the triangle, to either side
    centre = (torch.arange(size, dtype=torch.float64)[:, None] + 0.5) * (old / size)
    taps = (centre - reach + 0.5).floor().clamp(min=0) + torch.arange(2 * math.ceil(reach) + 1)
    weights = (1 - ((taps - centre + 0.5) / reach).abs()).clamp(min=0)
    weights = torch.where(taps < (centre + reach + 0.5).floor().clamp(max=old), weights, 0)
    weights = (weights / weights.sum(dim=1, keepdim=True) * _ONE + 0.5).int().to(levels.device)
    taps = taps.clamp(max=old - 1).int().to(levels.device)
    resized = torch.tensor(_ONE // 2, dtype=torch.int32, device=levels.device)
    for tap, weight in zip(taps.T, weights.T, strict=True):
        resized = resized + levels.index_select(dim, tap) * weight.view(-1, *[1] * (-1 - dim))
    return resized // _ONE

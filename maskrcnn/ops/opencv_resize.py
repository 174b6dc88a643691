"""OpenCV's bilinear resizing on tensors of any device, to the very level.

levels  uint8 or whole numbers [..., h, w] in 0..255
"""

import torch
from torch import Tensor

# OpenCV computes with whole numbers: weights times this.
_ONE = 2**11


def opencv_resize(levels: Tensor, shape: tuple[int, int]) -> Tensor:
    """int32 [..., *shape] as `cv2.resize` has it with `INTER_LINEAR`: along the rows first, then down."""
    if levels.shape[-2:] == shape:
        return levels.int()
    left, right, weight_left, weight_right = _taps(levels.shape[-1], shape[1], levels.device, outside=False)
    levels = levels.int()
    rows = levels[..., left] * weight_left + levels[..., right] * weight_right
    top, bottom, weight_top, weight_bottom = _taps(levels.shape[-2], shape[0], levels.device, outside=True)
    rows = rows >> 4  # bits that it cuts off between the passes, and 16 more from each product
    above = rows[..., top, :] * weight_top[:, None] >> 16
    below = rows[..., bottom, :] * weight_bottom[:, None] >> 16
    return above + below + 2 >> 2


def _taps(old: int, new: int, device: torch.device, *, outside: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each of `new` places along a side: the two places of `old` it lies between, and their weights.

    Beyond the border both are the last place. `outside` they keep the weights of their own, which matters where
    products are cut off one by one; else one of them has the whole weight.
    """
    place = ((torch.arange(new, dtype=torch.float64) + 0.5) * (1 / (new / old)) - 0.5).float()
    first = place.floor()
    part = place - first
    if not outside:
        part = torch.where((first < 0) | (first >= old - 1), 0, part)
    places = [(first + step).clamp(0, old - 1).long().to(device) for step in (0, 1)]
    weights = [(weight * _ONE).round().int().to(device) for weight in (1 - part, part)]
    return places[0], places[1], weights[0], weights[1]

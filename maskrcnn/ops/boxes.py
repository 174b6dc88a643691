"""Box arithmetic.

boxes   float [..., 4], x1 y1 x2 y2, absolute pixels
deltas  float [..., 4], dx dy dw dh relative to a reference box (anchor or proposal), scaled by `weights`
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Keeps exp(dw) from overflowing: a delta enlarges a reference box by at most 1000 / 16.
MAX_LOG_SCALE = math.log(1000.0 / 16)


def encode_boxes(boxes: Tensor, references: Tensor, weights: Sequence[float]) -> Tensor:
    """Deltas [N, 4] that turn `references` [N, 4] into `boxes` [N, 4] (R-CNN, appendix C, eqs. 6-9)."""
    wx, wy, ww, wh = weights
    ref_w = references[:, 2] - references[:, 0]
    ref_h = references[:, 3] - references[:, 1]
    ref_cx = references[:, 0] + 0.5 * ref_w
    ref_cy = references[:, 1] + 0.5 * ref_h
    width = boxes[:, 2] - boxes[:, 0]
    height = boxes[:, 3] - boxes[:, 1]
    cx = boxes[:, 0] + 0.5 * width
    cy = boxes[:, 1] + 0.5 * height
    return torch.stack(
        (
            wx * (cx - ref_cx) / ref_w,
            wy * (cy - ref_cy) / ref_h,
            ww * torch.log(width / ref_w),
            wh * torch.log(height / ref_h),
        ),
        dim=1,
    )


def decode_boxes(deltas: Tensor, references: Tensor, weights: Sequence[float]) -> Tensor:
    """Boxes [N, ..., 4] that `deltas` [N, ..., 4] make of `references` [N, 4] (R-CNN, appendix C, eqs. 1-4).

    Computed in float32 whatever the precision of the deltas: bfloat16 has 3 significant digits, too few
    for a pixel position.
    """
    deltas = deltas.float()
    references = references.float().reshape(references.shape[0], *(1,) * (deltas.dim() - 2), 4)
    wx, wy, ww, wh = weights
    ref_w = references[..., 2] - references[..., 0]
    ref_h = references[..., 3] - references[..., 1]
    ref_cx = references[..., 0] + 0.5 * ref_w
    ref_cy = references[..., 1] + 0.5 * ref_h
    cx = deltas[..., 0] / wx * ref_w + ref_cx
    cy = deltas[..., 1] / wy * ref_h + ref_cy
    half_w = 0.5 * torch.exp((deltas[..., 2] / ww).clamp(max=MAX_LOG_SCALE)) * ref_w
    half_h = 0.5 * torch.exp((deltas[..., 3] / wh).clamp(max=MAX_LOG_SCALE)) * ref_h
    return torch.stack((cx - half_w, cy - half_h, cx + half_w, cy + half_h), dim=-1)


def scale_boxes(boxes: Tensor, *, old_size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Boxes [N, 4] of a picture of `old_size` (height, width) on the same picture resized to `new_size`."""
    ratio_y = torch.tensor(new_size[0], dtype=torch.float32) / old_size[0]
    ratio_x = torch.tensor(new_size[1], dtype=torch.float32) / old_size[1]
    return boxes * torch.stack((ratio_x, ratio_y, ratio_x, ratio_y)).to(boxes.device)


def flip_boxes(boxes: Tensor, width: int) -> Tensor:
    """Boxes [N, 4] of a picture so wide on its mirror image."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack((width - x2, y1, width - x1, y2), dim=-1)


def check_boxes(boxes: Sequence[Tensor]) -> None:
    """Refuse boxes without a size, which make the loss NaN many steps before anyone sees it.

    On an accelerator the host would have to wait for them: those are taken as checked before they went there.

    Args:
        boxes: [G_i, 4] of each picture.

    Raises:
        ValueError: One has no positive width and height.
    """
    for index, own in enumerate(boxes):
        good = (own[:, 2:] > own[:, :2]).all(dim=1)
        if own.is_cpu and not good.all():
            box = own[~good][0].tolist()
            raise ValueError(f"invalid box {box} for target at index {index}: width and height must be positive")

"""RoIAlign as a weighted sum of cells, each with all its channels (Mask R-CNN, section 3)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def gathered_roi_align(  # noqa: PLR0917 - the arguments of torchvision's
    feature: Tensor, rois: Tensor, output_size: int, spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    """What torchvision's `roi_align` gives, several times faster on a CPU.

    There all channels of a cell are read together, forward and backward, in place of each channel by itself.

    Args:
        feature: float32 [B, C, H, W], best with the channels of a cell together in memory.
        rois: [R, 5], the number of its picture and x0, y0, x1, y1 of each.
        output_size: Bins along each side.
        spatial_scale: Cells per pixel of the boxes.
        sampling_ratio: Sampling points per bin and axis, at least 1.
        aligned: Shift the samples by half a cell.

    Returns:
        [R, C, output_size, output_size].
    """
    height, width = feature.shape[-2:]
    corners = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    sides = corners[:, 2:] - corners[:, :2]
    sides = sides if aligned else sides.clamp(min=1)
    column, column_weight = _samples(corners[:, 0], sides[:, 0], width, output_size, sampling_ratio)
    row, row_weight = _samples(corners[:, 1], sides[:, 1], height, output_size, sampling_ratio)
    row = (rois[:, 0].long()[:, None, None] * height + row) * width

    # [R, bins down, bins across, samples down, samples across]
    index = row[:, :, None, :, None] + column[:, None, :, None, :]
    weight = row_weight[:, :, None, :, None] * column_weight[:, None, :, None, :] / sampling_ratio**2
    index, weight = (one.flatten(3).flatten(0, 2) for one in (index, weight))
    cells = feature.permute(0, 2, 3, 1).flatten(0, 2).contiguous()
    pooled = F.embedding_bag(index, cells, per_sample_weights=weight, mode="sum")
    return pooled.unflatten(0, (-1, output_size, output_size)).permute(0, 3, 1, 2)


def _samples(start: Tensor, length: Tensor, limit: int, bins: int, per_bin: int) -> tuple[Tensor, Tensor]:
    """The cells along one axis that each bin reads, two for a sample, and their weights: [R, bins, 2 * per_bin].

    Args:
        start: [R], where each RoI begins, in cells.
        length: [R], of the RoIs, in cells.
        limit: How many cells there are.
        bins: Of a RoI.
        per_bin: Samples in each of them.
    """
    side = (length / bins)[:, None, None]
    # In torchvision's order of operations, so that samples lie where they lie there to the last bit.
    bin_start = start[:, None, None] + torch.arange(bins, device=start.device)[:, None] * side
    position = bin_start + (torch.arange(per_bin, device=start.device) + 0.5) * side / per_bin
    inside = (position >= -1) & (position <= limit)
    position = position.clamp(min=0)
    low = position.long().clamp(max=limit - 1)
    high = (low + 1).clamp(max=limit - 1)
    far = torch.where(high > low, position - low, 0.0)
    weight = torch.stack((1 - far, far), dim=-1) * inside[..., None]
    return torch.stack((low, high), dim=-1).flatten(-2), weight.flatten(-2)

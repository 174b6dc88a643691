"""RoIAlign over a feature pyramid.

features  list of [B, C, H_l, W_l], finest first, with one stride each
boxes     list of B tensors [R_i, 4] in pixels of the padded picture
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align

from maskrcnn.ops.roi_align import gathered_roi_align


class RoIAlign:
    """Pools a fixed-size map for each box from the pyramid level that suits its size (Mask R-CNN, section 3).

    Args:
        num_levels: Levels that are pooled from, counted from the finest (P2..P5).
        sampling_ratio: Sampling points per bin and axis; 0 takes as many as the bin has pixels.
        aligned: Shift the samples by half a pixel, so that they lie where the box is (detectron2);
            torchvision's models are trained without the shift.
        canonical_size: Side in pixels of a box that is pooled from `canonical_level`.
        canonical_level: The level, P4 being 4, of a box of `canonical_size` (FPN, eq. 1).
        gather: On a CPU and with a fixed `sampling_ratio`, pool all channels together, several times as fast. Sums are
            taken in another order, so that float32 differs from torchvision's in the last digits.
    """

    def __init__(
        self,
        *,
        num_levels: int = 4,
        sampling_ratio: int = 2,
        aligned: bool = False,
        canonical_size: float = 224,
        canonical_level: int = 4,
        gather: bool = False,
    ) -> None:
        if num_levels < 1:
            raise ValueError(f"num_levels must be at least 1, got {num_levels}")
        if canonical_size <= 0:
            raise ValueError(f"canonical_size must be positive, got {canonical_size}")
        self.num_levels = num_levels
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.canonical_size = canonical_size
        self.canonical_level = canonical_level
        self.gather = gather

    def levels(self, boxes: Tensor, strides: Sequence[int]) -> Tensor:
        """Index [N] into `strides` of the level that each box [N, 4] is pooled from (FPN, eq. 1)."""
        finest = strides[0].bit_length() - 1
        sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        level = torch.floor(self.canonical_level + torch.log2(sides / self.canonical_size) + 1e-6)
        return (level.clamp(finest, finest + len(strides) - 1) - finest).long()

    def __call__(
        self, features: list[Tensor], boxes: list[Tensor], *, strides: Sequence[int], output_size: int
    ) -> Tensor:
        """Maps [sum R_i, C, output_size, output_size], in the order of `boxes`."""
        features, strides = features[: self.num_levels], strides[: self.num_levels]
        flat = torch.cat(boxes)
        image_index = torch.cat([box.new_full((len(box), 1), i) for i, box in enumerate(boxes)])
        rois = torch.cat((image_index, flat), dim=1)
        levels = self.levels(flat, strides)
        pool = gathered_roi_align if self.gather and self.sampling_ratio > 0 and flat.is_cpu else roi_align
        rows, pooled = [], []
        for index, (feature, stride) in enumerate(zip(features, strides, strict=True)):
            # A level without boxes is pooled too: that keeps its features in the graph, which plain DDP needs.
            chosen = torch.where(levels == index)[0]
            rows.append(chosen)
            # In float32: bfloat16 would place boxes only to the nearest 4 pixels.
            pooled.append(
                pool(feature.float(), rois[chosen], output_size, 1 / stride, self.sampling_ratio, self.aligned)
            )
        return torch.cat(pooled)[torch.cat(rows).argsort()]

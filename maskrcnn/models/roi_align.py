"""RoIAlign over a feature pyramid.

features  list of [B, C, H_l, W_l], finest first, with one stride each
boxes     list of B tensors [R_i, 4] in pixels of the padded picture, or [R, 5] with the number of the picture first
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from maskrcnn.ops.roi_align import gathered_roi_align
from maskrcnn.ops.slots import waits

# Of a box that lies beyond every picture, all round which there is nothing to read.
_BEYOND = -1e6


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
        self, features: list[Tensor], boxes: list[Tensor] | Tensor, *, strides: Sequence[int], output_size: int
    ) -> Tensor:
        """Maps [R, C, output_size, output_size], in the order of `boxes`."""
        features, strides = features[: self.num_levels], strides[: self.num_levels]
        rois = boxes if isinstance(boxes, Tensor) else to_rois(boxes)
        levels = self.levels(rois[:, 1:], strides)
        pool = self._pool_all if waits(rois) else self._pool_each
        return pool(features, rois, levels, strides, output_size)

    def _pool_each(
        self, features: list[Tensor], rois: Tensor, levels: Tensor, strides: Sequence[int], output_size: int
    ) -> Tensor:
        """From each level those that belong to it, on a CPU."""
        pool = gathered_roi_align if self.gather and self.sampling_ratio > 0 else roi_align
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

    def _pool_all(
        self, features: list[Tensor], rois: Tensor, levels: Tensor, strides: Sequence[int], output_size: int
    ) -> Tensor:
        """From each level all of them, so that no shape depends on the boxes.

        Those of other levels lie beyond the picture there: they read nothing, add exactly 0 and get no gradient, so
        that a level costs hardly more than its own boxes.
        """

        def pooled(index: int) -> Tensor:
            corners = torch.where((levels == index)[:, None], rois[:, 1:], _BEYOND)
            own = torch.cat((rois[:, :1], corners), dim=1)
            feature, scale = features[index].float(), 1 / strides[index]
            return roi_align(feature, own, output_size, scale, self.sampling_ratio, self.aligned)

        return reduce(Tensor.add_, map(pooled, range(len(features))))  # which holds two of them at a time


def to_rois(boxes: Sequence[Tensor]) -> Tensor:
    """Boxes B x [R_i, 4] as [R, 5], each with the number of its picture."""
    return torch.cat([F.pad(box, (1, 0), value=float(image)) for image, box in enumerate(boxes)])

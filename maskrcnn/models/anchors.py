"""Anchors: the reference boxes that the RPN refines.

level l has H_l x W_l cells with A anchors each; all levels together [sum H_l * W_l * A, 4],
ordered by level, row, column, anchor (ratio-major: all sizes of the first ratio come first).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class AnchorGenerator(nn.Module):
    """Anchors for every cell of a feature pyramid (Faster R-CNN, section 3.1.1; FPN, section 4.1).

    Args:
        sizes: Side in pixels of a square anchor, one per level.
        scales: Factors on `sizes`; each size comes at each scale.
        ratios: Height / width.
        strides: Pixels from one cell to the next, one per level; null derives them from the padded
            picture, height // rows, as torchvision does (61 instead of 64 on a P6 of 13 rows).
        offset: Where in its cell an anchor has its centre, in strides: 0 for the top left corner, as torchvision and
            detectron2 have it, 0.5 for the middle.
        round: Round the corners to whole pixels, as torchvision does; detectron2 does not.
    """

    def __init__(
        self,
        *,
        sizes: Sequence[float] = (32, 64, 128, 256, 512),
        scales: Sequence[float] = (1.0,),
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        strides: Sequence[int] | None = (4, 8, 16, 32, 64),
        offset: float = 0.0,
        round: bool = True,
    ) -> None:
        super().__init__()
        for name, values in (("sizes", sizes), ("scales", scales), ("ratios", ratios), ("strides", strides or (1,))):
            if not values or min(values) <= 0:
                raise ValueError(f"{name} must be a list of positive numbers, got {list(values)}")
        if strides is not None and len(strides) != len(sizes):
            raise ValueError(f"strides must have one entry per level of sizes ({len(sizes)}), got {list(strides)}")
        if not 0 <= offset < 1:
            raise ValueError(f"offset must be at least 0 and below 1, got {offset}")
        self.strides = strides
        self.offset = offset
        self.num_levels = len(sizes)
        self.num_anchors = len(scales) * len(ratios)
        for level, size in enumerate(sizes):
            cell = _cell_anchors(size, scales, ratios)
            self.register_buffer(f"cell_{level}", cell.round() if round else cell, persistent=False)

    def forward(self, features: list[Tensor], image_size: tuple[int, int]) -> list[Tensor]:
        """Anchors of each level [H_l * W_l * A, 4] for padded pictures of `image_size` (height, width)."""
        if len(features) != self.num_levels:
            raise ValueError(
                f"model.anchors.sizes has {self.num_levels} levels, the neck gives {len(features)}: make them equal"
            )
        anchors = []
        for level, feature in enumerate(features):
            cell = self.get_buffer(f"cell_{level}")
            rows, columns = feature.shape[-2:]
            if self.strides is None:
                stride_y, stride_x = image_size[0] // rows, image_size[1] // columns
            else:
                stride_y = stride_x = self.strides[level]
            y = (torch.arange(rows, dtype=torch.float32, device=cell.device) + self.offset) * stride_y
            x = (torch.arange(columns, dtype=torch.float32, device=cell.device) + self.offset) * stride_x
            grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
            shifts = torch.stack((grid_x, grid_y, grid_x, grid_y), dim=-1).reshape(-1, 1, 4)
            anchors.append((shifts + cell).reshape(-1, 4))
        return anchors


def _cell_anchors(size: float, scales: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Anchors [A, 4] around the origin, all of the area (size * scale) ** 2."""
    sides = torch.tensor([size * scale for scale in scales], dtype=torch.float32)
    root = torch.tensor(list(ratios), dtype=torch.float32).sqrt()
    widths = ((1 / root)[:, None] * sides[None]).flatten()
    heights = (root[:, None] * sides[None]).flatten()
    return torch.stack((-widths, -heights, widths, heights), dim=1) / 2

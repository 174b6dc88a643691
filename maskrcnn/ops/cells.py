"""A feature pyramid as one table of cells, from which any of them are gathered at once."""

from typing import NamedTuple

import torch
from torch import Tensor


class Cells(NamedTuple):
    """All cells of a pyramid of L maps [B, C, H_l, W_l], level by level, picture by picture, row by row.

    Attributes:
        rows: [sum of B * H_l * W_l, C].
        shapes: int64 [L, 2], (H_l, W_l).
        first: int64 [L], where each level begins.
    """

    rows: Tensor
    shapes: Tensor
    first: Tensor


def to_cells(features: list[Tensor]) -> Cells:
    """The cells of `features`, through which gradients reach all of them."""
    rows = torch.cat([feature.permute(0, 2, 3, 1).flatten(0, 2) for feature in features])
    # Filled in on the device: a copy from the host would make that wait.
    shapes = torch.stack([rows.new_full((), side, dtype=torch.int64) for x in features for side in x.shape[-2:]])
    shapes = shapes.view(-1, 2)
    counts = len(features[0]) * shapes.prod(dim=1)
    return Cells(rows, shapes, counts.cumsum(dim=0) - counts)

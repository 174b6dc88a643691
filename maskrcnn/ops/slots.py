"""A fixed number of slots for things of which each batch has another number.

Shapes that depend on numbers make the host wait until an accelerator has computed them, and the accelerator then waits
for the host. So the number of slots is fixed, some are empty, and what comes out of those is given no weight.
On a CPU there is nothing to wait for: empty slots are left out, here and nowhere else.
"""

import torch
from torch import Tensor

_WITHOUT_WAITING = ("cpu",)  # device types


def waits(values: Tensor) -> bool:
    """Whether the host has to wait for a shape that depends on these values."""
    return values.device.type not in _WITHOUT_WAITING


def occupied(filled: Tensor) -> tuple[Tensor, Tensor]:
    """The filled ones of a batch's slots, in order.

    On an accelerator they come round again until there are as many as slots: so normalisation over a batch sees the
    same maps a few times, not those of empty slots. Without any, the first slot stands for all.

    Args:
        filled: bool, of any shape; slots are counted through all its dimensions.

    Returns:
        The numbers int64 [S] of slots that a network is to see, and bool [S], False where it has seen one before.
    """
    filled = filled.flatten()
    if not waits(filled):
        index = filled.nonzero()[:, 0]
        return index, torch.ones_like(index, dtype=torch.bool)
    count, place = filled.sum(), torch.arange(len(filled), device=filled.device)
    order = torch.zeros_like(place).scatter(0, torch.where(filled, filled.cumsum(0) - 1, len(filled) - 1), place)
    return order[place % count.clamp(min=1)], place < count


def put_back(values: Tensor, filled: Tensor) -> Tensor:
    """What was computed of `occupied(filled)` in its slots again, zeros in the empty ones.

    Args:
        values: [S, ...], in the order of `occupied`.
        filled: bool [...].

    Returns:
        [*filled.shape, ...].
    """
    place = torch.where(filled, filled.flatten().cumsum(0).view_as(filled) - 1, len(values))
    return torch.cat((values, values.new_zeros(1, *values.shape[1:])))[place]


def trimmed(values: Tensor, filled: Tensor) -> list[Tensor]:
    """The values of each picture, on an accelerator with zeros in its empty slots.

    Args:
        values: [B, S, C].
        filled: bool [B, S].

    Returns:
        B x [S_i, C], S_i <= S.
    """
    if not waits(filled):
        return [one[full] for one, full in zip(values, filled, strict=True)]
    return list(values.where(filled[..., None], 0))

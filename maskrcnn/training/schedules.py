"""Learning-rate schedules, each a factor on `optim.lr` per optimizer step."""

import math
from bisect import bisect_right
from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def cosine(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
    restarts: Sequence[float] = (),
    gamma: float = 1.0,
    warmup_epochs: float = 0.0,
    warmup_factor: float = 0.001,
    floor: float = 0.1,
) -> LambdaLR:
    """Half a cosine from 1 to `floor` over the run, or up to each of `restarts` and the end (SGDR, eq. 5).

    Args:
        optimizer: Whose learning rates are scheduled.
        total_steps: Steps of the whole run.
        steps_per_epoch: Steps of an epoch.
        restarts: Epochs after which it starts again; none for a single one.
        gamma: Factor on each further cosine.
        warmup_epochs: Epochs of linear rise before the first.
        warmup_factor: Where the rise starts.
        floor: Factor at the end of each cosine.
    """
    _check_warmup(warmup_epochs, warmup_factor)
    if not 0 <= floor <= 1:
        raise ValueError(f"floor must be between 0 and 1, got {floor}")
    if not gamma > 0:
        raise ValueError(f"gamma must be above 0, got {gamma}")
    if any(not epoch > warmup_epochs for epoch in restarts):
        raise ValueError(f"restarts must come after the warm-up ({warmup_epochs} epochs), got {list(restarts)}")
    again = sorted(round(epoch * steps_per_epoch) for epoch in restarts)
    starts = [round(warmup_epochs * steps_per_epoch), *(step for step in again if step < total_steps)]
    ends = [*starts[1:], total_steps]

    def factor(step: int) -> float:
        if step < starts[0]:
            return _rise(step, starts[0], warmup_factor)
        i = bisect_right(starts, step) - 1
        progress = min((step - starts[i]) / max(ends[i] - starts[i], 1), 1.0)
        return gamma**i * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))

    return LambdaLR(optimizer, factor)


def multistep(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
    milestones: Sequence[float] = (16, 22),
    gamma: float = 0.1,
    warmup_epochs: float = 0.0,
    warmup_factor: float = 0.001,
) -> LambdaLR:
    """Times `gamma` at each of `milestones` (in epochs), after a linear rise.

    Args:
        optimizer: Whose learning rates are scheduled.
        total_steps: Steps of the whole run.
        steps_per_epoch: Steps of an epoch.
        milestones: Epochs after which the rate drops.
        gamma: Factor of each drop.
        warmup_epochs: Epochs of linear rise at the start.
        warmup_factor: Where the rise starts.
    """
    _check_warmup(warmup_epochs, warmup_factor)
    warmup = round(warmup_epochs * steps_per_epoch)

    def factor(step: int) -> float:
        if step < warmup:
            return _rise(step, warmup, warmup_factor)
        return gamma ** sum(step >= round(epoch * steps_per_epoch) for epoch in milestones)

    return LambdaLR(optimizer, factor)


def _check_warmup(epochs: float, factor: float) -> None:
    if epochs < 0:
        raise ValueError(f"warmup_epochs must be at least 0, got {epochs}")
    if not 0 < factor <= 1:
        raise ValueError(f"warmup_factor must be in (0, 1], got {factor}")


def _rise(step: int, warmup: int, start: float) -> float:
    return start + (1 - start) * step / warmup

"""When the stages of a step end, on the clock of the device that computes them."""

from itertools import pairwise
from time import perf_counter
from typing import Any

import torch
from torch import nn


class Laps:
    """Seconds of each stage of a piece of work. A GPU is never waited for: it notes the times itself.

    Args:
        device: Where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.start()

    def start(self) -> None:
        """Forget everything; the first stage begins."""
        self._ends: list[tuple[str, Any]] = [("", self._now())]

    def mark(self, stage: str) -> None:
        """A stage, or a further part of it, ends, and the next one begins."""
        self._ends.append((stage, self._now()))

    def watch(self, first: nn.Module, **stages: nn.Module) -> None:
        """From now on, "input" ends where the module `first` begins, and each stage where its module is done."""
        first.register_forward_pre_hook(lambda module, inputs: self.mark("input"))
        for stage, module in stages.items():
            module.register_forward_hook(lambda module, inputs, output, stage=stage: self.mark(stage))

    def seconds(self) -> dict[str, float]:
        """Of each stage, in their order."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        found: dict[str, float] = {}
        for (_, start), (stage, end) in pairwise(self._ends):
            seconds = end - start if isinstance(end, float) else start.elapsed_time(end) / 1e3
            found[stage] = found.get(stage, 0.0) + seconds
        return found

    def _now(self) -> float | torch.cuda.Event:
        if self._device.type != "cuda":
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

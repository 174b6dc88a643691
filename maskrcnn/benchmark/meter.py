"""What a piece of work costs on a device: seconds, peak memory, floating point operations."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from maskrcnn.benchmark.report import MEGABYTE, Spread

T = TypeVar("T")

_PROCESS = Path("/proc/self")  # of Linux


@dataclass(frozen=True)
class Cost:
    """What some work took.

    Attributes:
        seconds: Of each round.
        peak_memory_mb: At most in use; None where the system does not tell.
    """

    seconds: Spread
    peak_memory_mb: float | None

    @classmethod
    def of_rounds(cls, rounds: Sequence[tuple[float, float | None]]) -> "Cost":
        """Of the (seconds, peak memory) of each round; the first one warmed up, and only its memory counts."""
        peaks = [peak for _, peak in rounds if peak is not None]
        return cls(Spread([seconds for seconds, _ in rounds[1:]]), max(peaks, default=None))

    def values(self) -> dict[str, Any]:
        """For benchmark.json."""
        return {
            "seconds": self.seconds.median,
            "seconds_range": self.seconds.limits,
            "peak_memory_mb": self.peak_memory_mb,
        }


class Meter:
    """Measures work on a device, one piece after the other.

    Memory is counted from what is in use when the meter is made: on a GPU what torch's allocator hands out, on the
    CPU what this process occupies, so that a process should make one meter, and that before it loads anything.

    Args:
        device: Where the work is done.
        rounds: How often the clock runs; one round before that warms up.
    """

    def __init__(self, device: torch.device, *, rounds: int = 1) -> None:
        self.device = device
        self.rounds = rounds
        self._before = self._memory(peak=False)

    def measure(self, work: Callable[[], Any]) -> Cost:
        """Seconds of each round and the most memory that any of them needed."""
        return Cost.of_rounds([self.once(work) for _ in range(self.rounds + 1)])

    def once(self, work: Callable[[], Any]) -> tuple[float, float | None]:
        """Seconds, and the most memory in use in 1e6 bytes."""
        self._forget_peak()
        self._wait()
        start = perf_counter()
        work()
        self._wait()
        seconds = perf_counter() - start
        peak = self._memory(peak=True)
        # Linux counts a process's pages roughly, so that work which needs none may seem to give some back.
        used = None if peak is None or self._before is None else max(peak - self._before, 0) / MEGABYTE
        return seconds, used

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _forget_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with suppress(OSError):  # where that is not allowed, the peak is that of all work so far
                (_PROCESS / "clear_refs").write_text("5", encoding="ascii")

    def _memory(self, *, peak: bool) -> float | None:
        """Bytes in use, or at most in use."""
        if self.device.type == "cuda":
            read = torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated
            return read(self.device)
        status = _PROCESS / "status"
        if not status.is_file():
            return None
        lines = (line.split() for line in status.read_text(encoding="ascii").splitlines())
        kilobytes = next(line[1] for line in lines if line[0] == ("VmHWM:" if peak else "VmRSS:"))
        return 1024 * float(kilobytes)


def gigaflops(work: Callable[[], T]) -> tuple[float, T]:
    """1e9 floating point operations of convolutions and matrix products, and what the work returns.

    A multiplication with its addition is two. Normalisation, activations, RoIAlign and NMS are not counted.
    """
    with FlopCounterMode(display=False) as counter:
        result = work()
    return counter.get_total_flops() / 1e9, result

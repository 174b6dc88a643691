"""Where the host waits for a GPU."""

import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_TEXT = "synchronizing CUDA operation"  # of torch's warning


def host_syncs(work: Callable[[], Any], *, package: str) -> dict[str, int]:
    """How often each place of a package makes the host wait for the GPU while the work is done.

    Args:
        work: Has been done before, so that nothing is set up any more.
        package: Whose lines are named; where none of them is under way, it is the line that waits.

    Returns:
        "file:line" -> number, the most frequent first.
    """
    found: Counter[str] = Counter()

    def record(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any, **options: Any
    ) -> None:
        if _TEXT in str(message):
            found[_place(package, filename, lineno)] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = record
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return dict(found.most_common())


def _place(package: str, filename: str, lineno: int) -> str:
    """The innermost line of the package, the benchmark's own aside."""
    for frame in reversed(traceback.extract_stack()):
        parts = Path(frame.filename).parts
        if package in parts and "benchmark" not in parts:
            return f"{Path(*parts[parts.index(package) :])}:{frame.lineno}"
    return f"{Path(filename).name}:{lineno}"

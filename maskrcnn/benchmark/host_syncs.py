"""Where the host waits for a GPU."""

import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_OWN = Path(__file__).parent
_TEXT = "synchronizing CUDA operation"  # of torch's warning


def host_syncs(work: Callable[[], Any], *, root: Path) -> dict[str, int]:
    """How often each place in the code below a folder makes the host wait for the GPU while the work is done.

    Args:
        work: Has been done before, so that nothing is set up any more.
        root: The folder of a package. Where none of its lines is under way, the line that waits is named.

    Returns:
        "file:line" -> number, the most frequent first.
    """
    found: Counter[str] = Counter()

    def record(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any, **options: Any
    ) -> None:
        if _TEXT in str(message):
            found[_place(root, filename, lineno)] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = record
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return dict(found.most_common())


def _place(root: Path, filename: str, lineno: int) -> str:
    """The innermost line below the root, the benchmark's own aside."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(root) and not path.is_relative_to(_OWN):
            return f"{path.relative_to(root.parent)}:{frame.lineno}"
    return f"{Path(filename).name}:{lineno}"

"""What the stages of an evaluation cost, on this process."""

import resource
import sys
import time
from collections import defaultdict
from typing import Any

import torch


class Stopwatch:
    """Seconds of each stage; a stage ends where its lap is taken, and the next one begins there.

    Attributes:
        seconds: Of each stage, in the order of their first laps.
        pictures: How many have gone through the model.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget everything and begin the first stage."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.pictures = 0
        self._since = time.perf_counter()

    def lap(self, stage: str, device: torch.device | None = None) -> None:
        """End a stage, once the device has done its part of it."""
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        self.seconds[stage] += now - self._since
        self._since = now

    def numbers(self, images: int) -> dict[str, Any]:
        """For `speed.json`.

        Args:
            images: Of all processes together.

        Returns:
            "images"; milliseconds per picture of each stage, "load_ms" and so on, where those of the model and before
            count this process's pictures; "images_per_second" of all processes; "main_memory_gb" and, with a GPU,
            "gpu_memory_gb": the most that this process has taken, in 1e9 bytes.
        """
        own = self.pictures or images
        # Scoring comes once, for all of them.
        per_picture = {stage: images if stage == "scoring" else own for stage in self.seconds}
        numbers: dict[str, Any] = {"images": images}
        for stage, seconds in self.seconds.items():
            numbers[f"{stage}_ms"] = 1000 * seconds / max(per_picture[stage], 1)
        numbers["images_per_second"] = images / max(sum(self.seconds.values()), 1e-9)
        unit = 1 if sys.platform == "darwin" else 1024
        numbers["main_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
        if torch.cuda.is_available():
            numbers["gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        return numbers

"""What a suite hands back, and where it was measured."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torchvision

from maskrcnn.errors import UserError

MEGABYTE = 1e6

_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Result:
    """What a suite measured.

    Attributes:
        values: Plain numbers, lists and dicts, for benchmark.json.
        table: The same for the terminal, at most 100 columns wide.
    """

    values: dict[str, Any]
    table: str


@dataclass(frozen=True)
class Spread:
    """The same quantity in each round."""

    rounds: Sequence[float]

    @property
    def median(self) -> float:
        """The figure to quote."""
        return median(self.rounds)

    @property
    def limits(self) -> list[float]:
        """Smallest and largest."""
        return [min(self.rounds), max(self.rounds)]


def check_counts(settings: dict[str, Any], *keys: str, prefix: str = "") -> None:
    """Raise UserError where one of these settings, of the node `prefix`, is no whole number from 1 on."""
    for key in keys:
        if not isinstance(settings[key], int) or settings[key] < 1:
            raise UserError(f"{prefix}{key}={settings[key]}: must be a whole number, at least 1")


def machine() -> dict[str, Any]:
    """Processor, its cores, and the versions that matter."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def _cpu_name() -> str:
    if _CPU_INFO.is_file():
        for line in _CPU_INFO.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()

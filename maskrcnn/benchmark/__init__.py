"""Measure this package beside torchvision in one run: `python -m maskrcnn.benchmark suite=data`, `... --help`.

A suite is a function from the settings of `conf/benchmark.yaml` to a `Result`, and an entry of `SUITES`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maskrcnn.benchmark import data, growth, models, speed
from maskrcnn.benchmark.report import Result, machine
from maskrcnn.config import Config, command, plain
from maskrcnn.errors import UserError

SUITES: dict[str, Callable[[dict[str, Any]], Result]] = {
    "data": data.measure,
    "models": models.measure,
    "speed": speed.measure,
    "growth": growth.measure,
}


@command("benchmark")
def main(cfg: Config) -> None:
    """Run the suites one after the other; print their tables and write benchmark.json."""
    settings = plain(cfg)
    for key in ("suite", "presets", "models", "precisions", "parts"):  # one name, or a list of them
        if isinstance(settings[key], str):
            settings[key] = [settings[key]]
    names = settings["suite"]
    for name in names:
        if name not in SUITES:
            raise UserError(f"suite={name}: no such suite; known are {', '.join(SUITES)}")
    report: dict[str, Any] = {"machine": machine()}
    print(" | ".join(f"{key} {value}" for key, value in report["machine"].items()))
    for name in names:
        result = SUITES[name](settings)
        report[name] = result.values
        print(f"\n{result.table}")
    path = Path(settings["output"]) / "benchmark.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten to {path}")

"""The figures of the models suite for a terminal of 100 columns."""

from collections.abc import Sequence
from textwrap import shorten
from typing import Any

_WIDTH = 100
_NAME = 27  # "mobilenet_v3_small-panet-c"
_COSTS = {"train": "train ms", "inference": "infer ms"}


def draw_table(values: dict[str, Any], *, names: Sequence[str], precisions: Sequence[str]) -> str:
    """For each precision a line per network, below what was measured and how."""
    setup = values["setup"]
    height, width = setup["size"]
    lines = [
        f"models: {height} x {width} pixels, {setup['num_classes']} classes; {setup['device']}, "
        f"threads: {setup['threads']}; rounds: {setup['rounds']}",
        f"train: forward and backward pass, {setup['batch_size']} pictures with {setup['instances']} instances each; "
        "inference: one picture",
    ]
    lines += [f"{name}: not measured, {reason}" for name, reason in setup["absent"].items()]
    for precision in precisions:
        costs = "".join(f"{label:>9}{'min..max':>13}{'MB':>7}" for label in _COSTS.values())
        lines += ["", f"{precision:{_NAME}}{'M par.':>7}{'GFLOPs':>8}{costs}"]
        lines += [_row(name, values[name], values[name][precision]) for name in names]
    return "\n".join(lines)


def _row(name: str, network: dict[str, Any], found: dict[str, Any]) -> str:
    label = f"{name[: _NAME - 1]:{_NAME}}"
    if "failed" in found:
        return label + shorten(f"failed: {found['failed']}", _WIDTH - _NAME, placeholder=" ...")
    costs = "".join(_cost(found[name]) for name in _COSTS)
    return f"{label}{network['parameters'] / 1e6:7.1f}{network['gflops']:8.1f}{costs}"


def _cost(cost: dict[str, Any]) -> str:
    low, high = (milliseconds(seconds) for seconds in cost["seconds_range"])
    memory = "-" if cost["peak_memory_mb"] is None else f"{cost['peak_memory_mb']:.0f}"
    return f"{milliseconds(cost['seconds']):>9}{f'{low}..{high}':>13}{memory:>7}"


def milliseconds(seconds: float) -> str:
    """Whole ones from 100 on."""
    return f"{1e3 * seconds:.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.1f}"

"""The figures of the growth suite for a terminal of 100 columns."""

from collections.abc import Sequence
from typing import Any

from maskrcnn.benchmark.models_table import milliseconds

_NAME = 24
_LABELS = {"area": "megapixels"}
_STEEP = "  worse than linear"


def draw_table(values: dict[str, Any], *, precisions: Sequence[str], kinds: Sequence[str]) -> str:
    """For each size of each quantity: milliseconds per picture, and how many times those of the first."""
    setup = values["setup"]
    height, width = setup["size"]
    lines = [
        f"growth: ours; where it does not grow, {setup['batch_size']} in a batch, {height} x {width} pixels, "
        f"{setup['instances']} instances,",
        f"{setup['num_classes']} classes; {setup['device']}, threads: {setup['threads']}; rounds: {setup['rounds']}; "
        "train: with optimizer; inference: up to run lengths",
    ]
    lines += [f"{name}: not measured, {reason}" for name, reason in setup["absent"].items()]
    for precision in precisions:
        lines += ["", f"{f'{precision}, per picture':{_NAME}}" + "".join(f"{f'{k} ms':>14}{'times':>8}" for k in kinds)]
        for axis, found in values[precision].items():
            lines += [_row(axis, found, i, kinds) for i in range(len(found["sizes"]))]
        steep = sum(len(found[kind]["too_steep"]) for found in values[precision].values() for kind in kinds)
        lines.append(f"{steep} steps are worse than linear" if steep else "no step is worse than linear")
    return "\n".join(lines)


def _row(axis: str, found: dict[str, Any], i: int, kinds: Sequence[str]) -> str:
    label = f"{_LABELS.get(axis, axis):12}{found['sizes'][i]:>10.4g}"
    cells = (f"{milliseconds(found[kind]['seconds'][i]):>14}{found[kind]['ratios'][i]:7.2f}x" for kind in kinds)
    steep = [kind for kind in kinds if i in found[kind]["too_steep"]]
    line = f"{label:{_NAME}}{''.join(cells)}"
    if axis == "instances" and found["detections"][i] < found["sizes"][i]:
        line += f"  {found['detections'][i]:.0f} detected"
    return line + (f"{_STEEP}: {' and '.join(steep)}" if steep else "")

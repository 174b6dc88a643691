"""Suite growth: how the time per picture grows with the work, ours alone.

One quantity grows at a time. Where it is the batch, a picture should take no longer in a larger one; where it is the
area, the instances or the classes, the time per picture should grow at most as much as they do.
"""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

from maskrcnn.benchmark.growth_plot import plot_growth
from maskrcnn.benchmark.growth_table import draw_table
from maskrcnn.benchmark.meter import Cost
from maskrcnn.benchmark.models import choose_device, device_name, make_work, usable_precisions
from maskrcnn.benchmark.our_side import OurSide
from maskrcnn.benchmark.report import Result, check_counts
from maskrcnn.benchmark.speed_side import Job
from maskrcnn.errors import UserError

AXES = ("batch", "area", "instances", "classes")
KINDS = ("train", "inference")
TOLERANCE = 1.1  # more than linear by less than this is noise


class Point(NamedTuple):
    """A measurement.

    Attributes:
        size: How much work it is; of an area, pixels in millions.
        seconds: Per picture, of each kind.
        detections: Per picture, of an inference.
    """

    size: float
    seconds: dict[str, float]
    detections: float


def measure(settings: dict[str, Any]) -> Result:
    """Measure training steps and inferences of growing size; writes growth.png beside the other results.

    Raises:
        UserError: A setting is out of range.
    """
    check_counts(settings, "rounds", "instances")
    axes = _axes(settings["growth"])
    device = choose_device(settings["device"])
    precisions, missing = usable_precisions(settings["precisions"] or ["fp32"], device)
    values: dict[str, Any] = {}
    for precision in precisions:
        values[precision] = {}
        for axis, sizes in axes.items():
            points = [_point(settings, device, precision, axis, size, first=axes["batch"][0]) for size in sizes]
            works = [point.size for point in points]
            values[precision][axis] = {"sizes": works, "detections": [point.detections for point in points]} | {
                kind: summary([point.seconds[kind] for point in points], works, batch=axis == "batch") for kind in KINDS
            }
    node = settings["model"]
    values["setup"] = {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "size": [node["input"]["min_size"], node["input"]["max_size"]],
        "batch_size": axes["batch"][0],
        "instances": settings["instances"],
        "num_classes": node["num_classes"],
        "rounds": settings["rounds"],
        "absent": missing,
    }
    plot = Path(settings["output"]) / "growth.png"
    plot.write_bytes(plot_growth({name: values[name] for name in precisions}, kinds=KINDS))
    return Result(values, f"{draw_table(values, precisions=precisions, kinds=KINDS)}\nplot: {plot}")


def summary(seconds: Sequence[float], sizes: Sequence[float], *, batch: bool) -> dict[str, Any]:
    """Of the seconds per picture at each size.

    Args:
        seconds: Per picture.
        sizes: Of the work, from small to large.
        batch: Sizes count pictures, so that each of them should take no longer.

    Returns:
        "seconds"; "ratios" against the first; "too_steep": the indices of the sizes at which the time grew by more
        than the work since the size before.
    """
    steep = []
    for i, (earlier, later) in enumerate(pairwise(seconds), start=1):
        allowed = 1.0 if batch else sizes[i] / sizes[i - 1]
        if later / earlier > allowed * TOLERANCE:
            steep.append(i)
    return {"seconds": list(seconds), "ratios": [each / seconds[0] for each in seconds], "too_steep": steep}


def _axes(settings: Mapping[str, Any]) -> dict[str, list[Any]]:
    for axis in AXES:
        sizes = settings[axis]
        kinds = (int, float) if axis == "area" else int
        if (
            not isinstance(sizes, list)
            or not sizes
            or not all(isinstance(size, kinds) and size > 0 for size in sizes)
            or sorted(set(sizes)) != sizes
        ):
            raise UserError(f"growth.{axis}={sizes}: must be a list of numbers above 0 that grow")
    return {axis: settings[axis] for axis in AXES}


def _point(
    settings: dict[str, Any], device: torch.device, precision: str, axis: str, size: float, *, first: int
) -> Point:
    """Measure one."""
    print(f"{precision}: {axis} {size}", flush=True)
    settings = deepcopy(settings)
    node = settings["model"]
    batch = settings["data"]["batch_size"] = int(size) if axis == "batch" else first
    if axis == "area":
        node["input"] |= {
            side: _rounded(node["input"][side] * math.sqrt(size), node["input"]["size_divisor"])
            for side in ("min_size", "max_size")
        }
        size = node["input"]["min_size"] * node["input"]["max_size"] / 1e6
    elif axis == "instances":
        settings["instances"] = node["detections_per_image"] = int(size)
    elif axis == "classes":
        node["num_classes"] = int(size)
    side = OurSide(Job(node, make_work(node, settings, device), None, settings))
    side.settle()
    repeats = range(settings["rounds"] + 1)
    samples = {  # inference first: it needs less memory
        "inference": [side.infer(batch, precision) for _ in repeats],
        "train": [side.train(precision) for _ in repeats],
    }
    costs = {kind: Cost.of_rounds([sample[:2] for sample in rounds]) for kind, rounds in samples.items()}
    seconds = {kind: cost.seconds.median / batch for kind, cost in costs.items()}
    return Point(size, seconds, samples["inference"][0].detections / batch)


def _rounded(length: float, divisor: int) -> int:
    """To whole pixels of the padded picture, so that none of it is padding."""
    return max(round(length / divisor), 1) * divisor

"""The shape of a data set: each plot a PNG, one colour per split."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from maskrcnn.check_data.statistics import LARGE, MEDIUM, Statistics
from maskrcnn.plotting import COLORS, INK, render, shorten

_NAMED = 60  # up to so many classes have their names at the axis
_LONGEST_NAME = 24
_BINS = 50


@dataclass(frozen=True)
class Plot:
    """A picture for the report.

    Attributes:
        title: What it shows.
        caption: How to read it.
        png: The file.
    """

    title: str
    caption: str
    png: bytes


def draw_plots(statistics: dict[str, Statistics]) -> list[Plot]:
    """All plots of the splits that have instances."""
    shown = {name: split for name, split in statistics.items() if len(split.areas)}
    if not shown:
        return []
    drawings: list[tuple[str, str, Callable[[Axes, dict[str, Statistics]], None]]] = [
        ("Instances per class", "Most frequent first; on a logarithmic scale.", _classes),
        ("Instances per image", "Share of the pictures of a split.", _instances_per_image),
        ("Size of the instances", "Square root of the area; dashed: COCO's limits of small, medium and large.", _sizes),
        ("Aspect ratio of the boxes", "Width to height: left of 1 upright, right of 1 wide.", _aspect_ratios),
        ("Size of the pictures", "The larger the dot, the more pictures are of this size.", _image_sizes),
    ]
    return [Plot(title, caption, _render(draw, shown)) for title, caption, draw in drawings]


def _render(draw: Callable[[Axes, dict[str, Statistics]], None], statistics: dict[str, Statistics]) -> bytes:
    def on(figure: Figure) -> None:
        axes = figure.add_subplot()
        draw(axes, statistics)
        if len(statistics) > 1:
            figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=len(statistics))

    return render(on, size=(6.0, 3.5), format="png", dpi=144)


def _classes(axes: Axes, statistics: dict[str, Statistics]) -> None:
    first = next(iter(statistics.values()))
    order = np.argsort(-first.instances_per_class, kind="stable")
    names = [first.classes[k]["name"] for k in order]
    places = np.arange(len(names))
    for i, (name, split) in enumerate(statistics.items()):
        count_of = {entry["name"]: entry["instances"] for entry in split.classes}
        counts = np.array([count_of.get(name, 0) for name in names], dtype=float)
        counts[counts == 0] = np.nan  # has no logarithm
        if len(names) <= _NAMED:
            width = 0.8 / len(statistics)
            axes.bar(places + (i - (len(statistics) - 1) / 2) * width, counts, width, color=COLORS[i], label=name)
        else:
            marker: dict[str, Any] = {"linestyle": "none", "marker": ".", "markersize": 4} if i else {"linewidth": 2}
            axes.plot(places + 1, counts, color=COLORS[i], label=name, **marker)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else ""))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(bottom=0.8)
    axes.set_ylabel("instances")
    if len(names) <= _NAMED:
        axes.grid(visible=False, axis="x")
        axes.set_xlim(min(-0.6, len(names) / 2 - 3), max(len(names) - 0.4, len(names) / 2 + 2))
        short = [shorten(name, _LONGEST_NAME) for name in names]
        axes.set_xticks(places, short, rotation=90 if len(names) > 8 else 0, fontsize=10 if len(names) <= 30 else 7)
    else:
        axes.set_xlabel("rank of the class")


def _instances_per_image(axes: Axes, statistics: dict[str, Statistics]) -> None:
    most = max(int(split.instances_per_image.max()) for split in statistics.values())
    if most <= _BINS:
        edges = np.arange(most + 2) - 0.5
    else:
        # Bins of whole numbers that grow with them.
        edges = np.unique(np.concatenate(([0, 1], np.geomspace(1, most + 1, _BINS).round()))) - 0.5
        ticks = [0, 2, 5, *(digit * 10**power for power in range(1, 7) for digit in (1, 2, 5))]
        axes.set_xscale("symlog", linthresh=10)
        axes.set_xticks([tick for tick in ticks if tick <= most], [f"{tick:,}" for tick in ticks if tick <= most])
        axes.xaxis.set_minor_locator(NullLocator())
    _histogram(axes, {name: split.instances_per_image for name, split in statistics.items()}, edges)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xlabel("instances in the picture")
    axes.set_ylabel("pictures, %")


def _sizes(axes: Axes, statistics: dict[str, Statistics]) -> None:
    sides = {name: np.sqrt(split.areas.clip(1)) for name, split in statistics.items()}
    edges = np.geomspace(1, max(float(values.max()) for values in sides.values()) * 1.01 + 1, _BINS)
    _logarithmic(axes)
    _histogram(axes, sides, edges)
    top = axes.get_ylim()[1]
    for limit in (MEDIUM, LARGE):
        axes.axvline(limit**0.5, color=INK, linestyle="--", linewidth=1)
    spans = {"small": (1, MEDIUM**0.5), "medium": (MEDIUM**0.5, LARGE**0.5), "large": (LARGE**0.5, edges[-1])}
    for name, (low, high) in spans.items():
        if high > low:
            axes.text((low * high) ** 0.5, top * 1.02, name, ha="center", color=INK)
    axes.set_ylim(0, top * 1.1)
    axes.set_xlim(1, max(edges[-1], LARGE**0.5 * 2))
    axes.set_xlabel("square root of the area, pixels")
    axes.set_ylabel("instances, %")


def _aspect_ratios(axes: Axes, statistics: dict[str, Statistics]) -> None:
    ratios = {name: split.aspect_ratios for name, split in statistics.items()}
    extreme = max(float(np.quantile(np.maximum(values, 1 / values), 0.999)) for values in ratios.values())
    extreme = max(extreme, 4.0)
    edges = np.geomspace(1 / extreme, extreme, _BINS)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:.0f}:1" if value >= 1 else f"1:{1 / value:.0f}")
    )
    _histogram(axes, {name: values.clip(edges[0], edges[-1]) for name, values in ratios.items()}, edges)
    axes.axvline(1, color=INK, linestyle="--", linewidth=1)
    axes.set_xlabel("width : height")
    axes.set_ylabel("instances, %")


def _image_sizes(axes: Axes, statistics: dict[str, Statistics]) -> None:
    for i, (name, split) in enumerate(statistics.items()):
        sizes, counts = np.unique(split.image_sizes, axis=0, return_counts=True)
        area = 12 + 160 * (counts / counts.max()) ** 0.5
        colors: dict[str, Any] = {"facecolors": "none" if i else COLORS[i], "edgecolors": COLORS[i]}
        axes.scatter(sizes[:, 1], sizes[:, 0], s=area, alpha=0.6, label=name, **colors)
    sides = np.concatenate([split.image_sizes for split in statistics.values()])
    if sides.max() > 20 * max(np.median(sides), 1) or sides.min() * 20 < np.median(sides):
        _logarithmic(axes)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    else:
        axes.set_xlim(0, sides[:, 1].max() * 1.1)
        axes.set_ylim(0, sides[:, 0].max() * 1.1)
    axes.set_xlabel("width, pixels")
    axes.set_ylabel("height, pixels")


def _histogram(axes: Axes, values: dict[str, np.ndarray], edges: np.ndarray) -> None:
    """Share of each split's values in each bin, in percent."""
    for i, (name, numbers) in enumerate(values.items()):
        weights = np.full(len(numbers), 100 / len(numbers))
        style: dict[str, Any] = {"histtype": "stepfilled", "alpha": 0.55}
        if i:
            style = {"histtype": "step", "linewidth": 1.8}
        axes.hist(numbers, edges.tolist(), weights=weights, color=COLORS[i], label=name, **style)


def _logarithmic(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())

"""How the time per picture grows, as a plot."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from maskrcnn.plotting import COLORS, INK, render

_MARKS = ("o-", "s--")  # of the precisions
_LABELS = {"batch": "pictures in a batch", "area": "megapixels"}


def plot_growth(values: Mapping[str, Mapping[str, Any]], *, kinds: Sequence[str]) -> bytes:
    """A PNG: for each quantity the time per picture against its first, both axes logarithmic.

    Args:
        values: Precision -> quantity -> its "sizes" and the `growth.summary` of each kind.
        kinds: Of work.
    """
    axes_of = list(next(iter(values.values()), {}))

    def draw(figure: Figure) -> None:
        for number, axis in enumerate(axes_of, start=1):
            _draw(figure.add_subplot(2, 2, number), {name: values[name][axis] for name in values}, axis, kinds)

    return render(draw, size=(9, 6), format="png", dpi=110)


def _draw(axes: Axes, found: Mapping[str, Mapping[str, Any]], axis: str, kinds: Sequence[str]) -> None:
    for (precision, rows), mark in zip(found.items(), _MARKS, strict=False):
        for kind, color in zip(kinds, COLORS, strict=False):
            axes.plot(rows["sizes"], rows[kind]["ratios"], mark, color=color, label=f"{kind}, {precision}")
    sizes = next(iter(found.values()))["sizes"]
    allowed = [1.0 if axis == "batch" else size / sizes[0] for size in sizes]
    axes.plot(sizes, allowed, ":", color=INK, linewidth=1, label="linear")
    axes.set_xscale("log")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_locator(LogLocator(base=2))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xticks(sizes, [f"{size:.3g}" for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(_LABELS.get(axis, axis))
    axes.set_ylabel("time per picture, first = 1")
    axes.set_ylim(min(0.5, axes.get_ylim()[0]), max(2.0, axes.get_ylim()[1]))
    axes.legend(fontsize=8)

"""The plots of a report, each an SVG that is legible at the width of a phone."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from maskrcnn.evaluation.diagnosis import BINS, Calibration
from maskrcnn.evaluation.errors import Costs
from maskrcnn.evaluation.matches import THRESHOLDS
from maskrcnn.evaluation.precision import RECALLS
from maskrcnn.plotting import COLORS, FAINT, INK, render, shorten

_COLORS = dict(zip(("box", "mask"), COLORS, strict=False))
_WIDTH = 4.6  # inches
_CURVES = {0.5: "#1e3a8a", 0.6: "#2563eb", 0.7: "#10b981", 0.8: "#f59e0b", 0.9: "#dc2626"}
_MOST_CELLS = 25  # classes of a matrix whose cells have names and numbers
_LONGEST_NAME = 14


def plot_costs(costs: Mapping[str, Costs]) -> bytes:
    """Bars of what each type of error costs, for each kind."""

    def draw(axes: Axes) -> None:
        width = 0.8 / len(costs)
        for i, (kind, of_kind) in enumerate(costs.items()):
            places = np.arange(len(of_kind.types)) + (i - (len(costs) - 1) / 2) * width
            axes.barh(places, list(of_kind.types.values()), width, color=_COLORS[kind], label=kind)
        axes.set_yticks(range(len(of_kind.types)), list(of_kind.types))
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("AP50 that it costs")
        axes.legend()

    return _render(draw, height=2.8)


def plot_precision(curves: np.ndarray) -> bytes:
    """Precision over recall, the mean of the classes.

    Args:
        curves: [T, R, K] at `THRESHOLDS` and `RECALLS`; -1 for classes with nothing to find.
    """

    def draw(axes: Axes) -> None:
        counted = curves[:, :, (curves >= 0).all(axis=(0, 1))]
        for threshold, color in _CURVES.items():
            level = int(np.abs(THRESHOLDS - threshold).argmin())
            if counted.shape[2]:
                axes.plot(RECALLS, counted[level].mean(axis=1), color=color, label=f"IoU {threshold}")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("recall")
        axes.set_ylabel("precision")
        if counted.shape[2]:
            axes.legend(fontsize=8)

    return _render(draw, height=3.3)


def plot_calibration(calibration: Calibration, kind: str) -> bytes:
    """Share of right detections over their score."""

    def draw(axes: Axes) -> None:
        edges = np.arange(BINS) / BINS
        axes.bar(edges, np.nan_to_num(calibration.precision), 1 / BINS, align="edge", color=_COLORS[kind], ec="white")
        axes.plot(calibration.score, calibration.precision, "o", color=INK, markersize=3)
        axes.plot([0, 1], [0, 1], "--", color=INK, linewidth=1)
        for edge, count in zip(edges, calibration.counts, strict=True):
            axes.text(edge + 0.5 / BINS, 1.02, _short(count), ha="center", fontsize=7)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("score")
        axes.set_ylabel("share that is right")

    return _render(draw, height=3.3)


def plot_confusion(matrix: np.ndarray, names: Sequence[str]) -> bytes:
    """Each row in shares of its sum; names and numbers where there is room.

    Args:
        matrix: [K + 1, K + 1], rows are annotations, columns detections; the last of each is background.
        names: Of the K classes.
    """
    legible = len(names) <= _MOST_CELLS

    def draw(axes: Axes) -> None:
        shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal" if legible else "auto")
        axes.grid(visible=False)
        axes.set_xlabel("detected as")
        axes.set_ylabel("annotated as")
        if not legible:
            axes.set_xticks([])
            axes.set_yticks([])
            return
        size = max(4, min(8, 80 // len(matrix)))
        short = [shorten(name, _LONGEST_NAME) for name in names]
        axes.set_xticks(range(len(matrix)), [*short, "nothing"], rotation=90, fontsize=size)
        axes.set_yticks(range(len(matrix)), [*short, "background"], fontsize=size)
        for row, column in np.argwhere(matrix):
            color = "white" if shares[row, column] > 0.5 else INK
            text = _short(matrix[row, column])
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=size)

    return _render(draw, height=4.2)


def plot_differences(names: Sequence[str], values: np.ndarray, low: np.ndarray, high: np.ndarray) -> bytes:
    """Differences [K] with their intervals, one row each."""

    def draw(axes: Axes) -> None:
        places = np.arange(len(names))
        colors = np.select([low > 0, high < 0], ["#10b981", "#dc2626"], FAINT).tolist()
        axes.hlines(places, low, high, colors=colors, linewidth=3, alpha=0.6)
        axes.scatter(values, places, c=colors, s=16, zorder=3)
        axes.axvline(0, color=INK, linewidth=1)
        short = [shorten(name, _LONGEST_NAME) for name in names]
        axes.set_yticks(places, short, fontsize=8 if len(names) <= _MOST_CELLS else 6)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel("difference of AP")

    return _render(draw, height=0.9 + (0.2 if len(names) <= _MOST_CELLS else 0.11) * len(names))


def _render(draw: Callable[[Axes], None], *, height: float) -> bytes:
    return render(lambda figure: draw(figure.add_subplot()), size=(_WIDTH, height), format="svg")


def _short(count: int) -> str:
    """A number in at most four characters."""
    return f"{count / 1000:.0f}k" if count >= 10_000 else str(count)

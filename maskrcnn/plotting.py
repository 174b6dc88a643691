"""The one look of all plots, and how a drawing becomes a file."""

import io
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

COLORS = ("#2563eb", "#f59e0b", "#10b981")  # of what is told apart, in its order
INK, FAINT = "#1f2937", "#9ca3af"
_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10,
    "grid.color": "#e5e7eb",
    "legend.frameon": False,
    "svg.hashsalt": "maskrcnn",  # the same file for the same numbers
    "text.color": INK,
    "text.parse_math": False,  # a class may be called $x$
    "xtick.color": INK,
    "ytick.color": INK,
}


def render(draw: Callable[[Figure], None], *, size: tuple[float, float], format: str, dpi: float = 100) -> bytes:
    """The file of what `draw` puts on a figure.

    Args:
        draw: Adds the axes and all that is on them.
        size: Width and height in inches.
        format: `png` or `svg`.
        dpi: Pixels per inch of a PNG.
    """
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # class names in any script
        figure = Figure(figsize=size, dpi=dpi, layout="constrained")
        draw(figure)
        file = io.BytesIO()
        figure.savefig(file, format=format, metadata={"Date": None} if format == "svg" else None)
    return file.getvalue()


def shorten(name: str, longest: int) -> str:
    """A name in at most so many characters."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"

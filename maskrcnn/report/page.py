"""The page itself: a template filled in, with its pictures inside."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

PAGE = "report.html"


def write_page(folder: Path, template: str, **content: Any) -> Path:
    """Write `report.html`.

    Args:
        folder: Where to; made if need be.
        template: Which one of this package.
        content: Its variables.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "signed": signed, "svg": _svg, "jpeg": _jpeg}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PAGE
    path.write_text(environment.get_template(template).render(**content), encoding="utf-8")
    return path


def number(value: float) -> str:
    """Three digits; "-" for -1 and nan, where nothing is to be found."""
    return f"{value:.3f}" if value >= 0 else "-"


def signed(value: float) -> str:
    """Three digits and the sign; "-" for nan."""
    return f"{value:+.3f}" if value == value else "-"  # noqa: PLR0124


def _svg(plot: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(plot).decode()}"


def _jpeg(picture: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"

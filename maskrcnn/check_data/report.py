"""What the check found, for the terminal, for a browser and for other programs."""

import base64
import json
import sys
import textwrap
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from maskrcnn.check_data.plots import Plot
from maskrcnn.check_data.splits import Finding, printable
from maskrcnn.check_data.statistics import Statistics

_WIDTH = 80  # columns of the terminal
_SHOWN = 20  # problems in the terminal,
_LISTED = 200  # and of each kind in the page

_RARE = {
    "crowd": "crowd",
    "difficult": "difficult",
    "box_only": "without an outline",
    "images_without_instance": "pictures without an instance",
}
_COLUMNS = ("images", "instances", "small", "medium", "large", "crowd", "box_only", "difficult")


def write_report(
    folder: Path,
    findings: list[Finding],
    statistics: dict[str, Statistics],
    *,
    root: Path,
    plots: list[Plot],
    sheet: np.ndarray | None,
) -> None:
    """Write problems.json, data.json, contact_sheet.png and report.html.

    Args:
        folder: Where to.
        findings: Everything that was found.
        statistics: Of each split.
        root: The data set, for the title.
        plots: For the page.
        sheet: The contact sheet, uint8 [H, W, 3]; None without one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "problems.json", [asdict(finding) for finding in findings])
    numbers = {name: {**split.counts, "classes": split.classes} for name, split in statistics.items()}
    _write_json(folder / "data.json", {"root": printable(str(root)), "splits": numbers})
    if sheet is not None:
        Image.fromarray(sheet).save(folder / "contact_sheet.png")
        png = (folder / "contact_sheet.png").read_bytes()
        plots = [*plots, Plot("Pictures", "As annotated, and two draws of the augmentation.", png)]
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    )
    html = page.render(
        root=printable(str(root)),
        verdict=_verdict(findings),
        startable=not _errors(findings),
        kinds=_by_kind(findings),
        listed=_LISTED,
        columns=_COLUMNS,
        splits=numbers,
        classes=_class_rows(statistics),
        plots=[(plot.title, plot.caption, base64.b64encode(plot.png).decode()) for plot in plots],
    )
    (folder / "report.html").write_text(html, encoding="utf-8")


def print_summary(folder: Path, findings: list[Finding], statistics: dict[str, Statistics], *, root: Path) -> bool:
    """Print what matters in 80 columns; the last line says whether training can start.

    Returns:
        Whether it can.
    """
    for name, split in statistics.items():
        counts = split.counts
        classes = f"{len(split.classes):,} class{'es' * (len(split.classes) != 1)}"
        _print(f"{name}: {counts['images']:,} pictures, {counts['instances']:,} instances of {classes}", indent="  ")
        parts = [f"{counts[size]:,} {size}" for size in ("small", "medium", "large")]
        parts += [f"{counts[key]:,} {label}" for key, label in _RARE.items() if counts[key]]
        _print(", ".join(parts), first="  ", indent="  ")
    if findings:
        print()
    for (grade, kind), group in _by_kind(findings).items():
        _print(f"{grade:7}  {len(group):,} x {kind}", indent=" " * 9)
    shown = sorted(findings, key=lambda finding: finding.grade)[:_SHOWN]
    if shown:
        print()
    for finding in shown:
        message = finding.message.replace(f"{printable(str(root))}/", "")
        _print(f"{finding.grade} ({finding.split}): {message}", indent="    ")
    if len(findings) > _SHOWN:
        _print(f"... and {len(findings) - _SHOWN:,} more in problems.json", indent="    ")
    print()
    print(f"report: {folder / 'report.html'}")
    print(_verdict(findings))
    return not _errors(findings)


def _verdict(findings: list[Finding]) -> str:
    errors, warnings = _errors(findings), len(findings) - _errors(findings)
    noted = f"{warnings:,} warning{'s' * (warnings != 1)}" if warnings else "no warnings"
    if errors:
        return f"Training cannot start: {errors:,} error{'s' * (errors != 1)}, {noted}."
    return f"Training can start: no errors, {noted}."


def _errors(findings: list[Finding]) -> int:
    return sum(finding.grade == "error" for finding in findings)


def _by_kind(findings: list[Finding]) -> dict[tuple[str, str], list[Finding]]:
    """Findings by grade and kind, errors first, then the most frequent."""
    numbers = Counter((finding.grade, finding.kind) for finding in findings)
    groups: dict[tuple[str, str], list[Finding]] = {
        key: [] for key in sorted(numbers, key=lambda key: (key[0], -numbers[key]))
    }
    for finding in findings:
        groups[finding.grade, finding.kind].append(finding)
    return groups


def _class_rows(statistics: dict[str, Statistics]) -> dict[str, dict[str, dict[str, Any]]]:
    """Class name -> split -> numbers, the most frequent class first."""
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for name, split in statistics.items():
        for entry in split.classes:
            rows.setdefault(printable(entry["name"]), {})[name] = entry
    frequency = {name: sum(entry["instances"] for entry in of_split.values()) for name, of_split in rows.items()}
    return {name: rows[name] for name in sorted(rows, key=lambda name: -frequency[name])}


def _print(text: str, *, first: str = "", indent: str) -> None:
    wrapped = textwrap.fill(text, _WIDTH, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False)
    encoding = sys.stdout.encoding or "utf-8"
    print(wrapped.encode(encoding, "backslashreplace").decode(encoding))  # a terminal may not know every letter


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")

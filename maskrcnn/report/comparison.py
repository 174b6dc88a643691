"""Several runs on the same pictures in one report: how their AP differs, and how much of that may be chance."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.data.datamodule import DetectionDataModule
from maskrcnn.errors import UserError
from maskrcnn.evaluation.bootstrap import LEAST, RESAMPLES, Comparison, Difference, compare
from maskrcnn.evaluation.coco import KINDS
from maskrcnn.evaluation.matches import Matches, match
from maskrcnn.evaluation.results import read_results, remarks
from maskrcnn.report.page import number, signed, write_page
from maskrcnn.report.plots import plot_differences

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_PRINTED_CLASSES = 20  # a longer table is only written
_WIDTH = 30  # columns of a name


@dataclass(frozen=True)
class Row:
    """A line of a table: two APs and their difference."""

    name: str
    first: float
    second: float
    difference: Difference
    total: bool = False


@dataclass(frozen=True)
class Table:
    """Two runs, line by line.

    Attributes:
        title: Which ones, and of what kind.
        first: Letter of the first run.
        second: Letter of the second run.
        rows: All classes together, then each of them.
    """

    title: str
    first: str
    second: str
    rows: list[Row]

    @property
    def plot(self) -> bytes | None:
        """The differences that have an interval, if there are any."""
        rows = [row for row in self.rows if not math.isnan(row.difference.low)]
        if not rows:
            return None
        values, low, high = (
            np.array([(row.difference.value, row.difference.low, row.difference.high) for row in rows]).reshape(-1, 3).T
        )
        return plot_differences([row.name for row in rows], values, low, high)


def compare_runs(folder: Path, paths: Sequence[str] | str, data: DetectionDataModule, *, split: str) -> None:
    """Print how runs differ; write `comparison.json` and `report.html`.

    Args:
        folder: Where to.
        paths: Run folders with a `predictions.json`, or COCO results files; the first is what others are compared with.
        data: Holds the split that they are scored on.
        split: Its name.

    Raises:
        UserError: There are too few of them, one cannot be read, or one is not of this split.
    """
    if isinstance(paths, str) or not 2 <= len(paths) <= len(_LETTERS):
        raise UserError(f"compare: takes 2 to {len(_LETTERS)} runs, as in compare=[outputs/a,outputs/b]")
    ground_truth, image_ids = data.ground_truth, data.val_image_ids
    if ground_truth is None:
        raise UserError(f"compare: split={split} has no annotations to score runs with")
    runs = dict(zip(_LETTERS, map(str, paths), strict=False))
    matched: dict[str, dict[str, Matches]] = {}
    notes = []
    for letter, path in runs.items():
        file = _results_file(path, len(image_ids))
        results, kinds = read_results(file, ground_truth)
        matched[letter] = {kind: match(ground_truth, results, kind=kind, image_ids=image_ids) for kind in kinds}
        notes += [f"{letter}: {note}" for note in remarks(results, ground_truth, image_ids)]
    kinds = tuple(kind for kind in KINDS if all(kind in of_run for of_run in matched.values()))
    if not kinds:
        raise UserError("compare: some of these hold boxes alone and some masks alone, so nothing can be compared")

    compared = {kind: compare([of_run[kind] for of_run in matched.values()]) for kind in kinds}
    names = [category["name"] for category in ground_truth["categories"]]
    tables = [table for kind in reversed(kinds) for table in _tables(compared[kind], kind, names)]
    for letter, path in runs.items():
        print(f"{letter}  {path}")
    for note in notes:
        print(f"note: {note}")
    print(f"\n{len(image_ids)} images; 95 % intervals from {RESAMPLES} bootstrap resamples of them")
    for table in tables:
        print(f"\n{_format(table)}")
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "runs": runs,
        "images": len(image_ids),
        "resamples": RESAMPLES,
        "tables": [_plain(one) for one in tables],
    }
    (folder / "comparison.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    page = write_page(
        folder,
        "comparison.html",
        source=str(data.datasets["val"].dataset.annotations.source),
        runs=runs,
        pictures=len(image_ids),
        resamples=RESAMPLES,
        least=LEAST,
        notes=notes,
        tables=tables,
    )
    print(f"\nreport: {page}")


def _results_file(path: str, images: int) -> Path:
    """The results file of a run, or the file itself."""
    place = Path(path).expanduser()
    if not place.is_dir():
        return place
    file, metrics = place / "predictions.json", place / "metrics.json"
    if not file.is_file():
        raise UserError(f"compare: {place} holds no predictions.json; python evaluate.py ckpt=... writes one")
    if metrics.is_file():
        scored = json.loads(metrics.read_text(encoding="utf-8")).get("images")
        if scored != images:
            raise UserError(
                f"compare: {place} was scored on {scored} images, here there are {images}; choose the same data, split "
                "and data.limit"
            )
    return file


def _tables(compared: Comparison, kind: str, names: Sequence[str]) -> list[Table]:
    tables = []
    for i, difference in enumerate(compared.difference):
        second = i + 1
        rows = [
            Row("all classes", compared.ap[0], compared.ap[second], difference, total=True),
            Row("all, AP50", compared.ap50[0], compared.ap50[second], compared.difference50[i], total=True),
            *(
                Row(name, float(compared.class_ap[0, k]), float(compared.class_ap[second, k]), of_class)
                for k, (name, of_class) in enumerate(zip(names, compared.class_difference[i], strict=True))
            ),
        ]
        tables.append(Table(f"{kind} AP: {_LETTERS[second]} against A", "A", _LETTERS[second], rows))
    return tables


def _format(table: Table) -> str:
    """The table for a terminal; a star where the interval does not hold 0."""
    lines = [f"{table.title:<{_WIDTH}}  {table.first:>6}  {table.second:>6}  {'difference':>10}  95 % interval"]
    shown = [row for row in table.rows if row.total or len(table.rows) <= _PRINTED_CLASSES]
    for row in shown:
        name = row.name if len(row.name) <= _WIDTH else f"{row.name[: _WIDTH - 3]}..."
        value, low, high = (signed(one) for one in (row.difference.value, row.difference.low, row.difference.high))
        star = " *" * row.difference.clear
        lines.append(
            f"{name:<{_WIDTH}}  {number(row.first):>6}  {number(row.second):>6}  {value:>10}  {low} to {high}{star}"
        )
    if len(shown) < len(table.rows):
        lines.append(f"{len(table.rows) - len(shown)} classes: see the report")
    return "\n".join(lines)


def _plain(table: Table) -> dict[str, Any]:
    """For JSON, which knows no nan."""
    return {
        "title": table.title,
        "rows": [
            {
                key: None if isinstance(value, float) and math.isnan(value) else value
                for key, value in ({**asdict(row), **asdict(row.difference)}).items()
                if key not in ("difference", "total")
            }
            for row in table.rows
        ],
    }

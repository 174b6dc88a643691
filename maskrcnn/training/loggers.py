"""The table of curves that a resumed run continues."""

import csv
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import rank_zero_experiment


class CSVCurves(CSVLogger):
    """`metrics.csv`, a row on the disk as soon as it is logged.

    Lightning's own deletes the file of an earlier process.

    Args:
        folder: Where it goes.

    Attributes:
        first_step: Rows of earlier steps in a file that is there already are kept, the others dropped.
    """

    def __init__(self, *, folder: str) -> None:
        super().__init__(save_dir=folder, name="", version="", flush_logs_every_n_steps=1)
        self.first_step = 0

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer of the file."""
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir, self.first_step)
        return self._experiment


def continue_curves(trainer: Trainer, first_step: int) -> None:
    """Keep what earlier processes logged of the steps before `first_step`; before anything is logged."""
    for logger in trainer.loggers:
        if isinstance(logger, CSVCurves):
            logger.first_step = first_step


class _Writer(ExperimentWriter):
    def __init__(self, log_dir: str, first_step: int) -> None:
        self._first_step = first_step
        super().__init__(log_dir=log_dir)

    def _check_log_dir_exists(self) -> None:
        """Called before anything is written."""
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return
        keys, rows = _read(path)
        rows = [row for row in rows if int(row["step"]) < self._first_step]
        if rows:
            self.metrics_keys = keys
            _replace(path, keys, rows)
        else:
            path.unlink()

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        _replace(path, fieldnames, _read(path)[1])


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        # A line that a kill cut short lacks its last cells, and is logged again.
        rows = [row for row in table if None not in row and None not in row.values() and row.get("step", "").isdigit()]
        return list(table.fieldnames or []), rows


def _replace(path: Path, keys: list[str], rows: list[dict[str, str]]) -> None:
    part = path.with_name(f"{path.name}.part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=keys)
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)

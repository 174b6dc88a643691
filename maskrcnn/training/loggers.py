"""Where curves, pictures and tables go; a resumed run continues them."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.tensorboard.summary import hparams

_COMPARED = {"val/mask_ap": -1.0, "val/box_ap": -1.0}  # what runs are judged by; the values are not shown
# How a run is watched and kept.
_NO_SETTINGS = {"callbacks", "checkpoint", "logger", "resume", "trainer.default_root_dir", "trust"}


@runtime_checkable
class Board(Protocol):
    """A logger that takes more than curves. Names are like those of the curves; `step` is that of the curves."""

    def add_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """Show a picture, uint8 [H, W, 3]."""

    def add_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None:
        """Show a table."""


class CSVCurves(CSVLogger):
    """`metrics.csv`, a row on the disk as soon as it is logged.

    Lightning's own deletes the file of an earlier process.

    Args:
        folder: Where it goes.
    """

    def __init__(self, *, folder: str) -> None:
        super().__init__(save_dir=folder, name="", version="", flush_logs_every_n_steps=1)
        self._first_step = 0

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer of the file."""
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir, self._first_step)
        return self._experiment

    @property
    def where(self) -> str:
        """What to look at."""
        return str(Path(self.log_dir) / "metrics.csv")

    def resume(self, first_step: int) -> None:
        """Keep the rows of earlier steps that are in the file already, and drop the others."""
        self._first_step = first_step

    def log_hyperparams(self, params: Any = None) -> None:
        """Nothing: they are in `.hydra/`."""


class TensorBoardCurves(TensorBoardLogger):
    """`tensorboard/`; hyper-parameters stand beside the latest AP.

    Args:
        folder: Where it goes.
    """

    def __init__(self, *, folder: str) -> None:
        super().__init__(save_dir=folder, name="tensorboard", version="", default_hp_metric=False)
        self.resume(0)

    @property
    def where(self) -> str:
        """What to type."""
        return f"tensorboard --logdir {self.save_dir}"

    def resume(self, first_step: int) -> None:
        """Let TensorBoard show of earlier processes what they logged of earlier steps."""
        self._kwargs["purge_step"] = first_step

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Show them with the curves of `val/mask_ap` and `val/box_ap`, whatever these come to."""
        values = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in params.items()}
        experiment, start, _ = hparams(values, _COMPARED)
        for summary in (experiment, start):
            self.experiment._get_file_writer().add_summary(summary)

    @rank_zero_only
    def add_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """Under IMAGES."""
        self.experiment.add_image(name, picture, step, dataformats="HWC")

    @rank_zero_only
    def add_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None:
        """Under TEXT."""
        lines = [columns, ["---"] * len(columns), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
        self.experiment.add_text(name, "\n".join(f"| {' | '.join(line)} |" for line in lines), step)


def start_curves(trainer: Trainer, config: Mapping[str, Any], *, first_step: int | None) -> None:
    """Before anything is logged: go on where an earlier process got to, and log what the run is made of.

    Args:
        trainer: Its loggers.
        config: The plain config.
        first_step: The step that training goes on with, where it was resumed.
    """
    settings = flat_settings(config)
    for logger in trainer.loggers:
        if first_step is not None and hasattr(logger, "resume"):
            logger.resume(first_step)
        logger.log_hyperparams(settings)


def flat_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config may make a difference to the scores, by dotted key; the most telling first."""
    groups = sorted(config.keys() - _NO_SETTINGS, key=lambda key: (key not in ("optim", "schedule"), key))
    return dict(_flattened({group: config[group] for group in groups}))


def is_log_step(trainer: Trainer) -> bool:
    """Whether the loggers take the values of this step; asked at its end.

    Only then may the host read them: each time it waits for the device.
    """
    stepped = not trainer.fit_loop._should_accumulate()
    return stepped and trainer._logger_connector.should_update_logs


def last_step(trainer: Trainer) -> int:
    """The step that the curves of a validation stand at."""
    return max(trainer.global_step - 1, 0)


def _flattened(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Scalars and lists of nested nodes; what a node builds stands under the key of the node itself."""
    for key, value in node.items():
        where = f"{path}.{key}".lstrip(".")
        if isinstance(value, Mapping):
            if where != "data.augment":  # a reference to `augment`
                yield from _flattened(value, where)
        elif key == "_target_":
            yield path, str(value).rpartition(".")[2]
        elif key != "_partial_" and where not in _NO_SETTINGS:
            yield where, value


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

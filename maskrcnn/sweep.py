"""Sweeps: what came of each job, read from the job folders, as `sweep.csv` and as a table in the terminal."""

import csv
import json
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from maskrcnn.errors import UserError
from maskrcnn.launch import own_rank

TABLE = "sweep.csv"
ERROR = "error.txt"  # in the folder of a job that failed

# Choices of a plugin, by their beginning, and what they need: a package, in an extra of ours.
_PLUGINS = {"hydra/sweeper=optuna": ("Optuna", "sweep"), "hydra/launcher=slurm": ("submitit", "slurm")}

_WIDTH = 80
_LONGEST = 20  # characters of a value in the terminal
_LONGEST_NUMBER = 8  # as typed, not as drawn by a search
_LONGEST_KEY = 12  # characters of a key on one line


@dataclass(frozen=True)
class Job:
    """One job of a sweep, as its folder tells.

    Attributes:
        number: Hydra's, from 0.
        overrides: Key -> value, as typed.
        folder: Where it ran; None where it has not begun.
        mask_ap: Of the last validation.
        box_ap: Of the last validation.
        status: `done`, `failed: why`, `no score` (still running, killed, or without a validation) or `missing`.
    """

    number: int
    overrides: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None
    mask_ap: float | None = None
    box_ap: float | None = None
    status: str = "missing"


def read_jobs(sweep: Path) -> list[Job]:
    """The jobs whose folders are in that of the sweep: best mask AP first, then those without, by number."""
    jobs = {job.number: job for job in map(_read_job, sweep.rglob(".hydra/hydra.yaml"))}
    every = [jobs.get(number, Job(number)) for number in range(max(jobs, default=-1) + 1)]
    return sorted(every, key=lambda job: (job.mask_ap is None, -(job.mask_ap or 0.0), job.number))


def swept_keys(jobs: Sequence[Job]) -> list[str]:
    """The overrides in which the jobs differ, in the order of the command line."""
    begun = [job.overrides for job in jobs if job.folder]
    keys = dict.fromkeys(key for overrides in begun for key in overrides)
    return [key for key in keys if len({overrides.get(key) for overrides in begun}) > 1]


def write_table(sweep: Path, jobs: Sequence[Job]) -> None:
    """Write `sweep.csv`: job, a column for each swept override, mask_ap, box_ap, status, folder."""
    keys = swept_keys(jobs)
    temporary = sweep / f".{TABLE}.{os.getpid()}"  # jobs that run side by side may write at the same time
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["job", *keys, "mask_ap", "box_ap", "status", "folder"])
        for job in jobs:
            values = (job.overrides.get(key) for key in keys)
            writer.writerow([job.number, *values, job.mask_ap, job.box_ap, job.status, job.folder])
    temporary.replace(sweep / TABLE)


def print_table(sweep: Path, jobs: Sequence[Job]) -> None:
    """Print the table on at most 80 columns, with long values shortened in their middle."""
    keys = swept_keys(jobs)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("job", justify="right")
    for key in keys:
        group, dot, name = key.rpartition(".")
        table.add_column(f"{group}.\n{name}" if dot and len(key) > _LONGEST_KEY else key, overflow="fold")
    table.add_column("mask AP", justify="right")
    table.add_column("box AP", justify="right")
    table.add_column("folder", overflow="fold")
    for job in jobs:
        scores = (
            (job.status.partition(":")[0], "") if job.mask_ap is None else (f"{job.mask_ap:.4f}", _score(job.box_ap))
        )
        folder = job.folder.relative_to(sweep) if job.folder else ""
        table.add_row(str(job.number), *(_short(job.overrides.get(key, "")) for key in keys), *scores, str(folder))
    console = Console(markup=False, highlight=False)
    console.width = min(console.width, _WIDTH)
    console.print()
    console.print(table)
    print(f"\nsweep: {sweep / TABLE}", flush=True)


def check_plugins(arguments: Sequence[str]) -> None:
    """Look whether the sweeper and the launcher that are chosen are installed.

    Raises:
        UserError: One of them is not; names the extra that brings it.
    """
    for start, (package, extra) in _PLUGINS.items():
        chosen = next((argument for argument in arguments if argument.startswith(start)), None)
        if chosen and find_spec(package.lower()) is None:
            raise UserError(f"{chosen}: {package} is not installed; pip install 'maskrcnn-lightning[{extra}]'")


class SweepTable(Callback):
    """Hydra's hooks: a job that fails does not end the sweep, the table is there after each job."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse what the sweeper cannot do; make the folder, since a study's storage opens before the first job."""
        sweeper = config.hydra.sweeper
        direction = sweeper.get("direction", "maximize")
        if getattr(direction, "name", direction) != "maximize":
            _stop(
                "hydra.sweeper.direction: the returned mask AP is to be maximised; "
                "choose hydra/sweeper=optuna_mask_ap, or add hydra.sweeper.direction=maximize"
            )
        interval = next((override for override in config.hydra.overrides.task if "interval(" in override), None)
        if interval and sweeper._target_.endswith(".BasicSweeper"):
            _stop(f"{interval}: a grid takes single values, as in 1,2,3; to search, add hydra/sweeper=optuna_mask_ap")
        _sweep_folder(config).mkdir(parents=True, exist_ok=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Keep a failure in the job's folder; end a search that has nothing to go by."""
        if config.hydra.mode is not RunMode.MULTIRUN or own_rank():
            return
        note = Path(config.hydra.runtime.output_dir) / ERROR
        note.unlink(missing_ok=True)
        if job_return.status is JobStatus.FAILED:
            problem = _report(job_return._return_value)  # without the underscore it would be raised
            note.write_text(problem, encoding="utf-8")
            if "max_failure_rate" not in config.hydra.sweeper:  # which counts failures by itself
                job_return.status, job_return.return_value = JobStatus.COMPLETED, None
        sweep = _sweep_folder(config)
        jobs = read_jobs(sweep)
        write_table(sweep, jobs)
        if "n_trials" in config.hydra.sweeper:
            _check_search(config, sweep, jobs)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the table; a failed job makes the exit code 1."""
        if own_rank():
            return
        sweep = _sweep_folder(config)
        jobs = read_jobs(sweep)
        write_table(sweep, jobs)
        print_table(sweep, jobs)
        failed = sum(job.status.startswith("failed") for job in jobs)
        if failed:
            _stop(f"{failed} of {len(jobs)} jobs failed; see the column status of {TABLE}")


def _check_search(config: DictConfig, sweep: Path, jobs: Sequence[Job]) -> None:
    number = config.hydra.job.num
    if next(job for job in jobs if job.number == number).status == "no score":
        problem = (
            "the trial ended without a validation, so there is no mask AP to maximise; see trainer.max_steps, "
            "trainer.limit_val_batches, trainer.check_val_every_n_epoch, trainer.fast_dev_run"
        )
    elif number + 1 == config.hydra.sweeper.n_trials and jobs[0].mask_ap is None:
        problem = "no trial ended with a mask AP; the errors are above"
    else:
        return
    print_table(sweep, jobs)
    _stop(problem)


def _read_job(settings: Path) -> Job:
    folder = settings.parent.parent
    hydra = OmegaConf.load(settings).hydra
    parts = (override.partition("=") for override in hydra.overrides.task)
    job = Job(hydra.job.num, {key.lstrip("+"): value for key, _, value in parts}, folder, status="no score")
    note, metrics = folder / ERROR, folder / "metrics.json"
    if note.exists():
        return replace(job, status=f"failed: {note.read_text(encoding='utf-8')}")
    if not metrics.exists():
        return job
    scores = json.loads(metrics.read_text(encoding="utf-8"))
    mask_ap, box_ap = (scores.get(kind, {}).get("ap") for kind in ("mask", "box"))
    return replace(job, mask_ap=mask_ap, box_ap=box_ap, status="done")


def _sweep_folder(config: DictConfig) -> Path:
    return Path(config.hydra.runtime.cwd) / config.hydra.sweep.dir


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _short(value: str) -> str:
    if len(value) > _LONGEST_NUMBER:
        with suppress(ValueError):
            return f"{float(value):.4g}"
    half = _LONGEST // 2
    return value if len(value) <= _LONGEST else f"{value[: half - 1]}…{value[-half:]}"


def _report(error: Exception) -> str:
    """Print it, a mistake of the user's without a traceback; returns it as one line."""
    if isinstance(error, CompactHydraException):
        print(error, file=sys.stderr)
        return str(error).removeprefix("error: ")
    traceback.print_exception(error)
    return " ".join(f"{type(error).__name__}: {error}".split())


def _stop(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(1)

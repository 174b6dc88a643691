"""How checkpoints are written, and how a run that was killed finds the one to go on from."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from maskrcnn.errors import UserError
from maskrcnn.models.weights import CHECKPOINT_KEY, load_file

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TRAINING_STATE = {CHECKPOINT_KEY, "state_dict", "optimizer_states", "lr_schedulers", "loops", "global_step"}


class LastCheckpoint(ModelCheckpoint):
    """`last.ckpt`, after every epoch and, if asked for, every so many steps.

    Args:
        dirpath: Where it goes.
        every_n_steps: Optimizer steps; null for the ends of epochs alone.

    Attributes:
        asked: Save at the end of each step now.
    """

    def __init__(self, *, dirpath: str, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1 or null, got {every_n_steps}")
        super().__init__(dirpath=dirpath, filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
        self.every_n_steps = every_n_steps
        self.asked = False

    def holds(self, step: int) -> bool:
        """Whether the file is of this step."""
        return 0 < step == self._last_global_step_saved

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, unless a validation or the end of the epoch is next: Lightning would resume behind it.

        Nor amid batches whose gradients are summed up: these are not in a checkpoint.
        """
        step, loop = trainer.global_step, trainer.fit_loop.epoch_loop
        due = self.asked or (self.every_n_steps is not None and step % self.every_n_steps == 0)
        if not due or self.holds(step) or loop._should_accumulate():
            return
        fetcher = trainer.fit_loop._data_fetcher
        assert fetcher is not None
        if loop.batch_progress.is_last_batch or loop._should_check_val_fx(fetcher):
            return
        self._save_none_monitor_checkpoint(trainer, self._monitor_candidates(trainer))


class AtomicCheckpointIO(TorchCheckpointIO):
    """Replaces a checkpoint at once: a kill at any moment leaves the one before.

    Lightning's own moves it over from the system's temporary folder, which may be on another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        """Write beside the target, then rename.

        Raises:
            UserError: The disk is full, or the file cannot be written for another reason.
        """
        path = Path(path)
        part = path.with_name(f"{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())  # or a power failure may leave the new name on an empty file
            part.replace(path)
        except (OSError, RuntimeError) as error:
            # torch goes on to complain about its own file.
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            with suppress(OSError):
                part.unlink()
            raise _not_written(path, cause, path.parent) from error


def read_training_state(path: Path) -> dict[str, Any]:
    """A checkpoint that training can go on from, its tensors not read yet.

    Raises:
        UserError: It is missing, damaged, or not from a training run of this project; names the newest good
            checkpoint beside it.
    """
    try:
        return _read(path)
    except UserError as error:
        other = newest_checkpoint(path.parent, without=path)
        hint = f"; the newest other good checkpoint of that run is {other}" if other else ""
        raise UserError(f"{error}{hint}") from None


def newest_checkpoint(folder: Path, *, without: Path | None = None) -> Path | None:
    """The newest file among a run's checkpoints that training can go on from; None where there is none."""
    for path in _by_age(folder.glob("*.ckpt")):
        if without is None or path.resolve() != without.resolve():
            try:
                _read(path)
            except UserError:
                continue
            return path
    return None


def newest_run(outputs: Path) -> Path:
    """The run folder with the newest checkpoint below `outputs`, alone or in a sweep.

    Raises:
        UserError: There is none.
    """
    found = _by_age(path for depth in ("*", "*/*") for path in outputs.glob(f"{depth}/checkpoints/*.ckpt"))
    if not found:
        raise UserError(f"resume=auto: no run with a checkpoint below {outputs}; name the run with hydra.run.dir=...")
    return found[0].parent.parent


@contextmanager
def full_disk_in_words(run: Path) -> Iterator[None]:
    """Say what it means for a run if any of its files cannot be written because the disk is full.

    Raises:
        UserError: Instead of the system's error.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _not_written(Path(error.filename or run), error, run / "checkpoints") from error


def _not_written(path: Path, error: OSError, checkpoints: Path) -> UserError:
    """Names the file, how much room there is, and the checkpoint to go on from."""
    free = shutil.disk_usage(next(folder for folder in path.absolute().parents if folder.is_dir())).free
    advice = "; make room on the disk (see also quota and ulimit -f)" if error.errno in _FULL else ""
    last = newest_checkpoint(checkpoints)
    after = f"the checkpoint before is whole: go on with resume={last}" if last else "no earlier checkpoint exists"
    return UserError(f"{path}: cannot be written: {error.strerror}, {free / 1e9:.1f} GB are free{advice}; {after}")


def _by_age(paths: Iterator[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def _read(path: Path) -> dict[str, Any]:
    content = load_file(path, "resume", mmap=True)
    if not isinstance(content, dict) or not set(content) >= _TRAINING_STATE:
        raise UserError(
            f"resume={path}: not a checkpoint of a training run of this project; init={path} starts from weights alone"
        )
    return content

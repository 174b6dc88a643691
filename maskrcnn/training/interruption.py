"""Signals: a run that is told to stop saves first, and a Slurm job goes back into the queue."""

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning import Callback, LightningModule, Trainer

from maskrcnn.errors import UserError
from maskrcnn.launch import children, own_rank
from maskrcnn.training.checkpoints import LastCheckpoint
from maskrcnn.training.slurm import job_id, requeue

SIGNALS = tuple(one for one in signal.Signals if one.name in ("SIGINT", "SIGTERM", "SIGUSR1"))  # Windows has no third


class Stop(SystemExit):
    """Training was stopped by a signal; ends the process with the code that a shell gives for it.

    Args:
        signum: The signal.
        step: Optimizer steps that were taken.
        checkpoint: Where the run goes on, if it was saved.
    """

    def __init__(self, signum: int, *, step: int, checkpoint: Path | None) -> None:
        # Of several processes one carries the code: launchers kill the others where any but the first fails.
        super().__init__(0 if own_rank() else 128 + signum)
        self.signum = signum
        self.step = step
        self.checkpoint = checkpoint


class Interruption(Callback):
    """On SIGINT, SIGTERM or SIGUSR1 saves `last.ckpt` at the end of a training batch, and stops.

    Never during validation, when averaged weights are in the model, and only where a resumed run goes on exactly:
    `LastCheckpoint` knows. A second signal of the same kind ends the process at once.

    Several processes agree on the step over the CPU, one step behind, so that no device is waited for. Lightning's
    own handlers would save without asking the others, and its own agreement waits for the device at every step.
    """

    def __init__(self) -> None:
        self._received = self._agreed = 0  # signal numbers: of this process, and of all
        self._replaced: dict[int, Any] = {}
        self._group: Any = None
        self._reduction: tuple[dist.Work, torch.Tensor] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over the signals."""
        if stage != "fit":
            return
        self._trainer = trainer
        trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]
        if trainer.world_size > 1:
            self._group = dist.new_group(backend="gloo")
        self._replaced = {signum: signal.signal(signum, self._receive) for signum in SIGNALS}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask for a checkpoint; it is written behind all other callbacks."""
        if not self._agreed:
            self._agreed = self._received if self._group is None else self._agree()
        if self._agreed and (last := _last(trainer)):
            last.asked = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop, once the last step is saved and logged."""
        if not self._agreed:
            return
        last = _last(trainer)
        if last is None:
            raise Stop(self._agreed, step=trainer.global_step, checkpoint=None)
        if last.holds(trainer.global_step):
            raise Stop(self._agreed, step=trainer.global_step, checkpoint=Path(last.best_model_path))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let no process leave the others waiting."""
        if self._reduction:
            self._reduction[0].wait()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._restore()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        self._restore()

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
        self._received = max(self._received, signum)
        if not self._trainer.is_global_zero:
            return
        what = "saving and stopping" if _last(self._trainer) else "stopping without a checkpoint"
        if not self._trainer.training:
            when = "the first batch after this validation"
        else:
            when = "this epoch" if self._trainer.fit_loop.epoch_loop.batch_progress.is_last_batch else "this batch"
        with suppress(RuntimeError):  # the signal came while something was being printed
            print(f"{signal.Signals(signum).name}: {what} at the end of {when}; once more stops at once", flush=True)

    def _agree(self) -> int:
        """What the processes had received at the end of the batch before; the same on all."""
        if self._reduction:
            work, received = self._reduction
            work.wait()
            if received.item():
                self._reduction = None
                return int(received)
        received = torch.tensor(self._received)
        work = dist.all_reduce(received, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None
        self._reduction = work, received
        return 0

    def _restore(self) -> None:
        for signum, handler in self._replaced.items():
            signal.signal(signum, handler)
        self._replaced = {}


@contextmanager
def stoppable() -> Iterator[None]:
    """Around `trainer.fit`: says how a stopped run goes on, and has Slurm start its job again after SIGUSR1."""
    try:
        yield
    except Stop as stop:
        if own_rank() == 0:
            _conclude(stop)
            children.wait()  # which stop at the same step: killed before they have tidied up, they would leave things
        raise
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning has tidied up
            raise SystemExit(128 + signal.SIGINT) from None
        raise


def _conclude(stop: Stop) -> None:
    if stop.checkpoint is None:
        print(f"stopped at step {stop.step}; nothing was saved: the config has no checkpoint.last", flush=True)
        return
    go_on = f"go on with python train.py {shlex.quote(f'resume={stop.checkpoint}')}"
    job = job_id() if signal.Signals(stop.signum).name == "SIGUSR1" else None
    if job is None:
        print(f"stopped at step {stop.step}: {go_on}", flush=True)
        return
    # Said before it is done: it may end this process at once.
    print(f"stopped at step {stop.step}: Slurm starts job {job} again, which goes on from there", flush=True)
    try:
        requeue(job)
    except UserError as error:
        print(f"error: {error}; {go_on}", file=sys.stderr)


def _last(trainer: Trainer) -> LastCheckpoint | None:
    return next((saver for saver in trainer.checkpoint_callbacks if isinstance(saver, LastCheckpoint)), None)


def _nothing() -> None:
    pass

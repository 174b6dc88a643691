"""What a terminal shows while a run is going on."""

import logging
import math
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar as LightningProgressBar
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from maskrcnn.training.loggers import is_log_step

# What is shown of the curves; short enough for one line of 80 columns.
_SHORT_NAMES = {
    "train/loss": "loss",
    "train/loss_objectness": "obj",
    "train/loss_rpn_box_reg": "rpn",
    "train/loss_classifier": "cls",
    "train/loss_box_reg": "box",
    "train/loss_mask": "mask",
    "train/lr": "lr",
}
_PAUSE = 0.2  # s between two drawings; nothing is drawn in between, so that no thread is needed


class ProgressBar(LightningProgressBar):
    """A bar for each epoch with the time that the run will still take, and the losses and learning rate below.

    The host reads the losses at the first step and then every `trainer.log_every_n_steps`. Lines that are printed
    or logged meanwhile appear above the bar. Where the output is no terminal there is none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_enabled = True
        self._display: _Display | None = None
        self._shown = ExitStack()

    def disable(self) -> None:
        """Show nothing, as on all processes but the first."""
        self.is_enabled = False

    def enable(self) -> None:
        """Show it again."""
        self.is_enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar: an epoch that is resumed in its middle has no start."""
        self._start()
        self._begin_epoch(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._begin_epoch(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar; read the numbers if it is time."""
        if self._display is None:
            return
        if not self._display.numbers or is_log_step(trainer):
            known = trainer.callback_metrics
            self._display.numbers = {short: known[name].item() for name, short in _SHORT_NAMES.items() if name in known}
        self._display.advance_to(self._train_bar, batch_idx + 1)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show a second bar."""
        self._start()
        if self._display is not None:
            batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
            self._validation_bar = self._display.add_task("validation", total=sum(batches), later=0)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Move it."""
        if self._display is not None:
            self._display.advance_to(self._validation_bar, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take it away."""
        if self._display is not None:
            self._display.remove_task(self._validation_bar)
            self._display.refresh()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the terminal as it was."""
        self._stop()

    def _start(self) -> None:
        if self._display is None and self.is_enabled:
            display = _Display()
            if display.console.is_terminal or display.console.is_jupyter:
                streams = {sys.stdout, sys.stderr}
                self._display = self._shown.enter_context(display)
                self._shown.enter_context(_logging_above(streams))

    def _stop(self) -> None:
        self._shown.close()
        self._display = None

    def _begin_epoch(self, trainer: Trainer) -> None:
        if self._display is None:
            return
        for task in self._display.tasks:
            self._display.remove_task(task.id)
        total = int(trainer.num_training_batches)
        left = (int(trainer.estimated_stepping_batches) - trainer.global_step) * trainer.accumulate_grad_batches
        last = f"/{trainer.max_epochs - 1}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        self._train_bar = self._display.add_task(
            f"epoch {trainer.current_epoch}{last}", total=total, later=max(left - total, 0)
        )


class _Display(Progress):
    """Bars with a line of numbers below them."""

    def __init__(self) -> None:
        self.numbers: dict[str, float] = {}
        self._drawn = 0.0
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(bar_width=34),
            MofNCompleteColumn(),
            _RemainingColumn(),
            console=Console(),  # rich's own remembers what the output was when it was made
            auto_refresh=False,
            speed_estimate_period=600,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars, and what is below."""
        yield from super().get_renderables()
        if self.numbers:
            shown = "  ".join(f"{name} {_number(name, value)}" for name, value in self.numbers.items())
            yield Text(shown, no_wrap=True, overflow="ellipsis")

    def advance_to(self, bar: TaskID, completed: int) -> None:
        """Move a bar, and draw it if it was not drawn just now."""
        self.update(bar, completed=completed)
        now = time.perf_counter()
        if now - self._drawn > _PAUSE:
            self._drawn = now
            self.refresh()


class _RemainingColumn(ProgressColumn):
    """Time until the end of the run, validations not counted."""

    def render(self, task: Task) -> Text:
        """Until the end of the task, and of what comes later at the same speed."""
        left = (task.remaining or 0) + task.fields["later"]
        remaining = "-:--:--" if not task.speed else timedelta(seconds=math.ceil(left / task.speed))
        return Text(f"ETA {remaining}")


def _number(name: str, value: float) -> str:
    if name == "lr":
        return f"{value:.1e}"
    if abs(value) < 1000:
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"
    return f"{value:.3g}"


@contextmanager
def _logging_above(streams: set[Any]) -> Iterator[None]:
    """Let log handlers that write to these streams write to the present stdout and stderr: above the bar."""
    moved = []
    for logger in (logging.getLogger(), logging.getLogger("pytorch_lightning")):
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream in streams:
                moved.append((handler, handler.setStream(sys.stdout)))
    try:
        yield
    finally:
        for handler, stream in moved:
            handler.setStream(stream)

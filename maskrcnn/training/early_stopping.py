"""Ends a run whose score no longer rises."""

from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning import callbacks as lightning

from maskrcnn.errors import UserError


class EarlyStopping(lightning.EarlyStopping):
    """Lightning's, but a run that it has ended does not go on when it is resumed.

    Args:
        monitor: What is watched, as it is logged.
        mode: `max` if it should rise, `min` if it should fall.
        patience: Validations without an improvement after which the run ends.
        min_delta: What counts as one.
    """

    def __init__(
        self, *, monitor: str = "val/mask_ap", mode: str = "max", patience: int = 5, min_delta: float = 0.001
    ) -> None:
        if patience < 1:
            raise ValueError(f"patience must be at least 1, got {patience}")
        super().__init__(monitor=monitor, mode=mode, patience=patience, min_delta=min_delta)

    @property
    def has_ended(self) -> bool:
        """Whether the run is over."""
        return self.wait_count >= self.patience

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave a run as it ended."""
        trainer.should_stop = trainer.should_stop or self.has_ended

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that it has ended."""
        if self.has_ended and trainer.is_global_zero:
            print(f"early stopping: {self.monitor} has not improved in {self.patience} validations", flush=True)

    def _run_early_stopping_check(self, trainer: Trainer) -> Any:
        if self.monitor not in trainer.callback_metrics and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            known = ", ".join(sorted(name for name in trainer.callback_metrics if name.startswith("val/")))
            raise UserError(f"early_stopping.monitor={self.monitor}: is not logged; the scores are {known}")
        return super()._run_early_stopping_check(trainer)

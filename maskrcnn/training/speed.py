"""How fast a run is, and what holds it up."""

import time
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from maskrcnn.training.loggers import is_log_step


class Speed(Callback):
    """Logs what training costs, every `trainer.log_every_n_steps`; validations and checkpoints are not counted.

    perf/images_per_second: of all devices together.
    perf/data_wait: share of the time that this process waits for its next batch, in [0, 1].
    perf/gpu_memory_gb: the most that tensors have taken on this process's GPU in the run, in 1e9 bytes; not on
        a CPU, whose memory belongs to the data and to other programs too.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock: an epoch that is resumed in its middle has no start."""
        self._images, self._seconds, self._waited = 0, 0.0, 0.0
        self._mark: float | None = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from here on: waiting for the first batch, too."""
        self._mark = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The next batch is there."""
        now = time.perf_counter()
        waited = 0.0 if self._mark is None else now - self._mark
        self._waited += waited
        self._seconds += waited
        self._mark = now

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch; log now and then."""
        now = time.perf_counter()
        assert self._mark is not None
        self._seconds += now - self._mark
        self._images += len(batch[1]) * trainer.world_size
        self._mark = now
        if is_log_step(trainer):
            numbers = {"images_per_second": self._images / self._seconds, "data_wait": self._waited / self._seconds}
            if pl_module.device.type == "cuda":
                numbers["gpu_memory_gb"] = torch.cuda.max_memory_allocated(pl_module.device) / 1e9
            pl_module.log_dict({f"perf/{name}": number for name, number in numbers.items()}, batch_size=1)
            self._images, self._seconds, self._waited = 0, 0.0, 0.0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on counting."""
        self._mark = time.perf_counter()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Until the next batch is there, time goes into the checkpoint."""
        self._mark = None

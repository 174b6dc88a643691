"""What to do when the GPU's memory is used up."""

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

_FOR_TRAINING = (
    "lower data.batch_size (trainer.accumulate_grad_batches makes up for it), data.max_size with data.min_sizes, or "
    "model.roi.sampler.batch_size_per_image; or set trainer.precision=bf16-mixed or "
    "model.backbone.gradient_checkpointing=true"
)
_FOR_VALIDATION = "lower data.batch_size or model.input.max_size, or set trainer.precision=bf16-mixed"


class OutOfMemory(Callback):
    """Makes an error of CUDA running out of memory say on what batch it happened, and which keys to turn."""

    def __init__(self) -> None:
        self._batch = self._advice = ""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the size of the batch."""
        images, targets = batch
        count, _, height, width = images.pixels.shape
        instances = sum(len(target["labels"]) for target in targets)
        self._batch = f"in training, on {count} pictures padded to {height} x {width} with {instances} instances"
        self._advice = _FOR_TRAINING

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Note the size of the batch."""
        images, _ = batch
        height, width = (max(sides) for sides in zip(*(image.shape[-2:] for image in images), strict=True))
        self._batch = f"in validation, on {len(images)} pictures of up to {height} x {width}"
        self._advice = _FOR_VALIDATION

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Replace the message: the exception goes on, so that everything is taken down in order."""
        if isinstance(exception, torch.OutOfMemoryError) and self._batch:
            reason = str(exception).split(". ")[0]
            exception.args = (f"{reason}, {self._batch}; {self._advice}",)

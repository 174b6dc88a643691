"""What a run says about itself: before it starts, and once its first steps are measured."""

import math
import resource
import sys
import time
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn

from maskrcnn.data.datamodule import DetectionDataModule
from maskrcnn.training.module import MaskRCNNModule

_WARM_UP = 2  # steps that are not measured
_MEASURED = 10


def announce(trainer: Trainer, module: MaskRCNNModule, data: DetectionDataModule) -> None:
    """Say in a few lines what is about to be trained."""
    if not trainer.is_global_zero:
        return
    print(
        f"Mask R-CNN, {len(module.categories)} classes; "
        f"{trainer.num_devices * trainer.num_nodes} x {trainer.accelerator.name()}, {trainer.precision}\n"
        f"{len(data.datasets['train'])} training and {len(data.datasets['val'])} validation pictures\n"
        f"run folder: {trainer.default_root_dir}",
        flush=True,
    )


class Summary(Callback):
    """Prints once, after the first dozen steps, the size of everything and how long the run will take.

    The clock stands still during validation. The device is waited for when it is started, stopped and read.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._over = not trainer.is_global_zero or bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        self._first = self._seen = trainer.global_step
        left = int(trainer.estimated_stepping_batches) - self._first
        self._warm_up = _WARM_UP if left > _WARM_UP else 0
        self._seconds, self._since = 0.0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock again after the warm-up; some steps later, show what it says."""
        if self._over or trainer.global_step == self._seen:
            return
        self._seen = trainer.global_step
        if self._measured == 0:
            self._seconds, self._since = 0.0, _now(pl_module)
        elif self._measured == _MEASURED:
            self._show(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        if not trainer.sanity_checking and trainer.state.fn == "fit" and not self._over:
            self._seconds += _now(pl_module) - self._since

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let it go on."""
        if not trainer.sanity_checking and trainer.state.fn == "fit" and not self._over:
            self._since = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show what there is of a shorter run."""
        if not self._over and self._measured > 0:
            self._show(trainer, pl_module)

    @property
    def _measured(self) -> int:
        """Steps on the clock."""
        return self._seen - self._first - self._warm_up

    def _show(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, MaskRCNNModule)
        self._over = True
        seconds = (self._seconds + _now(module) - self._since) / self._measured
        parameters = list(module.model.parameters())
        count, trained = (sum(p.numel() for p in some) / 1e6 for some in (parameters, _trained(parameters)))
        images = len(trainer.datamodule.datasets["train"])  # type: ignore[attr-defined]
        per_device = module.images_per_step // trainer.world_size // trainer.accumulate_grad_batches
        per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        total = int(trainer.estimated_stepping_batches)
        left = total - trainer.global_step
        lr = max(group.get("initial_lr", group["lr"]) for group in trainer.optimizers[0].param_groups)
        print(
            f"model   {count:.1f} M parameters, {trained:.1f} M of them trained; {len(module.categories)} classes\n"
            f"data    {images} pictures, {module.images_per_step} a step ({trainer.world_size} x {per_device} at a time"
            f"{f', {trainer.accumulate_grad_batches} times' if trainer.accumulate_grad_batches > 1 else ''})\n"
            f"steps   {per_epoch} an epoch, {total} in all, {left} to go; lr {lr:g}\n"
            f"time    {seconds:.3g} s a step, about {_duration(left * seconds)} to go (training alone)\n"
            f"memory  {_memory(module.device)}",
            flush=True,
        )


def _trained(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]


def _now(module: LightningModule) -> float:
    if module.device.type == "cuda":
        torch.cuda.synchronize(module.device)
    return time.perf_counter()


def _duration(seconds: float) -> str:
    """The two largest units."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} days {minutes % 1440 // 60} h"


def _memory(device: torch.device) -> str:
    """The most that was used until now."""
    if device.type == "cuda":
        used, whole = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
        return f"{used / 1e9:.1f} of {whole / 1e9:.1f} GB of this GPU"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB of main memory"

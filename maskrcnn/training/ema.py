"""Exponential moving average of the weights."""

import math
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor


class EMA(WeightAveraging):
    """Averages the weights after every optimizer step; validation and checkpoints use the average.

    At step t after the start the average keeps a share decay * (1 - exp(-t / tau)) of itself, so that the first
    steps, far from the end, are soon forgotten. Until the start it equals the weights. Float parameters and
    buffers (BatchNorm statistics) are averaged, integers are copied.

    A checkpoint holds the average as its `state_dict` and the weights that training goes on with beside it.

    Args:
        decay: Share that the average keeps of itself in the long run.
        tau: Steps over which that share rises.
        start_step: Optimizer steps before the averaging starts.
    """

    def __init__(self, *, decay: float = 0.9999, tau: float = 2000.0, start_step: int = 0) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay}")
        if tau <= 0:
            raise ValueError(f"tau must be above 0, got {tau}")
        if start_step < 0:
            raise ValueError(f"start_step must be at least 0, got {start_step}")
        super().__init__()
        self.decay = decay
        self.tau = tau
        self.start_step = start_step

    def decay_at(self, step: int) -> float:
        """Share that the average keeps at optimizer step 1, 2, ...; 0 until the start."""
        return self.decay * (1 - math.exp(-max(step - self.start_step, 0) / self.tau))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the average on the device that the model is about to be moved to."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the average towards the weights, if they were updated."""
        if trainer.global_step == self._latest_update_step:
            return
        self._latest_update_step = trainer.global_step
        average, current = _tensors(self._average_model.module), _tensors(pl_module)  # type: ignore[union-attr]
        floats = [(a, c) for a, c in zip(average, current, strict=True) if a.is_floating_point()]
        others = [(a, c) for a, c in zip(average, current, strict=True) if not a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in floats], [c for _, c in floats], 1 - self.decay_at(trainer.global_step))
        if others:
            torch._foreach_copy_([a for a, _ in others], [c for _, c in others])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the weights as they are: the checkpoints hold the average, and training may go on from them."""


def _tensors(module: torch.nn.Module) -> list[Tensor]:
    return [tensor.data for tensor in (*module.parameters(), *module.buffers())]

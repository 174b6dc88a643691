"""The LightningModule: model, losses, optimizer and validation."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from maskrcnn.errors import UserError
from maskrcnn.evaluation.coco import CocoMetric
from maskrcnn.evaluation.results import to_results
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.models.weights import CHECKPOINT_KEY
from maskrcnn.ops.image_batch import ImageBatch


class MaskRCNNModule(LightningModule):
    """Trains and validates a Mask R-CNN.

    Args:
        model: The network.
        categories: {"id", "name"} of each label 1..K; travels in the checkpoint.
        category_ids: The validation set's category of each label, None where it has none; by default `categories`.
        ground_truth: The validation set as a parsed instances file; without one, detections are kept but not scored.
        optimizer: Makes the optimizer from parameter groups.
        schedule: Makes the schedule from the optimizer, total_steps and steps_per_epoch.
        config: Plain config that travels in the checkpoint.
        seed: With step and rank, the source of every random draw of a training step.
    """

    def __init__(
        self,
        *,
        model: MaskRCNN,
        categories: list[dict[str, Any]],
        ground_truth: dict[str, Any] | None,
        category_ids: Sequence[int | None] | None = None,
        optimizer: Callable[..., Optimizer] | None = None,
        schedule: Callable[..., LRScheduler] | None = None,
        config: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.categories = categories
        self.category_ids = category_ids or [category["id"] for category in categories]
        self.metric = CocoMetric(ground_truth)
        self.scores: dict[str, dict[str, float]] = {}
        self._make_optimizer = optimizer
        self._make_schedule = schedule
        self._config = config or {}
        self._seed = seed

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer over two parameter groups, and a schedule per step."""
        assert self._make_optimizer and self._make_schedule
        optimizer = self._make_optimizer(parameter_groups(self.model))
        self.trainer.fit_loop.setup_data()  # its length is asked for next
        total = self.trainer.estimated_stepping_batches
        if math.isinf(total):
            raise UserError("trainer.max_epochs, trainer.max_steps: set one; the schedule needs an end")
        steps_per_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        schedule = self._make_schedule(optimizer, total_steps=int(total), steps_per_epoch=steps_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed what the step draws, such as the sampled anchors, so that a resumed run draws the same."""
        source = (self._seed, self.trainer.fit_loop.epoch_loop.total_batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(source).generate_state(1, np.uint64)[0]))

    def training_step(self, batch: tuple[ImageBatch, list[dict[str, Tensor]]], _: int) -> Tensor:
        """Sum of the five losses."""
        losses = self.model(*batch)
        loss = sum(losses.values())
        size = len(batch[1])
        self.log("train/loss", loss, prog_bar=True, batch_size=size)
        self.log_dict({f"train/{name}": value for name, value in losses.items()}, prog_bar=True, batch_size=size)
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=size)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        self.metric.reset()

    def validation_step(self, batch: tuple[list[Tensor], list[int]], _: int) -> None:
        """Detections, run-length encoded at once, to the metric."""
        images, image_ids = batch
        results = []
        for detections, image, image_id in zip(self.model.predict(images), images, image_ids, strict=True):
            results += to_results(
                detections,
                image_id=image_id,
                size=(image.shape[-2], image.shape[-1]),
                category_ids=self.category_ids,
                paste=self.model.roi_heads.mask_head.paste,
            )
        self.metric.update(image_ids, results)

    def on_validation_epoch_end(self) -> None:
        """COCO AP over all ranks, logged as val/box_ap ... val/mask_ar_large."""
        self.scores = self.metric.compute()
        self.log_dict(
            {f"val/{kind}_{name}": value for kind, numbers in self.scores.items() for name, value in numbers.items()}
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what evaluation and prediction need besides weights: plain types only."""
        checkpoint[CHECKPOINT_KEY] = {"config": self._config, "categories": self.categories}


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: biases and normalisation get no weight decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() > 1]},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]

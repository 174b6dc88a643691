"""The LightningModule: model, losses, optimizer and validation."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from maskrcnn.errors import UserError
from maskrcnn.evaluation.coco import CocoMetric
from maskrcnn.evaluation.results import to_results
from maskrcnn.models.exported.onnx_model import OnnxModel
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.models.tta import AugmentedMaskRCNN
from maskrcnn.models.weights import CHECKPOINT_KEY
from maskrcnn.ops.image_batch import ImageBatch
from maskrcnn.training.distributed import share_buffers
from maskrcnn.training.stopwatch import Stopwatch


class MaskRCNNModule(LightningModule):
    """Trains and validates a Mask R-CNN.

    Args:
        model: The network; for validation alone, an exported one will do.
        categories: {"id", "name"} of each label 1..K; travels in the checkpoint.
        category_ids: The validation set's category of each label, None where it has none; by default `categories`.
        ground_truth: The validation set as a parsed instances file; without one, detections are kept but not scored.
        optimizer: Makes the optimizer from the model, the pictures per step and `fused`, see `training/optimizers.py`.
        schedule: Makes the schedule from the optimizer, total_steps and steps_per_epoch.
        batch_size: Training pictures of a batch, per device.
        compile: Whether backbone and neck are compiled, or torch's mode of it.
        config: Plain config that travels in the checkpoint.
        seed: With step and rank, the source of every random draw of a training step.
    """

    def __init__(
        self,
        *,
        model: MaskRCNN | OnnxModel,
        categories: list[dict[str, Any]],
        ground_truth: dict[str, Any] | None,
        category_ids: Sequence[int | None] | None = None,
        optimizer: Callable[..., Optimizer] | None = None,
        schedule: Callable[..., LRScheduler] | None = None,
        batch_size: int = 1,
        compile: bool | str = False,
        config: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.categories = categories
        self.category_ids = category_ids or [category["id"] for category in categories]
        self.metric = CocoMetric(ground_truth)
        self.scores: dict[str, dict[str, float]] = {}
        self.scored_step = -1
        self.watch = Stopwatch()  # of the last validation
        self.augmented: AugmentedMaskRCNN | None = None  # predicts in place of the model
        self._make_optimizer = optimizer
        self._make_schedule = schedule
        self._batch_size = batch_size
        self._compile = compile
        self._config = config or {}
        self._seed = seed

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, and a schedule per step."""
        assert self._make_optimizer and self._make_schedule
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None  # float16; Lightning clips unfused
        optimizer = self._make_optimizer(self.model, batch_size=self.images_per_step, fused=not scaled)
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]  # or Lightning refuses to clip
        self.trainer.fit_loop.setup_data()  # its length is asked for next
        total = self.trainer.estimated_stepping_batches
        if math.isinf(total):
            raise UserError("trainer.max_epochs, trainer.max_steps: set one; the schedule needs an end")
        steps_per_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        schedule = self._make_schedule(optimizer, total_steps=int(total), steps_per_epoch=steps_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def images_per_step(self) -> int:
        """Pictures of an optimizer step, on all devices together."""
        return self._batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed what the step draws, such as the sampled anchors, so that a resumed run draws the same."""
        source = (self._seed, self.trainer.fit_loop.epoch_loop.total_batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(source).generate_state(1, np.uint64)[0]))

    def training_step(self, batch: tuple[ImageBatch, list[dict[str, Tensor]]], _: int) -> dict[str, Tensor]:
        """The sum of the losses as `loss`, and each of them."""
        losses = self.model(*batch)
        loss = sum(losses.values())
        size = len(batch[1])
        # Not prog_bar=True, and no float: with either, Lightning would wait for the device in each step.
        lr = torch.tensor(self.trainer.optimizers[0].param_groups[0]["lr"], device="cpu")
        logged = {"train/loss": loss, **{f"train/{name}": value for name, value in losses.items()}, "train/lr": lr}
        self.log_dict(logged, batch_size=size)
        return {"loss": loss} | {name: value.detach() for name, value in losses.items()}

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation; all ranks score what rank 0 saves, an average that is swapped in too."""
        self.metric.reset()
        share_buffers(self)
        self.watch.restart()

    def validation_step(self, batch: tuple[list[Tensor], list[int]], _: int) -> None:
        """Detections, run-length encoded at once, to the metric."""
        images, image_ids = batch
        self.watch.lap("load", self.device)
        found = (self.augmented or self.model).predict(images)
        self.watch.lap("model", self.device)
        results = []
        for detections, image, image_id in zip(found, images, image_ids, strict=True):
            results += to_results(
                detections,
                image_id=image_id,
                size=(image.shape[-2], image.shape[-1]),
                category_ids=self.category_ids,
                paste=self.model.paste,
            )
        self.metric.update(image_ids, results)
        self.watch.pictures += len(images)
        self.watch.lap("masks", self.device)

    def on_validation_epoch_end(self) -> None:
        """COCO AP over all ranks, logged as val/box_ap ... val/mask_ar_large."""
        self.watch.lap("load", self.device)
        self.scores = self.metric.compute()
        self.watch.lap("scoring", self.device)
        self.scored_step = self.trainer.global_step
        self.log_dict(
            {f"val/{kind}_{name}": value for kind, numbers in self.scores.items() for name, value in numbers.items()}
        )

    def on_fit_start(self) -> None:
        """Compile, once the device is known."""
        if self._compile is not False:
            assert isinstance(self.model, MaskRCNN)
            self.model.compile_features(self._compile)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Hold the checkpoint of a run that goes on against the model.

        Raises:
            UserError: They differ.
        """
        here = {name: tuple(value.shape) for name, value in self.state_dict().items()}
        there = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
        changed = next((name for name in sorted(here | there) if here.get(name) != there.get(name)), None)
        if changed or checkpoint[CHECKPOINT_KEY]["categories"] != self.categories:
            what = f"{changed} is not what it was" if changed else "the classes are not what they were"
            raise UserError(f"resume: {what}; leave model.* and data.classes as they are in the run, or use init=")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what evaluation and prediction need besides weights: plain types only."""
        checkpoint[CHECKPOINT_KEY] = {"config": self._config, "categories": self.categories}

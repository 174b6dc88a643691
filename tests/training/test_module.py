"""The module around a tiny model, on batches by hand."""

import io
from functools import partial

import pytest
import torch
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader

from maskrcnn.evaluation.coco import METRICS
from maskrcnn.models.mask_rcnn import LOSSES
from maskrcnn.ops.image_batch import ImageBatch
from maskrcnn.training.module import MaskRCNNModule
from maskrcnn.training.optimizers import sgd
from maskrcnn.training.schedules import multistep


class StopError(Exception):
    """Ends a run that has shown enough."""


IMAGES = [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in range(2)]


@pytest.fixture
def module(make_tiny_model, ground_truth):
    return MaskRCNNModule(
        model=make_tiny_model("model.score_thresh=0.01"),
        categories=ground_truth["categories"],
        ground_truth=ground_truth,
        optimizer=partial(sgd, lr=0.01),
        schedule=lambda optimizer, **steps: multistep(optimizer, milestones=[2], **steps),
        config={"model": {"num_classes": 3}, "data": {"root": "here", "limit": None}},
    )


def fit(module, *, batches, max_epochs=1, **settings):
    """Train on pictures of noise, and validate."""
    target = {
        "boxes": torch.tensor([[8.0, 8, 40, 40]]),
        "labels": torch.tensor([1]),
        "masks": torch.full((1, 112, 112), 255, dtype=torch.uint8),
        "has_mask": torch.tensor([True]),
    }
    batch = (ImageBatch(torch.stack(IMAGES), [(64, 64)] * 2), [target] * 2)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, as_loader([batch] * batches), as_loader([(IMAGES, [1, 2])]))
    return trainer


def as_loader(batches):
    return DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)


def test_training_logs_the_losses_and_validation_the_scores(module):
    trainer = fit(module, batches=1, num_sanity_val_steps=0)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    scores = {f"val/{kind}_{name}" for kind in ("box", "mask") for name in METRICS}
    losses = {f"train/{name}" for name in LOSSES}
    assert logged.keys() == {"train/loss", "train/lr"} | losses | scores
    assert logged["train/loss"] == pytest.approx(sum(logged[name] for name in losses), rel=1e-5)
    assert logged["train/lr"] == pytest.approx(0.01)
    assert module.scores["mask"]["ap"] == pytest.approx(logged["val/mask_ap"])
    assert module.metric.image_ids == [1, 2]
    assert {result["category_id"] for result in module.metric.results} <= {2, 7, 9}


def test_sanity_check_is_forgotten(module):
    fit(module, batches=1, num_sanity_val_steps=1)
    assert module.metric.image_ids == [1, 2]
    assert len(module.metric.results) <= 200


@pytest.mark.parametrize(
    ("settings", "steps_per_epoch"),
    [
        ({"max_epochs": 3}, 4),
        ({"max_epochs": 3, "max_steps": 10}, 4),
        ({"max_epochs": -1, "max_steps": 10}, 4),
        ({"max_epochs": 3, "accumulate_grad_batches": 3}, 2),
        ({"max_epochs": 3, "limit_train_batches": 0.5}, 2),
    ],
)
def test_schedule_knows_the_length_of_an_epoch(module, settings, steps_per_epoch):
    seen = {}

    def schedule(optimizer, **steps):
        seen.update(steps)
        raise StopError

    module._make_schedule = schedule
    with pytest.raises(StopError):
        fit(module, batches=4, num_sanity_val_steps=0, **settings)
    assert seen["steps_per_epoch"] == steps_per_epoch
    assert seen["total_steps"] == settings.get("max_steps", 3 * steps_per_epoch)


def test_optimizer_hears_how_many_pictures_a_step_has(module):
    module._batch_size = 3
    module._make_optimizer = partial(sgd, lr=0.01, lr_scaling="linear", reference_batch_size=12)
    trainer = fit(module, batches=2, num_sanity_val_steps=0, accumulate_grad_batches=2)
    (optimizer,) = trainer.optimizers
    assert {group["initial_lr"] for group in optimizer.param_groups} == {0.005}
    assert optimizer.defaults["fused"]


def test_checkpoint_holds_plain_types(module):
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    assert loaded["maskrcnn"] == {
        "config": {"model": {"num_classes": 3}, "data": {"root": "here", "limit": None}},
        "categories": module.categories,
    }
    assert all(name.startswith("model.") for name in loaded["state_dict"])


def test_detections_of_unknown_categories_are_dropped(module, ground_truth):
    other = MaskRCNNModule(
        model=module.model,
        categories=module.categories,
        category_ids=[None, 7, None],
        ground_truth=ground_truth,
    )
    for one, known in ((module, {2, 7, 9}), (other, {7})):
        one.eval()
        one.validation_step((IMAGES, [1, 2]), 0)
        one.metric.compute()
        assert {result["category_id"] for result in one.metric.results} == known

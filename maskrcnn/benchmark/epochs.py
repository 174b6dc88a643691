"""The loaders of both sides for whole epochs: the same pictures, batches, canvas and worker processes."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from maskrcnn.benchmark.data import data_module, load_pictures
from maskrcnn.benchmark.peer import peer_loader, why_absent
from maskrcnn.errors import UserError
from maskrcnn.ops.image_batch import ImageBatch

_PRESET = "lsj"


def why_no_epoch(settings: dict[str, Any], *, num_classes: int) -> str | None:
    """Why there is no data set, or None.

    Raises:
        UserError: There is one, but it cannot be read, or has more than `num_classes` classes.
    """
    module = data_module(settings, _PRESET)
    try:
        module.prepare_files()
    except UserError as error:
        return f"{str(error).partition('. ')[0]}; choose a data set with data=... data.root=..."
    module.load(train=True, evaluate=None)
    if len(module.categories) > num_classes:
        raise UserError(
            f"model.num_classes={num_classes}: the data set has {len(module.categories)} classes; set it to that"
        )
    return None


def our_loader(settings: dict[str, Any]) -> DataLoader:
    """Training batches of the data module."""
    module = data_module(settings, _PRESET)
    load_pictures(module, settings)
    return module.train_dataloader()


def torchvision_loader(settings: dict[str, Any]) -> tuple[DataLoader | None, Tensor, str | None]:
    """Training batches of torchvision's, the label of each category id, and why there are none."""
    module = data_module(settings, _PRESET)
    split = load_pictures(module, settings)
    label_of = torch.zeros(max(category["id"] for category in module.categories) + 1, dtype=torch.int64)
    for label, category in enumerate(module.categories, start=1):
        label_of[category["id"]] = label
    absent = why_absent(split)
    if absent is not None:
        return None, label_of, absent
    loader = peer_loader(
        split,
        side=module.transform.side,
        batch_size=module.batch_size,
        seed=module.seed,
        colour_first=settings["peer_colour_first"],
        num_workers=module.train_dataloader().num_workers,
    )
    return loader, label_of, None


def to_us(batch: tuple[ImageBatch, list[dict[str, Tensor]]], device: torch.device) -> tuple[Any, Any]:
    """A batch of ours on the device."""
    images, targets = batch
    pixels = images.pixels.to(device, non_blocking=True)
    return ImageBatch(pixels, images.sizes), [
        {name: value.to(device, non_blocking=True) for name, value in target.items()} for target in targets
    ]

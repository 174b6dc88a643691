"""Samples as tensors, and batches of them.

training batch    (ImageBatch of uint8 [B, 3, H, W], list of B targets)
evaluation batch  (list of B uint8 [3, h, w], list of B image ids)
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from maskrcnn.data.augment import TrainTransform
from maskrcnn.data.sample import Target, to_target, to_tensor
from maskrcnn.data.samplers import EpochSampler
from maskrcnn.data.split import Split
from maskrcnn.ops.image_batch import ImageBatch, pad_images


class TrainDataset(Dataset[tuple[Tensor, Target]]):
    """Training samples by (epoch, index).

    Args:
        split: Where the pictures come from.
        transform: Makes a sample.
        seed: With epoch and index, the source of every draw.
        mask_size: Side of the masks.
        mixing_epochs: From this epoch on, no pictures are mixed.
    """

    def __init__(
        self, split: Split, transform: TrainTransform, *, seed: int, mask_size: int, mixing_epochs: float = float("inf")
    ) -> None:
        self.split = split
        self.transform = transform
        self.seed = seed
        self.mask_size = mask_size
        self.mixing_epochs = mixing_epochs

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: tuple[int, int] | int) -> tuple[Tensor, Target]:
        epoch, index = key if isinstance(key, tuple) else (0, key)  # trainer.overfit_batches brings its own sampler
        rng = np.random.default_rng([self.seed, epoch, index])
        sample = self.transform(self.split, index, rng, mixing=epoch < self.mixing_epochs)
        return to_tensor(sample.image), to_target(sample, mask_size=self.mask_size)


class TrainLoader(DataLoader):
    """Training batches; in an epoch that is resumed, those that are left of it.

    Args:
        options: Of `DataLoader`; the sampler is an `EpochSampler`.
        consumed: Tells how many batches of the epoch were trained on before this process began.
    """

    def __init__(self, *, consumed: Callable[[], int], **options: Any) -> None:
        super().__init__(**options)
        self._consumed = consumed

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """The batches."""
        # A generator: Lightning asks for the iterator before it knows the epoch and how far the epoch has got.
        if isinstance(self.sampler, EpochSampler):  # trainer.overfit_batches brings its own
            self.sampler.start = self._consumed()
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the Trainer's own progress tells where to go on. Lightning takes a loader with this as resumable."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


class EvaluationDataset(Dataset[tuple[Tensor, int]]):
    """Whole pictures with their ids.

    Args:
        split: Where they come from.
    """

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return to_tensor(self.split.read(index)).contiguous(), self.split.image_id(index)


def collate_train(items: list[tuple[Tensor, Target]], *, divisor: int) -> tuple[ImageBatch, list[Target]]:
    """A training batch whose padded sides are multiples of `divisor`."""
    images, targets = zip(*items, strict=True)
    return pad_images(list(images), divisor=divisor), _Targets(targets)


def collate_evaluation(items: list[tuple[Tensor, int]]) -> tuple[list[Tensor], list[int]]:
    """An evaluation batch."""
    images, image_ids = zip(*items, strict=True)
    return list(images), list(image_ids)


class _Targets(list[Target]):
    """Targets that leave a worker as one shared tensor: each further one would cost a file of its own."""

    def __reduce__(self) -> tuple[Any, ...]:
        masks = torch.cat([target["masks"] for target in self])
        rest = [{name: None if name == "masks" else value.numpy() for name, value in target.items()} for target in self]
        return _as_targets, (masks, rest)


def _as_targets(masks: Tensor, rest: list[dict[str, Any]]) -> list[Target]:
    parts = masks.split([len(target["labels"]) for target in rest])
    return [
        {name: part if value is None else torch.from_numpy(value) for name, value in target.items()}
        for target, part in zip(rest, parts, strict=True)
    ]

"""The LightningDataModule: a COCO-style data set, as batches.

training batch    (ImageBatch of uint8 [B, 3, H, W], list of B targets)
evaluation batch  (list of B uint8 [3, h, w], list of B image ids)
"""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from maskrcnn.data.augment import Augment, TrainTransform
from maskrcnn.data.coco import CocoAnnotations, CocoDataset, index_instances, read_instances
from maskrcnn.data.images import check_images
from maskrcnn.data.sample import to_target, to_tensor
from maskrcnn.data.shapes import ShapesDrawing
from maskrcnn.errors import UserError
from maskrcnn.ops.image_batch import ImageBatch, pad_images

log = logging.getLogger(__name__)

Target = dict[str, Tensor]


class DetectionDataModule(LightningDataModule):
    """A data set in COCO format.

    Args:
        root: Folder of the data set.
        train_annotations, val_annotations: Instances files, relative to `root` unless absolute.
        train_images, val_images: Folders of the pictures, relative to `root` unless absolute.
        batch_size: Pictures per device and step.
        num_workers: Processes that load pictures; null for one per core and device, at most 8.
        min_sizes: Short sides in pixels that training draws from.
        max_size: Long side in training at most.
        use_crowd: Train on crowd regions as if they were single instances.
        remove_blank: Leave out training pictures without instances.
        limit: Only the first so many pictures of each split; null for all.
        mask_size: Side of the masks that travel with a batch, each cropped to its box.
        size_divisor: Padded sides are multiples of this.
        augment: What is done to a training picture besides resizing.
        draw: Draws the data set into a folder of its own under `root`; null where the files exist.
        seed: With epoch and index, the source of every random draw.
    """

    def __init__(
        self,
        *,
        root: str,
        train_annotations: str = "annotations/instances_train2017.json",
        train_images: str = "train2017",
        val_annotations: str = "annotations/instances_val2017.json",
        val_images: str = "val2017",
        batch_size: int = 4,
        num_workers: int | None = None,
        min_sizes: Sequence[int] = (416, 448, 480, 512, 544, 576, 608, 640),
        max_size: int = 768,
        use_crowd: bool = False,
        remove_blank: bool = True,
        limit: int | None = None,
        mask_size: int = 112,
        size_divisor: int = 32,
        augment: Augment | None = None,
        draw: ShapesDrawing | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if num_workers is not None and num_workers < 0:
            raise ValueError(f"num_workers must be at least 0, got {num_workers}")
        if not min_sizes or not 1 <= min(min_sizes) <= max(min_sizes) <= max_size:
            raise ValueError(f"min_sizes must be sizes between 1 and max_size ({max_size}), got {list(min_sizes)}")
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1 or null, got {limit}")
        if mask_size < 28:
            raise ValueError(f"mask_size must be at least 28, got {mask_size}")
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        self.root = Path(root).expanduser()
        if draw is not None:
            self.root /= draw.name
        self.draw = draw
        self.files = {
            "train": (self.root / train_annotations, self.root / train_images),
            "val": (self.root / val_annotations, self.root / val_images),
        }
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.use_crowd = use_crowd
        self.remove_blank = remove_blank
        self.limit = limit
        self.mask_size = mask_size
        self.size_divisor = size_divisor
        self.transform = TrainTransform(min_sizes=min_sizes, max_size=max_size, augment=augment or Augment())
        self.seed = seed
        self.datasets: dict[str, CocoDataset] = {}
        self.ground_truth: dict[str, Any] = {}

    def load(self, *splits: str) -> None:
        """Read the annotations of `splits` ("train", "val") and check the files before anything else starts.

        Raises:
            UserError: Something is missing or malformed, or the splits have different categories.
        """
        self._prepare_files()
        for split in splits:
            annotation_file, images = self.files[split]
            content = read_instances(annotation_file)
            annotations = index_instances(annotation_file, content, use_crowd=self.use_crowd)
            dataset = CocoDataset(annotations=annotations, images=images, indices=self._indices(annotations, split))
            self._check_split(split, dataset)
            self.datasets[split] = dataset
            if split == "val":
                self.ground_truth = content
        if len(self.datasets) == 2:
            _check_same_categories(self.datasets["train"].annotations, self.datasets["val"].annotations)

    @property
    def categories(self) -> list[dict[str, Any]]:
        """{"id", "name"} of each label 1..K."""
        return next(iter(self.datasets.values())).annotations.categories

    @property
    def class_names(self) -> list[str]:
        """Name of each label 1..K."""
        return [category["name"] for category in self.categories]

    @property
    def val_image_ids(self) -> list[int]:
        """The pictures that validation looks at."""
        dataset = self.datasets["val"]
        return dataset.annotations.image_ids[dataset.indices].tolist()

    def train_dataloader(self) -> DataLoader:
        """Augmented training batches; draws depend on (seed, epoch, index) alone."""
        dataset = self.datasets["train"]
        sampler = EpochSampler(
            len(dataset),
            batch_size=self.batch_size,
            seed=self.seed,
            rank=self._rank,
            world_size=self._world_size,
        )
        return DataLoader(
            _TrainDataset(dataset, self.transform, seed=self.seed, mask_size=self.mask_size),
            sampler=sampler,
            batch_size=self.batch_size,
            collate_fn=self._collate_train,
            **self._loader_options,
        )

    def val_dataloader(self) -> DataLoader:
        """Whole pictures in a fixed order; batches are dealt whole to the ranks, none is repeated."""
        dataset = self.datasets["val"]
        batches = [
            list(range(first, min(first + self.batch_size, len(dataset))))
            for first in range(0, len(dataset), self.batch_size)
        ]
        return DataLoader(
            _EvaluationDataset(dataset),
            batch_sampler=batches[self._rank :: self._world_size],
            collate_fn=_collate_evaluation,
            **self._loader_options,
        )

    def _prepare_files(self) -> None:
        if self.draw is not None:
            self.draw(self.root)
        elif not self.root.is_dir():
            raise UserError(
                f"data.root={self.root}: no such folder. For COCO, download train2017.zip, val2017.zip and "
                "annotations_trainval2017.zip from cocodataset.org and unpack them there, so that it holds "
                "train2017/, val2017/ and annotations/instances_{train,val}2017.json; for a first try that "
                "needs no data, use experiment=demo"
            )

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _loader_options(self) -> dict[str, Any]:
        devices = self.trainer.num_devices if self.trainer else 1
        workers = self.num_workers
        if workers is None:
            workers = min((os.cpu_count() or 1) // devices, 8)
        return {
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "worker_init_fn": _start_worker,
        }

    def _indices(self, annotations: CocoAnnotations, split: str) -> np.ndarray:
        indices = np.arange(len(annotations.image_ids))
        if split == "train" and self.remove_blank:
            indices = indices[np.diff(annotations.first_instance) > 0]
        return indices[: self.limit]

    def _check_split(self, split: str, dataset: CocoDataset) -> None:
        annotations = dataset.annotations
        if not len(dataset):
            hint = " with an instance; data.remove_blank=false keeps the others" if split == "train" else ""
            raise UserError(f"{annotations.path}: has no picture{hint}")
        if not dataset.images.is_dir():
            raise UserError(f"data.{split}_images={dataset.images}: no such folder")
        check_images(
            [dataset.images / str(name) for name in annotations.file_names[dataset.indices]],
            annotations.image_ids[dataset.indices].tolist(),
        )

    def _collate_train(self, items: list[tuple[Tensor, Target]]) -> tuple[ImageBatch, list[Target]]:
        images, targets = zip(*items, strict=True)
        return pad_images(list(images), divisor=self.size_divisor), list(targets)


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) in an order that follows from (seed, epoch) alone, one rank's share of it.

    The order is filled up from its own start to a multiple of the global batch, so that every step is full.
    """

    def __init__(self, num_images: int, *, batch_size: int, seed: int, rank: int, world_size: int) -> None:
        self.num_images = num_images
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        global_batch = batch_size * world_size
        self.total = -(-num_images // global_batch) * global_batch
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.total // self.world_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_images)
        share = np.resize(order, self.total)[self.rank :: self.world_size]
        return iter([(self.epoch, int(index)) for index in share])


class _TrainDataset(Dataset[tuple[Tensor, Target]]):
    def __init__(self, dataset: CocoDataset, transform: TrainTransform, *, seed: int, mask_size: int) -> None:
        self.dataset = dataset
        self.transform = transform
        self.seed = seed
        self.mask_size = mask_size

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Target]:
        epoch, index = key
        sample = self.transform(self.dataset[index], np.random.default_rng([self.seed, epoch, index]))
        return to_tensor(sample.image), to_target(sample, mask_size=self.mask_size)


class _EvaluationDataset(Dataset[tuple[Tensor, int]]):
    def __init__(self, dataset: CocoDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, image_id = self.dataset.image(index)
        return to_tensor(image), image_id


def _collate_evaluation(items: list[tuple[Tensor, int]]) -> tuple[list[Tensor], list[int]]:
    images, image_ids = zip(*items, strict=True)
    return list(images), list(image_ids)


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)  # the processes share the cores already


def _check_same_categories(train: CocoAnnotations, val: CocoAnnotations) -> None:
    if train.categories == val.categories:
        return
    ours = {(c["id"], c["name"]) for c in train.categories}
    theirs = {(c["id"], c["name"]) for c in val.categories}
    only_train = ", ".join(f"{i} {n}" for i, n in sorted(ours - theirs)[:3]) or "none"
    only_val = ", ".join(f"{i} {n}" for i, n in sorted(theirs - ours)[:3]) or "none"
    raise UserError(
        f"{train.path} and {val.path} have different categories (only in the first: {only_train}; "
        f"only in the second: {only_val}): both must list the same ids and names"
    )

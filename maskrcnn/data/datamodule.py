"""The LightningDataModule: a data set with instances, as batches (see `data/batches.py`)."""

import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.data import DataLoader

from maskrcnn.data.augment import Augment, TrainTransform
from maskrcnn.data.batches import EvaluationDataset, TrainDataset, TrainLoader, collate_evaluation, collate_train
from maskrcnn.data.coco import CocoDataset
from maskrcnn.data.dataset import InstanceDataset
from maskrcnn.data.layout import Files, find_files
from maskrcnn.data.samplers import EpochSampler, dealt_batches, repeat_factors
from maskrcnn.data.shapes import ShapesDrawing
from maskrcnn.data.split import Split
from maskrcnn.data.workers import start_worker, worker_context
from maskrcnn.errors import UserError
from maskrcnn.ops.boxes import check_boxes

log = logging.getLogger(__name__)


class DetectionDataModule(LightningDataModule):
    """A data set with instances.

    Args:
        root: Folder of the data set.
        train_annotations, val_annotations, test_annotations: Annotation files, relative to `root` unless
            absolute; null looks for a known layout.
        train_images, val_images, test_images: Folders of the pictures, likewise.
        val_fraction: This share of the training pictures is held out for validation; null where it has files.
        val_seed: Which pictures those are.
        classes: Names of the categories that take part; null for all.
        allow_boxes_only: Accept annotations without an outline; they teach boxes and no masks.
        batch_size: Pictures per device and step.
        num_workers: Processes that load pictures; null for one per core and device, at most 8.
        min_sizes: Short sides in pixels that training draws from.
        max_size: Long side in training at most; side of the canvas of mosaic and large-scale jitter.
        use_crowd: Train on crowd regions as if they were single instances.
        remove_blank: Leave out training pictures without instances.
        limit: Only the first so many pictures of each split; null for all.
        group_by_aspect: Training batches hold pictures that are all upright or all wide.
        repeat_threshold: Training pictures with a class that fewer than this share of them show come more often.
        mask_size: Side of the masks that travel with a batch, each cropped to its box.
        size_divisor: Padded sides are multiples of this.
        cache: Folder where large annotation files are kept in a form that loads fast; null for the user's own.
        dataset: Makes the data set from `annotations`, `images` and `cache`; null for COCO instances files.
        augment: What is done to a training picture besides resizing.
        draw: Draws the data set into a folder of its own under `root`; null where the files exist.
        seed: With epoch and index, the source of every random draw.
    """

    def __init__(
        self,
        *,
        root: str,
        train_annotations: str | None = "annotations/instances_train2017.json",
        train_images: str | None = "train2017",
        val_annotations: str | None = "annotations/instances_val2017.json",
        val_images: str | None = "val2017",
        test_annotations: str | None = "annotations/image_info_test-dev2017.json",
        test_images: str | None = "test2017",
        val_fraction: float | None = None,
        val_seed: int = 0,
        classes: Sequence[str] | None = None,
        allow_boxes_only: bool = False,
        batch_size: int = 4,
        num_workers: int | None = None,
        min_sizes: Sequence[int] = (416, 448, 480, 512, 544, 576, 608, 640),
        max_size: int = 768,
        use_crowd: bool = False,
        remove_blank: bool = True,
        limit: int | None = None,
        group_by_aspect: bool = False,
        repeat_threshold: float = 0.0,
        mask_size: int = 112,
        size_divisor: int = 32,
        cache: str | None = None,
        dataset: Callable[..., InstanceDataset] | None = None,
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
        if seed < 0 or val_seed < 0:
            raise ValueError(f"seed and val_seed must be at least 0, got {seed} and {val_seed}")
        if val_fraction is not None and not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction must be between 0 and 1 or null, got {val_fraction}")
        if classes is not None and not classes:
            raise ValueError("classes must name at least one category, or be null for all")
        if not 0 <= repeat_threshold <= 1:
            raise ValueError(f"repeat_threshold must be between 0 and 1, got {repeat_threshold}")
        self.root = Path(root).expanduser()
        if draw is not None:
            self.root /= draw.name
        self.draw = draw
        self.named_files = {
            "train": (train_annotations, train_images),
            "val": (val_annotations, val_images),
            "test": (test_annotations, test_images),
        }
        self.val_fraction = val_fraction
        self.val_seed = val_seed
        self.classes = classes
        self.allow_boxes_only = allow_boxes_only
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.use_crowd = use_crowd
        self.remove_blank = remove_blank
        self.limit = limit
        self.group_by_aspect = group_by_aspect
        self.repeat_threshold = repeat_threshold
        self.mask_size = mask_size
        self.size_divisor = size_divisor
        self.cache = Path(cache).expanduser() if cache is not None else None
        self.make_dataset = dataset or CocoDataset
        self.augment = augment or Augment()
        self.transform = TrainTransform(min_sizes=min_sizes, max_size=max_size, augment=self.augment)
        self.seed = seed
        self.datasets: dict[str, Split] = {}
        self._open: dict[Files, InstanceDataset] = {}

    def load(self, *, train: bool = False, evaluate: str | None = "val", pictures: bool = True) -> None:
        """Read the annotations and check the files before anything else starts.

        Args:
            train: Load the training split, as `datasets["train"]`.
            evaluate: The split to evaluate on, "train", "val" or "test", as `datasets["val"]`.
            pictures: Whether they will be read.

        Raises:
            UserError: Something is missing or malformed, or the splits have different categories.
        """
        if evaluate not in (None, *self.named_files):
            raise UserError(f"split={evaluate}: must be one of {', '.join(self.named_files)}")
        self.prepare_files()
        if train:
            split = _annotated(self._split("train"))
            split = split.subset(split.instances_per_image > 0) if self.remove_blank else split
            hint = " with an instance; data.remove_blank=false keeps the others" if self.remove_blank else ""
            self.datasets["train"] = self._limited(split, hint)
            self._check_outlines(self.datasets["train"])
            self._check_pictures(self.datasets["train"], "train")
        if evaluate is not None:
            split = self._split(evaluate)
            self.datasets["val"] = self._limited(_annotated(split) if train else split, "")
            if pictures:
                self._check_pictures(self.datasets["val"], evaluate)
        if len(self.datasets) == 2:
            _check_same_categories(self.datasets["train"], self.datasets["val"])

    @property
    def categories(self) -> list[dict[str, Any]]:
        """{"id", "name"} of each label 1..K."""
        return next(iter(self.datasets.values())).categories

    @property
    def class_names(self) -> list[str]:
        """Name of each label 1..K."""
        return [category["name"] for category in self.categories]

    @property
    def ground_truth(self) -> dict[str, Any] | None:
        """What the evaluated split is scored with, as a parsed COCO instances file; None if it is not annotated."""
        return self.datasets["val"].ground_truth()

    @property
    def val_image_ids(self) -> list[int]:
        """The pictures that are evaluated."""
        return self.datasets["val"].image_ids

    def train_dataloader(self) -> DataLoader:
        """Augmented training batches; draws depend on (seed, epoch, index) alone."""
        split = self.datasets["train"]
        repeats = None
        if self.repeat_threshold:
            starts = np.concatenate(([0], np.cumsum(split.instances_per_image)))
            repeats = repeat_factors(split.labels, starts, threshold=self.repeat_threshold)
        sampler = EpochSampler(
            len(split),
            batch_size=self.batch_size,
            seed=self.seed,
            rank=self._rank,
            world_size=self._world_size,
            repeats=repeats,
            portrait=split.sizes[:, 0] > split.sizes[:, 1] if self.group_by_aspect else None,
        )
        return TrainLoader(
            consumed=self._consumed,
            dataset=TrainDataset(
                split, self.transform, seed=self.seed, mask_size=self.mask_size, mixing_epochs=self._mixing_epochs()
            ),
            sampler=sampler,
            batch_size=self.batch_size,
            collate_fn=partial(collate_train, divisor=self.size_divisor),
            **self._loader_options,
        )

    def val_dataloader(self) -> DataLoader:
        """Whole pictures in a fixed order; batches are dealt whole to the ranks, none is repeated."""
        split = self.datasets["val"]
        return DataLoader(
            EvaluationDataset(split),
            batch_sampler=dealt_batches(
                len(split), batch_size=self.batch_size, rank=self._rank, world_size=self._world_size
            ),
            collate_fn=collate_evaluation,
            **self._loader_options,
        )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Refuse training boxes without a size while they are on the host; on a GPU nobody looks at them."""
        assert self.trainer
        if self.trainer.training:
            check_boxes([target["boxes"] for target in batch[1]])
        return batch

    def files(self, split: str) -> Files:
        """Annotation file and picture folder of "train", "val" or "test"."""
        annotations, images = self.named_files[split]
        return find_files(self.root, split, annotations=annotations, images=images)

    def open(self, split: str) -> InstanceDataset:
        """The data set behind a split, whole; one that `val_fraction` divides is the training file's."""
        files = self.files("train" if split == "val" and self.val_fraction is not None else split)
        if files in self._open:
            return self._open[files]
        dataset = self.make_dataset(annotations=files[0], images=files[1], cache=self.cache)
        if not isinstance(dataset, InstanceDataset):
            raise UserError(
                f"data.dataset._target_: {type(dataset).__name__} is not a maskrcnn.data.dataset.InstanceDataset; "
                "derive your class from it"
            )
        self._open[files] = dataset
        return dataset

    def prepare_files(self) -> None:
        """Draw the data set, where it draws itself.

        Raises:
            UserError: There is no such folder.
        """
        if self.draw is not None:
            self.draw(self.root)
        elif not self.root.is_dir():
            raise UserError(
                f"data.root={self.root}: no such folder. For COCO, download train2017.zip, val2017.zip and "
                "annotations_trainval2017.zip from cocodataset.org and unpack them there, so that it holds "
                "train2017/, val2017/ and annotations/instances_{train,val}2017.json; for a first try that "
                "needs no data, use experiment=demo"
            )

    def _split(self, name: str) -> Split:
        known = len(self._open)
        dataset = self.open(name)
        if len(self._open) > known and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            for note in dataset.annotations.notes:
                log.warning("%s: %s", dataset.annotations.source, note)
        positions = np.arange(len(dataset.annotations.image_ids))
        if self.val_fraction is not None and name in ("train", "val"):
            positions = self._share(positions, name)
        return Split(dataset, positions=positions, classes=self.classes, use_crowd=self.use_crowd)

    def _share(self, positions: np.ndarray, name: str) -> np.ndarray:
        """The part of one file's pictures that trains, or that validates."""
        if len(positions) < 2:
            raise UserError(f"{self.files('train')[0]}: data.val_fraction needs at least two pictures to divide")
        shuffled = np.random.default_rng(self.val_seed).permutation(positions)
        held_out = int(np.clip(round((self.val_fraction or 0) * len(positions)), 1, len(positions) - 1))
        return np.sort(shuffled[:held_out] if name == "val" else shuffled[held_out:])

    def _limited(self, split: Split, hint: str) -> Split:
        split = split.subset(slice(self.limit))
        if not len(split):
            raise UserError(f"{split.dataset.annotations.source}: has no picture{hint}")
        return split

    def _check_outlines(self, split: Split) -> None:
        annotations = split.dataset.annotations
        instances = split.instance_numbers
        bare = instances[~annotations.has_outline[instances]]
        if len(bare) and not self.allow_boxes_only:
            raise UserError(
                f"{annotations.source}: {len(bare)} annotations have no segmentation (first: annotation "
                f"{annotations.annotation_ids[bare[0]]}); Mask R-CNN learns from outlines: add them, or set "
                "data.allow_boxes_only=true to learn only boxes from these"
            )

    def _check_pictures(self, split: Split, name: str) -> None:
        if not split.dataset.images.is_dir():
            raise UserError(f"data.{name}_images={split.dataset.images}: no such folder")
        split.dataset.check_images(split.positions)

    def _mixing_epochs(self) -> float:
        """How many epochs mix pictures."""
        closed = self.augment.close_mixing_epochs
        if not closed:
            return float("inf")
        epochs = self.trainer.max_epochs if self.trainer else None
        if epochs is None or epochs < 0:
            raise UserError("augment.close_mixing_epochs: needs trainer.max_epochs, it counts from the last one")
        return epochs - closed

    def _consumed(self) -> int:
        """How many batches of the current epoch are done."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.ready if self.trainer else 0

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
            "worker_init_fn": start_worker,
            "multiprocessing_context": worker_context() if workers else None,
        }


def _annotated(split: Split) -> Split:
    if not split.dataset.annotations.annotated:
        raise UserError(f"{split.dataset.annotations.source}: has no annotations; training needs them")
    return split


def _check_same_categories(train: Split, val: Split) -> None:
    if train.categories == val.categories:
        return
    ours = {(c["id"], c["name"]) for c in train.categories}
    theirs = {(c["id"], c["name"]) for c in val.categories}
    only_train = ", ".join(f"{i} {n}" for i, n in sorted(ours - theirs)[:3]) or "none"
    only_val = ", ".join(f"{i} {n}" for i, n in sorted(theirs - ours)[:3]) or "none"
    raise UserError(
        f"{train.dataset.annotations.source} and {val.dataset.annotations.source} have different categories (only "
        f"in the first: {only_train}; only in the second: {only_val}): both must list the same ids and names"
    )

"""One of the two sides that suite=speed compares: a network, its training step and its inference.

Both sides have the weights that torchvision's drew, and the same pictures. Once their last layers are settled (see
`networks`), they have the full number of proposals and detections to deal with. A training step changes no weight,
for its learning rate is 0, or the work would change with them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from maskrcnn.benchmark import scoring
from maskrcnn.benchmark.agreement import Found, arrays, coarse_pictures, sharpen
from maskrcnn.benchmark.epochs import our_loader, to_us, torchvision_loader
from maskrcnn.benchmark.host_syncs import host_syncs
from maskrcnn.benchmark.laps import Laps
from maskrcnn.benchmark.meter import Meter
from maskrcnn.benchmark.networks import (
    Work,
    floats,
    our_batch,
    our_model,
    settle,
    settle_torchvision,
    torchvision_batch,
    torchvision_model,
)
from maskrcnn.errors import UserError
from maskrcnn.evaluation.results import to_results
from maskrcnn.models.weights import load_weights, read_weights
from maskrcnn.training.optimizers import sgd

ROI, MASKS, ENCODE = "roi heads", "masks", "encode"
_FEATURES, _RPN = "features", "rpn"
TRAIN_STAGES = ("input", _FEATURES, _RPN, ROI, "backward", "optimizer")
INFERENCE_STAGES = ("input", _FEATURES, _RPN, ROI, MASKS, ENCODE)
_AGREEING = 2  # pictures whose detections are compared


@dataclass(frozen=True)
class Job:
    """What both sides are told.

    Attributes:
        node: The plain config of our model.
        work: What the networks are given.
        weights: The file through which our side has torchvision's weights; null: its own random ones.
        settings: The plain config of the command.
    """

    node: dict[str, Any]
    work: Work
    weights: Path | None
    settings: dict[str, Any]


class Sample(NamedTuple):
    """One round.

    Attributes:
        seconds: Of the whole.
        peak_memory_mb: Most memory in use.
        stages: Seconds of each stage.
    """

    seconds: float
    peak_memory_mb: float | None
    stages: dict[str, float]


class Side(ABC):
    """A network and its work.

    Attributes:
        package: Where its code is.
    """

    package: ClassVar[str]
    module: nn.Module
    optimizer: Optimizer

    def __init__(self, job: Job) -> None:
        self.meter = Meter(job.work.device)  # before anything is loaded
        self.job = job
        self.work = job.work
        self.laps = Laps(job.work.device)

    @cached_property
    @abstractmethod
    def batch(self) -> tuple[Any, Any]:
        """A made-up training batch."""

    @abstractmethod
    def settle(self) -> None:
        """From now on, all proposals and detections there can be."""

    @abstractmethod
    def detections(self) -> Found:
        """What is found in a few pictures."""

    @abstractmethod
    def pictures(self, count: int) -> list[Tensor]:
        """Made-up pictures for inference."""

    @abstractmethod
    def predict(self, pictures: list[Tensor]) -> list[Any]:
        """Detections with masks as run lengths; marks the stages from the RoI heads on."""

    @cached_property
    @abstractmethod
    def loader(self) -> tuple[Any, str | None]:
        """Training batches of the data set, or why there are none."""

    @abstractmethod
    def on_device(self, batch: Any) -> tuple[Any, Any]:
        """A batch of the loader as the network takes it."""

    @abstractmethod
    def scored(self) -> Callable[[], scoring.Numbers]:
        """Work that scores drawn results."""

    def train(self, precision: str) -> Sample:
        """A training step on the made-up batch."""
        batch = self.batch
        return self._clocked(lambda: self.step(batch, precision))

    def infer(self, count: int, precision: str) -> Sample:
        """So many pictures at once, to run lengths."""
        self.module.eval()
        pictures = self.pictures(count)

        def work() -> None:
            self.laps.start()
            with torch.inference_mode(), self._autocast(precision):
                self.predict(pictures)

        return self._clocked(work)

    def step(self, batch: tuple[Any, Any], precision: str) -> None:
        """Forward pass, backward pass and optimizer."""
        self.module.train()
        self.laps.start()
        with self._autocast(precision):
            losses = self.module(*batch)
            loss = torch.stack(list(losses.values())).sum()
        self.laps.mark(ROI)
        loss.backward()
        self.laps.mark("backward")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.laps.mark("optimizer")

    def host_syncs(self, precision: str) -> dict[str, int]:
        """Where a training step waits for the GPU, and how often."""
        batch = self.batch
        self.step(batch, precision)
        return host_syncs(lambda: self.step(batch, precision), package=self.package)

    def open_loader(self) -> str | None:
        """Read the data set's pictures once; why there is no loader, or None."""
        loader, absent = self.loader
        if absent is None:
            for _ in loader:
                pass
        return absent

    def epoch(self, number: int, precision: str) -> float:
        """Pictures per second of an epoch: loader, transfer and training steps."""
        loader, _ = self.loader
        loader.sampler.set_epoch(number)
        start = perf_counter()
        for batch in loader:
            self.step(self.on_device(batch), precision)
        self.laps.seconds()  # waits for the device
        return len(loader.sampler) / (perf_counter() - start)

    def score(self) -> tuple[Sample, scoring.Numbers]:
        """Score drawn results."""
        numbers: list[scoring.Numbers] = []
        work = self.scored()
        seconds, peak = self.meter.once(lambda: numbers.append(work()))
        return Sample(seconds, peak, {}), numbers[0]

    def _drawn(self) -> scoring.Content:
        counts = self.job.settings["scoring"]
        return scoring.drawn(counts["images"], self.work.instances, counts["detections"], self.work.seed)

    def _clocked(self, work: Callable[[], None]) -> Sample:
        return Sample(*self.meter.once(work), self.laps.seconds())

    def _autocast(self, precision: str) -> torch.autocast:
        return torch.autocast(self.work.device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


class OurSide(Side):
    """This package's network of a config node `model`."""

    package = "maskrcnn"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.module = model = our_model(job.node, job.work, trust=job.settings["trust"])
        if job.weights is not None:
            load_weights(model, read_weights(job.weights), key="weights")
        self.optimizer = sgd(model, batch_size=job.work.batch_size, fused=True, lr=0.0)
        self.laps.watch(model.backbone, **{_FEATURES: model.neck, _RPN: model.rpn})
        self.category_ids = range(1, job.work.num_classes + 1)

    @cached_property
    def batch(self) -> tuple[Any, Any]:
        """Pictures and targets with cropped masks."""
        return our_batch(self.module, self.work)

    def settle(self) -> None:
        """Settle the heads."""
        settle(self.module)

    def detections(self) -> Found:
        """Those of `predict`."""
        pictures = coarse_pictures(_AGREEING, self.work.size, seed=self.work.seed)
        return arrays(self.module.eval().predict([picture.to(self.work.device) for picture in pictures]))

    def pictures(self, count: int) -> list[Tensor]:
        """uint8, as they come from their files."""
        return self.work.pictures(count)

    def predict(self, pictures: list[Tensor]) -> list[Any]:
        """Masks are run-length encoded at once, as in an evaluation."""
        found = self.module.predict(pictures)
        self.laps.mark(ROI)
        options = {"size": self.work.size, "category_ids": self.category_ids, "paste": self.module.paste}
        results = [to_results(each, image_id=i, **options) for i, each in enumerate(found)]
        self.laps.mark(MASKS)
        return results

    @cached_property
    def loader(self) -> tuple[Any, str | None]:
        """The data module's, with large-scale jitter."""
        loader, categories = our_loader(self.job.settings)
        if len(categories) > self.work.num_classes:
            raise UserError(
                f"model.num_classes={self.work.num_classes}: the data set has {len(categories)} classes; set it to that"
            )
        return loader, None

    def on_device(self, batch: Any) -> tuple[Any, Any]:
        """Move it."""
        return to_us(batch, self.work.device)

    def scored(self) -> Callable[[], scoring.Numbers]:
        """By this package."""
        drawn = self._drawn()
        return lambda: scoring.ours(*drawn)


class TorchvisionSide(Side):
    """torchvision's maskrcnn_resnet50_fpn, with torch's plain SGD as in its reference."""

    package = "torchvision"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.module = model = torchvision_model(job.node, job.work)
        size, seed = job.work.size, job.work.seed
        sharpen(model, [picture.to(job.work.device) for picture in coarse_pictures(1, size, seed=seed)])
        assert job.weights is not None
        torch.save(model.state_dict(), job.weights)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = SGD(trained, lr=0.0, momentum=0.9, weight_decay=1e-4)
        self.laps.watch(model.backbone, **{_FEATURES: model.backbone, _RPN: model.rpn, ROI: model.roi_heads})

    @cached_property
    def batch(self) -> tuple[Any, Any]:
        """Pictures and targets with whole masks."""
        return torchvision_batch(self.work)

    def settle(self) -> None:
        """Settle the heads."""
        settle_torchvision(self.module)

    @torch.inference_mode()
    def detections(self) -> Found:
        """Those of the model."""
        pictures = coarse_pictures(_AGREEING, self.work.size, seed=self.work.seed)
        return arrays(self.module.eval()([picture.to(self.work.device) for picture in pictures]))

    def pictures(self, count: int) -> list[Tensor]:
        """In 0..1."""
        return floats(self.work.pictures(count))

    def predict(self, pictures: list[Tensor]) -> list[Any]:
        """Its masks are whole pictures; then they are encoded."""
        found = self.module(pictures)
        self.laps.mark(MASKS)
        results = [_encoded(each["masks"]) for each in found]
        self.laps.mark(ENCODE)
        return results

    @cached_property
    def loader(self) -> tuple[Any, str | None]:
        """torchvision's large-scale jitter."""
        loader, self.label_of, absent = torchvision_loader(self.job.settings)
        return loader, absent

    def on_device(self, batch: Any) -> tuple[Any, Any]:
        """Move it, pictures as floats, category ids as labels."""
        device = self.work.device
        pictures = floats(picture.to(device, non_blocking=True) for picture in batch[0])
        targets = [{**target, "labels": self.label_of[target["labels"]]} for target in batch[1]]
        return pictures, [
            {name: value.to(device, non_blocking=True) for name, value in target.items()} for target in targets
        ]

    def scored(self) -> Callable[[], scoring.Numbers]:
        """By pycocotools."""
        drawn = self._drawn()
        return lambda: scoring.pycocotools(*drawn)


def _encoded(masks: Tensor) -> list[Any]:
    """Run lengths of mask probabilities [D, 1, H, W]."""
    return [coco_mask.encode(np.asfortranarray(mask)) for mask in (masks[:, 0] > 0.5).byte().cpu().numpy()]

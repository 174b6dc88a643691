"""One of the two sides that suite=speed compares: a network, its training step and its inference.

Both sides have the weights that torchvision's drew, and the same pictures. Once their last layers are settled (see
`networks`), they have the full number of proposals and detections to deal with. A training step changes no weight,
for its learning rate is 0, or the work would change with them.
"""

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from maskrcnn.benchmark import scoring
from maskrcnn.benchmark.agreement import Found, coarse_pictures
from maskrcnn.benchmark.host_syncs import host_syncs
from maskrcnn.benchmark.laps import Laps
from maskrcnn.benchmark.meter import Meter
from maskrcnn.benchmark.networks import Work
from maskrcnn.memory import hand_back_freed_memory

ROI, MASKS, ENCODE = "roi heads", "masks", "encode"
FEATURES, RPN = "features", "rpn"
TRAIN_STAGES = ("input", FEATURES, RPN, ROI, "backward", "optimizer")
INFERENCE_STAGES = ("input", FEATURES, RPN, ROI, MASKS, ENCODE)
ENLARGE = 3  # anchors of 32 pixels to about what instances of COCO measure in a picture of 800 x 1333
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
        detections: What an inference found.
    """

    seconds: float
    peak_memory_mb: float | None
    stages: dict[str, float]
    detections: int = 0


class Side(ABC):
    """A network and its work.

    Attributes:
        root: The folder of its code.
    """

    root: ClassVar[Path]
    module: nn.Module
    optimizer: Optimizer

    def __init__(self, job: Job) -> None:
        self.meter = Meter(job.work.device)  # before anything is loaded
        self.work = job.work
        self.settings = job.settings
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

    def agreeing(self) -> list[Tensor]:
        """The pictures of `detections`."""
        pictures = coarse_pictures(_AGREEING, self.work.size, seed=self.work.seed)
        return [picture.to(self.work.device) for picture in pictures]

    @abstractmethod
    def pictures(self, count: int) -> list[Tensor]:
        """Made-up pictures for inference."""

    @abstractmethod
    def predict(self, pictures: list[Tensor]) -> list[Any]:
        """Detections of each picture with masks as run lengths; marks the stages from the RoI heads on."""

    @cached_property
    @abstractmethod
    def loader(self) -> tuple[Any, str | None]:
        """Training batches of the data set, or why there are none."""

    @abstractmethod
    def on_device(self, batch: Any) -> tuple[Any, Any]:
        """A batch of the loader as the network takes it."""

    @abstractmethod
    def numbers(self, content: scoring.Content) -> scoring.Numbers:
        """Score results."""

    def rest(self) -> None:
        """Let go of the memory that other work has left in this process: it does not belong to the next."""
        gc.collect()
        hand_back_freed_memory()

    def train(self, precision: str) -> Sample:
        """A training step on the made-up batch."""
        batch = self.batch
        return self._clocked(lambda: self.step(batch, precision))

    def infer(self, count: int, precision: str) -> Sample:
        """So many pictures at once, to run lengths."""
        self.module.eval()
        pictures = self.pictures(count)
        found: list[Any] = []

        def work() -> None:
            self.laps.start()
            with torch.inference_mode(), self._autocast(precision):
                found.extend(self.predict(pictures))

        return self._clocked(work)._replace(detections=sum(map(len, found)))

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
        return host_syncs(lambda: self.step(batch, precision), root=self.root)

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
        counts, numbers = self.settings["scoring"], []
        content = scoring.drawn(counts["images"], self.work.instances, counts["detections"], self.work.seed)
        seconds, peak = self.meter.once(lambda: numbers.append(self.numbers(content)))
        return Sample(seconds, peak, {}), numbers[0]

    def _clocked(self, work: Callable[[], None]) -> Sample:
        return Sample(*self.meter.once(work), self.laps.seconds())

    def _autocast(self, precision: str) -> torch.autocast:
        return torch.autocast(self.work.device.type, dtype=torch.bfloat16, enabled=precision == "bf16")

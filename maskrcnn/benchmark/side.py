"""One of the loaders that are compared, clocked through its worker and, stage by stage, in this process."""

from collections.abc import Iterator
from statistics import median
from time import perf_counter
from typing import Any

from torch.utils.data import DataLoader

from maskrcnn.benchmark.report import Spread
from maskrcnn.benchmark.stopwatch import Stage, Stopwatch
from maskrcnn.data.annotations import Annotations
from maskrcnn.data.mixing import CopyPaste, MixUp
from maskrcnn.data.outline import Outline
from maskrcnn.data.patch import Patch
from maskrcnn.data.pixels import PixelTransform

_TIMED = ("decode", "colour", "warp", "mixing", "outlines", "masks", "collate")
STAGES = (*_TIMED, "other", "transfer")


class Side:
    """A loader and what was measured of it.

    Args:
        loader: Has an EpochSampler.

    Attributes:
        seconds: Wall time of each epoch through the loader.
        stages: Seconds of each epoch in this process: of each stage, and "total".
        calls: How many calls were timed for `stages`.
    """

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader
        self.sampler: Any = loader.sampler
        self.seconds: list[float] = []
        self.stages: list[dict[str, float]] = []
        self.calls = 0

    @property
    def pictures(self) -> int:
        """Per epoch."""
        return len(self.sampler)

    @property
    def images_per_second(self) -> Spread:
        """Of each epoch, through the loader."""
        return Spread([self.pictures / seconds for seconds in self.seconds])

    def batches(self, epoch: int) -> Iterator[Any]:
        """An epoch's batches."""
        self.sampler.set_epoch(epoch)
        return iter(self.loader)

    def run(self, epoch: int) -> None:
        """Clock an epoch through the loader."""
        start = perf_counter()
        for _ in self.batches(epoch):
            pass
        self.seconds.append(perf_counter() - start)

    def run_here(self, epoch: int) -> None:
        """Clock the stages of an epoch, with timers around the functions that do the work."""
        stopwatch = Stopwatch()
        data: Any = self.loader.dataset
        batches: Any = self.loader.batch_sampler
        collate = stopwatch.timed("collate", self.loader.collate_fn)
        self.sampler.set_epoch(epoch)
        with stopwatch.watch(_stages(type(data.split.dataset))):
            start = perf_counter()
            for keys in batches:
                collate([data[key] for key in keys])
            total = perf_counter() - start
        self.stages.append({**stopwatch.seconds, "total": total})
        self.calls += stopwatch.calls

    def milliseconds(self) -> dict[str, float]:
        """Per picture and stage, medians of the epochs.

        "other" is what the timed functions leave of the total, "transfer" what the loader adds to it: less than
        nothing where something else kept the processor busy in between.
        """
        scale = 1e3 / self.pictures
        stages = {name: scale * median(epoch.get(name, 0.0) for epoch in self.stages) for name in _TIMED}
        total = scale * median(epoch["total"] for epoch in self.stages)
        stages["other"] = total - sum(stages.values())
        stages["transfer"] = scale * median(self.seconds) - total
        return stages


def _stages(dataset: type) -> list[Stage]:
    return [
        (dataset, "read_image", "decode"),
        (PixelTransform, "__call__", "colour"),
        (Patch, "draw", "warp"),
        (MixUp, "__call__", "mixing"),
        (CopyPaste, "__call__", "mixing"),
        (Annotations, "outline", "outlines"),
        (Outline, "transform", "outlines"),
        (Outline, "clip", "outlines"),
        (Outline, "crop", "masks"),
    ]

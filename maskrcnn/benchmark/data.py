"""Suite data: pictures per second and worker, what a batch weighs, and where the time of a picture goes.

Every side reads the same pictures of the training split, through a DataLoader with one worker process of one
thread; the clock covers whole batches that arrive in this process. Round 0 warms up (from then on the files are
in the system's cache) and is only weighed. Then the sides take turns, each round with new draws.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from maskrcnn.benchmark.data_table import draw_table
from maskrcnn.benchmark.peer import peer_loader, why_absent
from maskrcnn.benchmark.report import MEGABYTE, Result, check_counts
from maskrcnn.benchmark.side import Side
from maskrcnn.benchmark.stopwatch import cost_of_a_call
from maskrcnn.config import build
from maskrcnn.data.datamodule import DetectionDataModule
from maskrcnn.data.outline import Outline
from maskrcnn.data.sample import Sample, to_target, to_tensor
from maskrcnn.data.split import Split
from maskrcnn.errors import UserError

MOSAIC_INSTANCES = (38, 38, 37, 37)  # 150 in a batch of four


def measure(settings: dict[str, Any]) -> Result:
    """Measure the loaders of `presets`, and torchvision's large-scale jitter beside them.

    Raises:
        UserError: The data set cannot be used, or a setting is out of range.
    """
    check_counts(settings, "rounds", "pictures")
    with _one_thread():
        modules = _data_modules(settings)
        module = modules[0]
        ours = [Side(each.train_dataloader()) for each in modules]
        split = module.datasets["train"]
        peer_absent = why_absent(split)
        side, batch_size = module.transform.side, module.batch_size
        peer = None
        if peer_absent is None:
            colour_first = settings["peer_colour_first"]
            loader = peer_loader(split, side=side, batch_size=batch_size, seed=module.seed, colour_first=colour_first)
            peer = Side(loader)
        weights = [weigh(each.batches(0)) for each in (*ours, peer) if each]
        for epoch in range(1, settings["rounds"] + 1):
            for each in (*ours, peer):
                if each:
                    each.run(epoch)
            for each in ours:
                each.run_here(epoch)
    values: dict[str, Any] = {
        name: _preset_values(ours[i], weights[i], peer, weights[-1]) for i, name in enumerate(settings["presets"])
    }
    values["batch_of_mosaics"] = weigh_mosaics(module, ours[0])
    values["setup"] = {
        "pictures": settings["pictures"],
        "rounds": settings["rounds"],
        "batch_size": batch_size,
        "max_size": side,
        "peer_absent": peer_absent,
    }
    return Result(values, draw_table(values, settings["presets"]))


def data_module(settings: dict[str, Any], preset: str, **options: Any) -> DetectionDataModule:
    """What `data` describes, its pictures changed as a preset says; without empty ones, as torchvision's are.

    Raises:
        UserError: There is no such preset, or `data` does not describe a data set.
    """
    known = settings["augments"]
    if preset not in known:
        raise UserError(
            f"presets: no preset {preset}; known are {', '.join(known)} (one of your own: "
            "+augment@augments.<name>=<file in conf/augment>)"
        )
    trust = settings["trust"]
    augment = build(known[preset], key=f"augments.{preset}", trust=trust)
    return build(settings["data"], key="data", trust=trust, augment=augment, remove_blank=True, **options)


def load_pictures(module: DetectionDataModule, settings: dict[str, Any]) -> Split:
    """`pictures` training pictures, drawn by `seed` and loaded into the module."""
    module.load(train=True, evaluate=None)
    split = module.datasets["train"]
    order = np.random.default_rng(settings["seed"]).permutation(len(split))
    module.datasets["train"] = split.subset(np.resize(order, settings["pictures"]))
    return module.datasets["train"]


def _data_modules(settings: dict[str, Any]) -> list[DetectionDataModule]:
    """One per preset; all share the same pictures."""
    modules = [data_module(settings, name, num_workers=1) for name in settings["presets"]]
    if not modules:
        raise UserError(f"presets: name at least one of {', '.join(settings['augments'])}")
    split = load_pictures(modules[0], settings)
    for module in modules:
        module.datasets["train"] = split
    return modules


def _preset_values(
    side: Side, weight: dict[str, float], peer: Side | None, peer_weight: dict[str, float]
) -> dict[str, Any]:
    speed, peer_speed = side.images_per_second, peer.images_per_second if peer else None
    stages = side.milliseconds()
    return {
        "images_per_second": speed.median,
        "images_per_second_range": speed.limits,
        "peer_images_per_second": peer_speed.median if peer_speed else None,
        "peer_images_per_second_range": peer_speed.limits if peer_speed else None,
        "ratio": speed.median / peer_speed.median if peer_speed else None,
        "mb_per_batch": weight,
        "peer_mb_per_batch": peer_weight if peer else None,
        "stages": stages,
        "timing_overhead": 1e3 * cost_of_a_call() * side.calls / (len(side.stages) * side.pictures),
    }


def weigh(batches: Iterable[tuple[Any, Any]]) -> dict[str, float]:
    """Means per batch: megabytes of "pixels" and of "targets", and the number of "instances"."""
    rows = [
        (
            tensor_bytes(pixels) / MEGABYTE,
            tensor_bytes(targets) / MEGABYTE,
            sum(len(each["labels"]) for each in targets),
        )
        for pixels, targets in batches
    ]
    return dict(zip(("pixels", "targets", "instances"), np.mean(rows, axis=0).tolist(), strict=True))


def weigh_mosaics(module: DetectionDataModule, side: Side) -> dict[str, float]:
    """Megabytes of a batch of four full mosaics: ours, and with masks float32 [N, H, W] in their place."""
    length = module.transform.side
    square = Outline(polygons=(np.array([(0, 0), (length, 0), (length, length), (0, length)], dtype=float),))
    items = []
    for count in MOSAIC_INSTANCES:
        image = np.zeros((length, length, 3), np.uint8)
        sample = Sample(image, [square] * count, np.ones(count, np.int64), image_id=0)
        items.append((to_tensor(sample.image), to_target(sample, mask_size=module.mask_size)))
    batch, targets = side.loader.collate_fn(items)
    whole = tensor_bytes(batch) + tensor_bytes(targets)
    masks = sum(tensor_bytes(target["masks"]) for target in targets)
    instances = sum(MOSAIC_INSTANCES)
    return {
        "instances": instances,
        "mb": whole / MEGABYTE,
        "dense_mb": (whole - masks + instances * batch.pixels[0, 0].numel() * 4) / MEGABYTE,
    }


def tensor_bytes(value: Any) -> int:
    """Of all tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(tensor_bytes(each) for each in value.values())
    return sum(tensor_bytes(each) for each in value) if isinstance(value, list | tuple) else 0


@contextmanager
def _one_thread() -> Iterator[None]:
    threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(cv2_threads)

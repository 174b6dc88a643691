"""torchvision's own large-scale jitter on the same pictures.

The steps have the order of its detection reference (geometry, colour, flip) and work on tensors, which is faster
there than Pillow. Like the reference this ships whole-picture masks and lists of pictures. `colour_first` is not
what a user of the reference gets, but the fastest order that was found for its public parts: colours are changed
where a picture has the fewest pixels, and by Pillow; an instance that left goes before the masks are padded.
"""

import io
import json
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from maskrcnn.data.augment import FILL
from maskrcnn.data.coco import CocoDataset
from maskrcnn.data.samplers import EpochSampler
from maskrcnn.data.split import Split


def why_absent(split: Split) -> str | None:
    """Why torchvision cannot read these pictures, or None."""
    if not isinstance(split.dataset, CocoDataset):
        return f"it reads COCO instances files, not those of {type(split.dataset).__name__}"
    if not split.dataset.annotations.has_outline[split.counted].all():
        return "it needs the masks of instances without an outline"
    return None


def peer_loader(
    split: Split, *, side: int, batch_size: int, seed: int, colour_first: bool = False, num_workers: int = 1
) -> DataLoader:
    """Batches (pictures, targets) of torchvision's pipeline.

    Args:
        split: Pictures that all have instances.
        side: Of the canvas.
        batch_size: Pictures per batch.
        seed: Of all draws.
        colour_first: The fastest order in place of the reference's.
        num_workers: Processes that load pictures.
    """
    return DataLoader(
        _Pictures(split, large_scale_jitter(side, colour_first=colour_first)),
        sampler=EpochSampler(len(split), batch_size=batch_size, seed=seed, rank=0, world_size=1),
        batch_size=batch_size,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        collate_fn=_collate,
        generator=torch.Generator().manual_seed(seed),
    )


def large_scale_jitter(side: int, *, colour_first: bool) -> v2.Transform:
    """Pillow picture and wrapped target -> uint8 [3, side, side]; boxes, labels and masks uint8 [N, side, side]."""
    colour = v2.RandomPhotometricDistort()
    geometry = [v2.ToImage(), v2.ScaleJitter((side, side), scale_range=(0.1, 2.0)), CropTo(side)]
    flip, sanitize = v2.RandomHorizontalFlip(), v2.SanitizeBoundingBoxes()
    if colour_first:
        steps = [colour, *geometry, sanitize, flip, PadTo(side)]
    else:
        steps = [*geometry, PadTo(side), colour, flip, sanitize]
    return v2.Compose([*steps, v2.ToPureTensor()])


class CropTo(v2.Transform):
    """Cuts sides longer than `side` at random; RandomCrop would first pad the shorter ones on both ends."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws the window."""
        height, width = v2.query_size(flat_inputs)
        kept = min(height, self.side), min(width, self.side)
        top, left = (
            int(torch.randint(whole - part + 1, ())) for whole, part in zip((height, width), kept, strict=True)
        )
        return {"top": top, "left": left, "height": kept[0], "width": kept[1]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Cuts."""
        return self._call_kernel(functional.crop, inpt, **params)


class PadTo(v2.Transform):
    """Fills up to `side` x `side` at the right and bottom."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """What is missing."""
        height, width = v2.query_size(flat_inputs)
        return {"padding": [0, 0, self.side - width, self.side - height]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Fills up."""
        fill = None if isinstance(inpt, tv_tensors.Mask) else list(FILL)
        return self._call_kernel(functional.pad, inpt, **params, fill=fill)


class _Pictures(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """The pictures of a split by (epoch, index), through torchvision's reader."""

    def __init__(self, split: Split, transforms: v2.Transform) -> None:
        counted = set(split.dataset.annotations.annotation_ids[split.counted].tolist())
        content = split.subset(np.unique(split.positions, return_index=True)[1]).ground_truth()
        assert content is not None  # training pictures are annotated
        content["annotations"] = [entry for entry in content["annotations"] if entry["id"] in counted]
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
            path = Path(folder) / "instances.json"
            path.write_text(json.dumps(content), encoding="utf-8")
            coco = CocoDetection(split.dataset.images, path, transforms=transforms)
        row_of = {image_id: row for row, image_id in enumerate(coco.ids)}
        self.rows = [row_of[image_id] for image_id in split.image_ids]
        self.coco = wrap_dataset_for_transforms_v2(coco, target_keys=("boxes", "labels", "masks"))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.coco[self.rows[key[1]]]


def _collate(items: list[Any]) -> tuple[Any, ...]:
    return tuple(zip(*items, strict=True))

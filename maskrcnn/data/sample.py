"""The Sample contract: a picture and its instances, on the way to what the model trains on."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maskrcnn.data.outline import Outline

Target = dict[str, Tensor]


@dataclass(frozen=True)
class Sample:
    """A picture with its instances.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        outlines: What each of the N instances covers, clipped to the picture.
        labels: int64 [N], 1..K.
        image_id: The data set's own id.
        partners: Ids of the other pictures that were mixed in.
    """

    image: np.ndarray
    outlines: list[Outline]
    labels: np.ndarray
    image_id: int
    partners: tuple[int, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.shape[0], self.image.shape[1]


def to_target(sample: Sample, *, mask_size: int) -> Target:
    """The dict the model trains on: boxes, labels, masks, has_mask, and the image_ids it is made of.

    Masks are uint8 [N, mask_size, mask_size], each cropped to its own box; has_mask bool [N] is False where only
    the box is known. image_ids is int64, the picture's own id first.
    """
    boxes = np.array([outline.box for outline in sample.outlines], dtype=np.float32).reshape(-1, 4)
    masks = np.zeros((len(boxes), mask_size, mask_size), dtype=np.uint8)
    for mask, outline, box in zip(masks, sample.outlines, boxes, strict=True):
        mask[:] = outline.crop(box.astype(np.float64), mask_size)
    return {
        "boxes": torch.from_numpy(boxes),
        "labels": torch.from_numpy(sample.labels),
        "masks": torch.from_numpy(masks),
        "has_mask": torch.tensor([not outline.box_only for outline in sample.outlines], dtype=torch.bool),
        "image_ids": torch.tensor([sample.image_id, *sample.partners]),
    }


def to_tensor(image: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] -> uint8 [3, H, W], the same memory in another order."""
    return torch.from_numpy(image).permute(2, 0, 1)

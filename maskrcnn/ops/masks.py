"""Masks between their forms: cropped to a box, laid into a picture, run-length encoded.

crops       uint8 [N, S, S], coverage in 0..255 of an instance, stretched from its box to S x S
mask_probs  float [N, M, M], the same frame, as the mask head predicts it
RLE         {"size": [height, width], "counts": bytes}, COCO's compressed run-length encoding
"""

from typing import Any

import numpy as np
import torch
from faster_coco_eval import mask_api_new_cpp
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import clip_boxes_to_image, roi_align

RLE = dict[str, Any]
Patch = tuple[Tensor, tuple[int, int]]  # pixels [h, w] and the (top, left) where they belong


def sample_mask_targets(
    crops: Tensor, *, boxes: Tensor, rois: Tensor, size: int, instances: Tensor | None = None
) -> Tensor:
    """What an instance looks like inside each RoI, at size x size (Mask R-CNN, section 3).

    Args:
        crops: uint8 [N, S, S].
        boxes: [N, 4], the box that each crop fills.
        rois: [R, 4], in the same pixels.
        size: Side of the result.
        instances: int64 [R], which one is seen in each RoI; by default instance i in RoI i.

    Returns:
        float32 [R, size, size] in 0..1, 0 where the RoI reaches beyond the box.
    """
    side = crops.shape[-1]
    if instances is None:
        instances = torch.arange(len(crops), device=crops.device)
    boxes = boxes[instances]
    origin = boxes[:, :2].repeat(1, 2)
    scale = side / (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    rois_in_crop = torch.cat((instances[:, None].float(), (rois.float() - origin) * scale), dim=1)
    return roi_align(crops[:, None].float() / 255, rois_in_crop, size, aligned=True)[:, 0]


def masks_to_rle(
    mask_probs: Tensor, boxes: Tensor, *, size: tuple[int, int], paste: str, threshold: float = 0.5
) -> list[RLE]:
    """Lay each mask into a picture of `size` (height, width), cut it at `threshold` and encode it.

    Only the pixels of a mask's own box are computed; the full picture exists as runs alone.

    Args:
        mask_probs: [N, M, M].
        boxes: [N, 4] in pixels of the picture.
        size: Its (height, width).
        threshold: Probability above which (detectron2: from which) a pixel belongs to the mask.
        paste: `torchvision`: boxes are widened by the mask's margin and cut to whole pixels;
            `detectron2`: each pixel centre samples the mask at its exact place in the box;
            `original`: boxes are cut to whole pixels, without a margin.
    """
    covers = torch.ge if paste == "detectron2" else torch.gt
    return [
        _encode_patch(covers(patch, threshold).numpy(), top_left, size)
        for patch, top_left in _PASTE[paste](mask_probs.float().cpu(), boxes.float().cpu(), size)
    ]


def _paste_torchvision(mask_probs: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[Patch]:
    """Patches and their (top, left), by torchvision's rule: a zero margin of one mask pixel all round."""
    side = mask_probs.shape[-1]
    padded = F.pad(mask_probs, (1, 1, 1, 1))
    centre = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    half = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * ((side + 2) / side)
    corners = torch.cat((centre - half, centre + half), dim=1).to(torch.int64).tolist()
    patches = []
    for mask, (x0, y0, x1, y1) in zip(padded, corners, strict=True):
        shape = (max(y1 - y0 + 1, 1), max(x1 - x0 + 1, 1))
        patch = F.interpolate(mask[None, None], size=shape, mode="bilinear", align_corners=False)[0, 0]
        top, left = max(y0, 0), max(x0, 0)
        bottom, right = max(size[0], y0), max(size[1], x0)
        patches.append((patch[top - y0 : bottom - y0, left - x0 : right - x0], (top, left)))
    return patches


def _paste_detectron2(mask_probs: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[Patch]:
    """Patches and their (top, left), sampled at pixel centres."""
    patches = []
    for mask, (x0, y0, x1, y1) in zip(mask_probs, boxes.tolist(), strict=True):
        left, top = max(int(np.floor(x0)) - 1, 0), max(int(np.floor(y0)) - 1, 0)
        right = max(min(int(np.ceil(x1)) + 1, size[1]), left)
        bottom = max(min(int(np.ceil(y1)) + 1, size[0]), top)
        x = (torch.arange(left, right) + 0.5 - x0) / (x1 - x0) * 2 - 1
        y = (torch.arange(top, bottom) + 0.5 - y0) / (y1 - y0) * 2 - 1
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        patches.append((F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0], (top, left)))
    return patches


def _paste_original(mask_probs: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[Patch]:
    """Patches and their (top, left), stretched over the whole pixels between the corners, cut down to integers."""
    corners = clip_boxes_to_image(boxes, size).to(torch.int64).tolist()
    patches = []
    for mask, (x0, y0, x1, y1) in zip(mask_probs, corners, strict=True):
        if x1 > x0 and y1 > y0:
            patch = F.interpolate(mask[None, None], size=(y1 - y0, x1 - x0), mode="bilinear", align_corners=False)[0, 0]
        else:
            patch = mask.new_zeros(0, 0)
        patches.append((patch, (y0, x0)))
    return patches


_PASTE = {"torchvision": _paste_torchvision, "detectron2": _paste_detectron2, "original": _paste_original}
PASTE_RULES = tuple(_PASTE)


def _encode_patch(patch: np.ndarray, top_left: tuple[int, int], size: tuple[int, int]) -> RLE:
    """RLE of a picture of `size` that is empty but for a binary `patch` [h, w] at `top_left`."""
    height, width = size
    top, left = top_left
    columns = np.zeros((patch.shape[1], height), dtype=bool)  # RLE runs down the columns
    columns[:, top : top + patch.shape[0]] = patch.T
    changes = np.flatnonzero(np.diff(columns.ravel(), prepend=False, append=False)) + left * height
    runs = np.diff(changes[changes < height * width], prepend=0, append=height * width)
    return coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)


def crop_rle(rle: RLE) -> tuple[np.ndarray, tuple[int, int]]:
    """A mask cut to its extent, uint8 [h, w] of 0 and 1, and the (left, top) of that; never whole in memory."""
    left, top, width, height = (int(value) for value in coco_mask.toBbox(rle))
    rows = rle["size"][0]
    ends = np.cumsum(mask_api_new_cpp.toUncompressedRLE([rle])[0]["counts"])  # down the columns
    runs = np.diff(ends.clip(left * rows, (left + width) * rows), prepend=left * rows)
    mask = (np.arange(len(runs)) % 2).astype(np.uint8).repeat(runs).reshape(width, rows).T[top : top + height]
    return mask, (left, top)

"""The target of a sample: instances leave boxes, labels and masks together, and masks fill their boxes."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from maskrcnn.data.outline import Outline, shift
from maskrcnn.data.sample import Sample, to_target, to_tensor

SIZE = (90, 120)  # height, width
SIDE = 112


def rectangle(x1, y1, x2, y2):
    return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], dtype=np.float64)


def ellipse(cx, cy, rx, ry):
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return np.stack((cx + rx * np.cos(t), cy + ry * np.sin(t)), axis=1)


def as_bitmap(outline):
    return Outline(bitmap=coco_mask.decode(outline.rle(SIZE)))


def sample_of(*outlines, size=SIZE):
    image = np.zeros((*size, 3), np.uint8)
    return Sample(image, list(outlines), np.arange(1, len(outlines) + 1), image_id=7)


def test_size_is_height_and_width():
    assert sample_of().size == SIZE


def test_instances_leave_boxes_labels_and_masks_together():
    outlines = [
        Outline((rectangle(10, 10, 30, 30),)),
        Outline((rectangle(50, 10, 60, 20),), box_only=True),
        as_bitmap(Outline((ellipse(60, 60, 10, 10),))),
        Outline(bitmap=np.ones((3, 4), np.uint8), matrix=shift(100, 80)),
    ]
    target = to_target(sample_of(*outlines), mask_size=SIDE)
    assert target["labels"].tolist() == [1, 2, 3, 4]
    assert target["boxes"].tolist()[:2] == [[10, 10, 30, 30], [50, 10, 60, 20]]
    assert target["boxes"].tolist()[3] == [100, 80, 104, 83]
    assert target["boxes"].dtype == torch.float32
    assert target["has_mask"].tolist() == [True, False, True, True]
    assert target["has_mask"].dtype == torch.bool
    assert target["masks"].shape == (4, SIDE, SIDE)
    assert target["masks"].dtype == torch.uint8
    assert (target["masks"].float().mean(dim=(1, 2)) > 190).all()
    assert target["image_ids"].tolist() == [7]


def test_no_instance_is_too_small():
    """What is worth learning is decided before: here nothing goes, and a thin one still fills its own box."""
    sides = (0.25, 0.5, 1, 4)
    target = to_target(sample_of(*[Outline((rectangle(10, 10, 10 + side, 50),)) for side in sides]), mask_size=SIDE)
    assert target["labels"].tolist() == [1, 2, 3, 4]
    assert target["boxes"].tolist() == [[10, 10, 10 + side, 50] for side in sides]
    assert (target["masks"] == 255).all()
    assert {len(target[key]) for key in ("boxes", "labels", "masks", "has_mask")} == {4}


def test_target_of_a_picture_without_instances():
    target = to_target(sample_of(), mask_size=SIDE)
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].shape == (0,)
    assert target["labels"].dtype == torch.int64
    assert target["masks"].shape == (0, SIDE, SIDE)
    assert target["has_mask"].shape == (0,)
    assert target["has_mask"].dtype == torch.bool


@pytest.mark.parametrize("mask_size", [28, 112])
def test_masks_are_cropped_to_their_own_boxes(mask_size):
    """The half of a right triangle lies on one side of its box, wherever that is."""
    triangle = np.array([(20.0, 10), (60, 10), (20, 70)])
    target = to_target(sample_of(Outline((triangle,)), as_bitmap(Outline((triangle,)))), mask_size=mask_size)
    rows, columns = np.mgrid[:mask_size, :mask_size] + 0.5
    expected = rows + columns < mask_size
    for mask in target["masks"].numpy() > 127:
        assert (mask == expected).mean() > 0.96
        assert mask[: mask_size // 3, : mask_size // 3].all()
        assert not mask[-mask_size // 3 :, -mask_size // 3 :].any()


def test_to_tensor_moves_the_channels_first():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for one in (image, image[:, ::2]):
        tensor = to_tensor(one)
        assert tensor.shape == (3, 5, one.shape[1])
        assert np.array_equal(tensor.numpy().transpose(1, 2, 0), one)
        assert tensor.data_ptr() == one.ctypes.data

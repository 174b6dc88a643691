"""What an outline covers is compared with pycocotools' masks and with areas known by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from maskrcnn.data.sample import IDENTITY, Outline, Sample, to_target, to_tensor, warp

SIZE = (90, 120)  # height, width
SIDE = 112


def ring(*points):
    return np.array(points, dtype=np.float64)


def rectangle(x1, y1, x2, y2):
    return ring((x1, y1), (x2, y1), (x2, y2), (x1, y2))


def ellipse(cx, cy, rx, ry, angle=0.0):
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x, y = rx * np.cos(t), ry * np.sin(t)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack((cx + cos * x - sin * y, cy + sin * x + cos * y), axis=1)


def flip(width):
    return np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]])


def pixels(outline, size=SIZE):
    return coco_mask.decode(outline.rle(size)).astype(bool)


def as_bitmap(outline, size=SIZE):
    return Outline(bitmap=coco_mask.decode(outline.rle(size)))


def iou(a, b):
    return (a & b).sum() / max((a | b).sum(), 1)


def sample_of(*outlines, size=SIZE):
    image = np.zeros((*size, 3), np.uint8)
    return Sample(image, list(outlines), np.arange(1, len(outlines) + 1), image_id=7)


ellipses = st.builds(
    ellipse,
    cx=st.floats(30, 90),
    cy=st.floats(30, 60),
    rx=st.floats(6, 28),
    ry=st.floats(6, 28),
    angle=st.floats(0, 3.1),
)


def test_ten_by_ten_square_covers_a_hundred_pixels():
    mask = pixels(Outline((rectangle(20, 30, 30, 40),)))
    assert mask.sum() == 100
    assert mask[30:40, 20:30].all()


def test_overlapping_parts_of_an_instance_unite():
    left, right = rectangle(10, 10, 30, 30), rectangle(20, 10, 40, 30)
    outline = Outline((left, right, left[::-1]))
    assert pixels(outline).sum() == 30 * 20
    assert (outline.crop(outline.box(SIZE), SIDE) == 255).all()
    assert (outline.transform(flip(SIZE[1])).box(SIZE) == [80, 10, 110, 30]).all()


@given(points=ellipses)
def test_box_is_tight(points):
    outline = Outline((points,))
    mask = pixels(outline)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    around = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert np.abs(outline.box(SIZE) - around).max() <= 1
    assert (as_bitmap(outline).box(SIZE) == around).all()


@given(points=ellipses, dx=st.floats(-80, 80), dy=st.floats(-60, 60))
def test_box_is_tight_where_the_picture_cuts_the_outline(points, dx, dy):
    points = points + np.array((dx, dy))
    box = Outline((points,)).box(SIZE)
    edges = np.roll(points, -1, axis=0) - points
    contour = (points[:, None] + np.linspace(0, 1, 50)[:, None] * edges[:, None]).reshape(-1, 2)
    corners = rectangle(0, 0, SIZE[1], SIZE[0])
    to_corners = corners[:, None] - points
    covered = (edges[:, 0] * to_corners[..., 1] - edges[:, 1] * to_corners[..., 0] >= 0).all(axis=1)
    left = np.concatenate((contour[((contour >= 0) & (contour <= corners[2])).all(axis=1)], corners[covered]))
    if len(left):
        assert np.abs(box - np.concatenate((left.min(axis=0), left.max(axis=0)))).max() < 0.2
    else:
        assert (box[2:] - box[:2]).min() < 0.2


def test_box_of_nothing_has_no_area():
    for outline in (
        Outline(),
        Outline(bitmap=np.zeros(SIZE, np.uint8)),
        Outline((rectangle(130, 10, 140, 20),)),
        Outline((rectangle(-20, -20, -10, -10),)),
    ):
        box = outline.box(SIZE)
        assert (box[2] - box[0]) * (box[3] - box[1]) == 0


def test_polygon_and_bitmap_of_one_instance_give_the_same_crop():
    rng = np.random.default_rng(0)
    overlaps = []
    for _ in range(60):
        points = ellipse(*rng.uniform((35, 30, 8, 8, 0), (85, 60, 28, 28, 3)))
        outline = Outline((points,))
        box = outline.box(SIZE).astype(np.float64)
        crops = [one.crop(box, SIDE) for one in (outline, as_bitmap(outline))]
        assert {(crop.shape, crop.dtype.name) for crop in crops} == {((SIDE, SIDE), "uint8")}
        overlaps.append(iou(*(crop > 127 for crop in crops)))
    assert np.mean(overlaps) >= 0.97
    assert min(overlaps) > 0.9


def test_polygon_and_bitmap_agree_after_resize_and_flip():
    rng = np.random.default_rng(0)
    matrix = flip(180) @ np.diag([1.5, 1.5, 1])
    overlaps = []
    for _ in range(40):
        outline = Outline((ellipse(*rng.uniform((35, 30, 10, 10, 0), (85, 60, 28, 28, 3))),))
        moved, bitmap = outline.transform(matrix), as_bitmap(outline).transform(matrix)
        overlaps.append(iou(pixels(moved, (135, 180)), pixels(bitmap, (135, 180))))
        assert np.abs(moved.box((135, 180)) - bitmap.box((135, 180))).max() <= 1.5
    assert np.mean(overlaps) >= 0.97


@given(points=ellipses)
def test_flip_is_pycocotools_mask_flipped(points):
    outline = as_bitmap(Outline((points,)))
    assert np.array_equal(pixels(outline.transform(flip(SIZE[1]))), pixels(outline)[:, ::-1])


def test_flipped_polygons_lose_no_pixel():
    outline = Outline((rectangle(0, 5, 17, 25),))
    assert np.array_equal(pixels(outline.transform(flip(SIZE[1]))), pixels(outline)[:, ::-1])
    rng = np.random.default_rng(0)
    overlaps = []
    for _ in range(40):
        outline = Outline((ellipse(*rng.uniform((35, 30, 10, 10, 0), (85, 60, 28, 28, 3))),))
        overlaps.append(iou(pixels(outline.transform(flip(SIZE[1]))), pixels(outline)[:, ::-1]))
    assert np.mean(overlaps) >= 0.98


def test_two_flips_are_none():
    outline = as_bitmap(Outline((ellipse(50, 40, 20, 10, 0.5),)))
    twice = outline.transform(flip(SIZE[1])).transform(flip(SIZE[1]))
    assert np.array_equal(pixels(twice), pixels(outline))
    assert (twice.box(SIZE) == outline.box(SIZE)).all()


def test_crop_is_the_share_of_the_box_that_is_covered():
    outline = Outline((rectangle(10, 10, 30, 30),))
    crop = outline.crop(np.array([10.0, 10.0, 50.0, 30.0]), SIDE)
    assert (crop[:, : SIDE // 2] == 255).all()
    assert (crop[:, SIDE // 2 :] == 0).all()
    bitmap = as_bitmap(outline).crop(np.array([10.0, 10.0, 50.0, 30.0]), SIDE)
    assert abs(bitmap.mean() / 255 - 0.5) < 0.01


def test_instances_leave_boxes_labels_and_masks_together():
    outlines = [
        Outline((rectangle(10, 10, 30, 30),)),
        Outline((rectangle(40, 40, 40.5, 70),)),  # too thin
        Outline((rectangle(200, 10, 220, 30),)),  # outside
        as_bitmap(Outline((ellipse(60, 60, 10, 10),))),
        Outline(bitmap=np.zeros(SIZE, np.uint8)),  # empty
    ]
    target = to_target(sample_of(*outlines), mask_size=SIDE)
    assert target["labels"].tolist() == [1, 4]
    assert target["boxes"].shape == (2, 4)
    assert target["boxes"].dtype == torch.float32
    assert target["masks"].shape == (2, SIDE, SIDE)
    assert target["masks"].dtype == torch.uint8
    assert (target["masks"].float().mean(dim=(1, 2)) > 100).all()
    assert int(target["image_id"]) == 7


def test_target_of_a_picture_without_instances():
    target = to_target(sample_of(), mask_size=SIDE)
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].shape == (0,)
    assert target["labels"].dtype == torch.int64
    assert target["masks"].shape == (0, SIDE, SIDE)


@pytest.mark.parametrize("factor", [0.5, 2.0, 3.0])
def test_warp_keeps_corners_in_the_corners(factor):
    image = np.zeros((20, 30, 3), np.uint8)
    image[:, 15:] = 200
    size = (int(20 * factor), int(30 * factor))
    warped = warp(image, np.diag([factor, factor, 1]), size)
    assert warped.shape == (*size, 3)
    half = size[1] // 2
    margin = int(np.ceil(factor))
    assert (warped[:, : half - margin] == 0).all()
    assert (warped[:, half + margin :] == 200).all()  # the border is continued, nothing fades out
    assert abs(warped.mean() - 100) < 1


def test_warp_by_the_identity_changes_nothing():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert np.array_equal(warp(image, IDENTITY, (20, 30)), image)
    assert np.array_equal(warp(image, flip(30), (20, 30)), image[:, ::-1])


def test_to_tensor_moves_the_channels_first():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for one in (image, image[:, ::-1]):
        tensor = to_tensor(one)
        assert tensor.shape == (3, 5, 7)
        assert np.array_equal(tensor.numpy().transpose(1, 2, 0), one)

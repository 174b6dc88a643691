import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import roi_align

from maskrcnn.data.outline import Outline
from maskrcnn.ops.masks import PASTE_RULES, masks_to_rle, sample_mask_targets

SIZE = (37, 53)


def dense(rles: list[dict[str, Any]]) -> np.ndarray:
    return np.asarray(coco_mask.decode(rles).transpose(2, 0, 1), dtype=bool)


def smooth_masks(count: int, side: int, *, seed: int) -> Tensor:
    """Probabilities [count, side, side] in coherent regions above and below one half."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, 5, 5, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")[:, 0]


def boxes_around(size: tuple[int, int], count: int, *, seed: int) -> Tensor:
    """Boxes of all scales whose centre lies in a picture of `size`; many reach beyond it."""
    generator = torch.Generator().manual_seed(seed)
    limit = torch.tensor([size[1], size[0]])
    centre = torch.rand(count, 2, generator=generator) * limit
    half = (torch.rand(count, 2, generator=generator) ** 3 * limit).clamp(min=0.01)
    return torch.cat((centre - half, centre + half), dim=1)


BORDER_BOXES = torch.tensor(
    [
        [0.0, 0.0, 53.0, 37.0],
        [0.0, 0.0, 0.02, 0.02],
        [52.98, 36.98, 53.0, 37.0],
        [10.0, 10.0, 10.01, 30.0],
        [0.0, 20.0, 53.0, 20.01],
        [-20.0, -20.0, 80.0, 80.0],
        [-15.5, 3.0, 2.5, 9.0],
        [50.5, 30.5, 70.0, 60.0],
        [4.0, 4.0, 8.0, 8.0],
    ]
)


def test_pasting_equals_torchvision_exactly() -> None:
    boxes = torch.cat((boxes_around(SIZE, 200, seed=0), BORDER_BOXES))
    probs = smooth_masks(len(boxes), 28, seed=1)
    expected = paste_masks_in_image(probs[:, None], boxes, SIZE)[:, 0].numpy() > 0.5
    found = dense(masks_to_rle(probs, boxes, size=SIZE, paste="torchvision"))
    assert np.array_equal(found, expected)
    assert expected.any(axis=(1, 2)).sum() > 150


def bilinear(mask: np.ndarray, v: float, u: float) -> float:
    """Value of a mask at row `v`, column `u`, counted from pixel centres, zero outside."""
    row, column = math.floor(v), math.floor(u)
    value = 0.0
    for i in (row, row + 1):
        for j in (column, column + 1):
            if 0 <= i < mask.shape[0] and 0 <= j < mask.shape[1]:
                value += (1 - abs(v - i)) * (1 - abs(u - j)) * float(mask[i, j])
    return value


def test_detectron2_pasting_samples_each_pixel_centre() -> None:
    height, width, side = 11, 14, 6
    boxes = torch.cat(
        (
            boxes_around((height, width), 25, seed=2),
            torch.tensor([[0.0, 0, 14, 11], [3.0, 2, 9, 8], [-4, -3, 5, 6.5], [5.2, 4.1, 20, 17]]),
        )
    )
    probs = smooth_masks(len(boxes), side, seed=3)
    found = dense(masks_to_rle(probs, boxes, size=(height, width), paste="detectron2"))
    checked = 0
    for mask, (x0, y0, x1, y1), pasted in zip(probs.numpy(), boxes.tolist(), found, strict=True):
        for row in range(height):
            for column in range(width):
                u = (column + 0.5 - x0) / (x1 - x0) * side - 0.5
                v = (row + 0.5 - y0) / (y1 - y0) * side - 0.5
                value = bilinear(mask, v, u)
                if abs(value - 0.5) > 1e-4:
                    assert pasted[row, column] == (value > 0.5)
                    checked += value > 0.5
    assert checked > 200


@pytest.mark.parametrize("paste", PASTE_RULES)
def test_run_lengths_are_those_of_pycocotools(paste: str) -> None:
    boxes = torch.cat((boxes_around(SIZE, 50, seed=4), BORDER_BOXES))
    probs = smooth_masks(len(boxes), 14, seed=5)
    rles = masks_to_rle(probs, boxes, size=SIZE, paste=paste)
    for rle, mask in zip(rles, dense(rles), strict=True):
        expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert rle == expected
        assert coco_mask.area(rle) == mask.sum()


def test_original_pasting_by_hand() -> None:
    box = torch.tensor([[8.9, 4.2, 36.7, 32.9], [20.3, 10, 20.9, 30], [50.0, 30, 99, 99]])
    probs = torch.ones(3, 28, 28)
    probs[0, :, :14] = 0
    found = dense(masks_to_rle(probs, box, size=SIZE, paste="original"))
    expected = np.zeros((3, *SIZE), dtype=bool)
    expected[0, 4:32, 22:36] = True  # the right half of 28 pixels
    expected[2, 30:, 50:] = True
    assert np.array_equal(found, expected)


def test_detectron2_pasting_of_a_full_mask_covers_exactly_its_box() -> None:
    box = torch.tensor([[8.0, 4, 36, 32]])
    rles = masks_to_rle(torch.ones(1, 28, 28), box, size=SIZE, paste="detectron2")
    expected = np.zeros(SIZE, dtype=bool)
    expected[4:32, 8:36] = True
    assert np.array_equal(dense(rles)[0], expected)


def test_a_pixel_of_exactly_one_half_belongs_to_the_mask_in_detectron2_alone() -> None:
    box = torch.tensor([[8.0, 4, 24, 20]])
    probs = torch.full((1, 16, 16), 0.5)
    areas = {paste: coco_mask.area(masks_to_rle(probs, box, size=SIZE, paste=paste))[0] for paste in PASTE_RULES}
    assert areas == {"torchvision": 0, "detectron2": 16 * 16, "original": 0}


@pytest.mark.parametrize("paste", PASTE_RULES)
def test_a_narrow_mask_at_the_bottom_ends_with_its_box(paste: str) -> None:
    box = torch.tensor([[20.0, 17, 23, 37]])
    mask = dense(masks_to_rle(torch.ones(1, 28, 28), box, size=SIZE, paste=paste))[0]
    assert mask[-1, 21]
    assert not mask[:, :19].any()
    assert not mask[:, 24:].any()


@pytest.mark.parametrize("paste", PASTE_RULES)
def test_a_mask_over_the_whole_picture_and_an_empty_one(paste: str) -> None:
    probs = torch.stack((torch.ones(28, 28), torch.zeros(28, 28)))
    boxes = torch.tensor([[-10.0, -10, 70, 60], [5.0, 5, 20, 20]])
    rles = masks_to_rle(probs, boxes, size=SIZE, paste=paste)
    assert coco_mask.area(rles).tolist() == [SIZE[0] * SIZE[1], 0]
    assert [rle["size"] for rle in rles] == [list(SIZE)] * 2


@pytest.mark.parametrize("paste", PASTE_RULES)
@pytest.mark.parametrize(
    "box",
    [[60.0, 5, 90, 20], [5.0, 40, 20, 70], [-40.0, 5, -10, 20], [5.0, -40, 20, -10], [80.0, 80, 99, 99]],
)
def test_a_box_outside_the_picture_covers_nothing(paste: str, box: list[float]) -> None:
    rles = masks_to_rle(torch.ones(1, 28, 28), torch.tensor([box]), size=SIZE, paste=paste)
    assert coco_mask.area(rles).tolist() == [0]
    assert dense(rles).shape == (1, *SIZE)


@pytest.mark.parametrize("paste", PASTE_RULES)
def test_the_threshold_cuts_the_mask(paste: str) -> None:
    ramp = torch.linspace(0, 1, 28).expand(1, 28, 28)
    box = torch.tensor([[2.0, 2, 34, 34]])
    widths = [
        int(dense(masks_to_rle(ramp, box, size=SIZE, paste=paste, threshold=threshold))[0, 18].sum())
        for threshold in (0.25, 0.5, 0.75)
    ]
    assert widths == pytest.approx([24, 16, 8], abs=2)


def test_no_masks_give_no_run_lengths() -> None:
    for paste in PASTE_RULES:
        assert masks_to_rle(torch.zeros(0, 28, 28), torch.zeros(0, 4), size=SIZE, paste=paste) == []


def test_targets_by_hand() -> None:
    crops = torch.zeros(3, 4, 4, dtype=torch.uint8)
    crops[0, :, :2] = 255  # left half
    crops[1, 0] = 51  # a fifth, in the first row
    crops[2, :, 1] = 255
    boxes = torch.tensor([[10.0, 20, 18, 24]]).expand(3, 4)
    rois = torch.tensor([[10.0, 20, 18, 24], [10.0, 20, 18, 24], [12.0, 20, 14, 24]])
    found = sample_mask_targets(crops, boxes=boxes, rois=rois, size=4)
    assert found.dtype == torch.float32
    assert found[0].tolist() == [[1, 1, 0, 0]] * 4
    torch.testing.assert_close(found[1, 0], torch.full((4,), 0.2))
    assert found[1, 1:].eq(0).all()
    # The second column of the crop, between the centres of its neighbours.
    assert found[2].tolist() == [[0.625, 0.875, 0.875, 0.625]] * 4


def test_targets_are_empty_where_the_roi_reaches_beyond_the_box() -> None:
    crop = torch.full((1, 112, 112), 255, dtype=torch.uint8)
    box = torch.tensor([[100.0, 50, 200, 150]])
    found = sample_mask_targets(crop, boxes=box, rois=torch.tensor([[0.0, 50, 400, 250]]), size=32)[0]
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[:16, 8:16] = True
    assert (found[inside] == 1).all()
    # Bilinear sampling continues the border by less than one pixel of the crop.
    assert found[~inside].max() < 0.2
    assert found.sum() == pytest.approx(8 * 16, rel=0.04)


def test_targets_of_different_instances_do_not_mix() -> None:
    crops = torch.stack([torch.full((16, 16), level, dtype=torch.uint8) for level in (0, 51, 102, 255)])
    boxes = torch.tensor([[0.0, 0, 9, 9], [5.0, 5, 50, 20], [1.0, 2, 3, 4], [100.0, 100, 300, 110]])
    found = sample_mask_targets(crops, boxes=boxes, rois=boxes, size=28)
    for target, level in zip(found, (0.0, 0.2, 0.4, 1.0), strict=True):
        torch.testing.assert_close(target, torch.full((28, 28), level))
    empty = sample_mask_targets(crops[:0], boxes=boxes[:0], rois=boxes[:0], size=28)
    assert empty.shape == (0, 28, 28)


@st.composite
def stars(draw: st.DrawFn) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """A star-shaped polygon of 16 to 300 pixels, and shifts and scales of a RoI."""
    count = draw(st.integers(5, 14))
    radii = np.array(draw(st.lists(st.floats(0.5, 1), min_size=count, max_size=count)))
    turn = draw(st.floats(0, 1))
    angles = (np.arange(count) + turn) * 2 * np.pi / count
    points = np.stack((np.cos(angles), np.sin(angles)), axis=1) * radii[:, None]
    points = (points - points.min(axis=0)) / np.ptp(points, axis=0)
    # Hypothesis would draw mostly extreme sizes, which a mean over examples is not meant for.
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sides = generator.uniform(16, 300, size=2)
    corner = generator.uniform(0, 340 - sides)
    jitter = tuple(draw(st.floats(-0.2, 0.2)) for _ in range(4))
    return points * sides + corner, jitter


def test_targets_from_crops_agree_with_targets_from_dense_masks(
    record_property: Callable[[str, object], None],
) -> None:
    ious = []

    @settings(deadline=None, derandomize=True, max_examples=200)
    @given(star=stars())
    def compare(star: tuple[np.ndarray, tuple[float, float, float, float]]) -> None:
        points, jitter = star
        outline = Outline((points,))
        box = outline.box
        crop = torch.from_numpy(outline.crop(box.astype(np.float64), 112))
        full = torch.from_numpy(coco_mask.decode(outline.rle((340, 340))))
        roi = torch.from_numpy(box + np.tile(box[2:] - box[:2], 2) * np.array(jitter)).float()[None]
        found = sample_mask_targets(crop[None], boxes=torch.from_numpy(box)[None], rois=roi, size=28)
        rois = torch.cat((torch.zeros(1, 1), roi), dim=1)
        expected = roi_align(full[None, None].float(), rois, 28, aligned=True)[:, 0] >= 0.5
        found = found >= 0.5
        ious.append(((found & expected).sum() / (found | expected).sum()).item())
        assert ious[-1] > 0.85

    compare()
    record_property("mean_iou", float(np.mean(ious)))
    assert len(ious) >= 200
    assert np.mean(ious) >= 0.98

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops import roi_align as torchvision_roi_align
from torchvision.ops.poolers import initLevelMapper

from maskrcnn.models.roi_align import RoIAlign, to_rois

STRIDES = (4, 8, 16, 32, 64)
SIZE = (256, 384)


def make_features(batch: int = 2, channels: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, channels, SIZE[0] // stride, SIZE[1] // stride, generator=generator) for stride in STRIDES
    ]


def random_boxes(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    limit = torch.tensor([SIZE[1], SIZE[0]])
    side = torch.rand(count, 2, generator=generator) ** 2 * limit + 1
    corner = (limit - side).clamp(min=0) * torch.rand(count, 2, generator=generator)
    return torch.cat((corner, corner + side), dim=1)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_pooling_equals_torchvision(sampling_ratio: int) -> None:
    features, boxes = make_features(), [random_boxes(40, 1), random_boxes(30, 2)]
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=7, sampling_ratio=sampling_ratio)
    expected = theirs(OrderedDict((str(i), f) for i, f in enumerate(features)), boxes, [SIZE, SIZE])
    align = RoIAlign(sampling_ratio=sampling_ratio)
    levels = align.levels(torch.cat(boxes), STRIDES[:4])
    assert levels.unique().tolist() == [0, 1, 2]
    found = align(features, boxes, strides=STRIDES, output_size=7)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


# Square boxes of these sides, by FPN eq. 1: 4 + log2(side / 224), P2 being level 0.
@pytest.mark.parametrize(
    ("side", "level"),
    [(1, 0), (55, 0), (56, 0), (111.9, 0), (112, 1), (223.9, 1), (224, 2), (447, 2), (448, 3), (9000, 3)],
)
def test_levels_by_hand_and_as_torchvision(side: float, level: int) -> None:
    boxes = torch.tensor([[10.0, 20, 10 + side, 20 + side], [0.0, 0, side * 2, side / 2]])
    assert RoIAlign().levels(boxes, STRIDES[:4]).tolist() == [level, level]
    assert initLevelMapper(k_min=2, k_max=5)([boxes]).tolist() == [level, level]


def test_canonical_size_and_number_of_levels_move_the_choice() -> None:
    boxes = torch.tensor([[0.0, 0, 100, 100]])
    assert RoIAlign(canonical_size=100).levels(boxes, STRIDES[:4]).tolist() == [2]
    assert RoIAlign(canonical_size=100, canonical_level=5).levels(boxes, STRIDES[:4]).tolist() == [3]
    features = [torch.full((1, 1, f.shape[2], f.shape[3]), float(i)) for i, f in enumerate(make_features(1))]
    large = [torch.tensor([[0.0, 0, 256, 256]])]
    for num_levels, expected in ((1, 0), (2, 1), (4, 2)):
        found = RoIAlign(num_levels=num_levels)(features, large, strides=STRIDES, output_size=2)
        assert found[:, :, :1, :1].flatten().tolist() == [expected]


@pytest.mark.parametrize(("aligned", "shift"), [(True, 0.5), (False, 0.0)])
def test_aligned_pooling_reads_a_ramp_where_the_box_lies(aligned: bool, shift: float) -> None:
    # Cell i of the ramp holds i, so a position of x pixels reads x / 4 cells, less half a cell if aligned.
    ramp = torch.arange(96.0).expand(1, 1, 64, 96)
    features = [ramp, *make_features(1, 1)[1:]]
    box = torch.tensor([[40.0, 60, 96, 100]])
    found = RoIAlign(aligned=aligned)(features, [box], strides=STRIDES, output_size=7)
    centres = 40 + (torch.arange(7) + 0.5) * 56 / 7
    torch.testing.assert_close(found[0, 0], (centres / 4 - shift).expand(7, 7))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [1, 2, 3])
def test_gathering_pools_the_same_and_sends_back_the_same(aligned: bool, sampling_ratio: int) -> None:
    beyond = torch.tensor([[-30.0, -20, 500, 400], [383, 255, 384, 256], [5, 5, 5, 5], [500, 300, 600, 400]])
    boxes = [torch.cat((random_boxes(40, 1), beyond)), random_boxes(30, 2)]
    results = []
    for gather in (False, True):
        features = [f.requires_grad_() for f in make_features()]
        align = RoIAlign(aligned=aligned, sampling_ratio=sampling_ratio, gather=gather)
        found = align(features, boxes, strides=STRIDES, output_size=7)
        (found * torch.linspace(-1, 1, found.numel()).view_as(found)).sum().backward()
        results.append((found.detach(), [f.grad for f in features[:4]]))
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("aligned", "sampling_ratio"), [(False, 2), (True, 2), (False, 0), (True, 0)])
def test_pooling_as_on_an_accelerator_is_exact(
    as_on_accelerator: Callable[[], None], aligned: bool, sampling_ratio: int
) -> None:
    """Where each level pools all boxes, most of them beyond the picture."""
    boxes, results = [random_boxes(40, 1), random_boxes(30, 2)], []
    for _ in range(2):
        features = [f.requires_grad_() for f in make_features()]
        align = RoIAlign(aligned=aligned, sampling_ratio=sampling_ratio)
        found = align(features, boxes, strides=STRIDES, output_size=7)
        (found * torch.linspace(-1, 1, found.numel()).view_as(found)).sum().backward()
        results.append((found.detach(), [f.grad for f in features[:4]]))
        as_on_accelerator()
    (found, gradients), (again, gradients_again) = results
    assert torch.equal(found, again)
    torch.testing.assert_close(gradients, gradients_again)
    assert all(gradient is not None for gradient in gradients)


def test_boxes_may_carry_the_number_of_their_picture() -> None:
    features, boxes = make_features(), [random_boxes(4, 1), random_boxes(3, 2)]
    rois = to_rois(boxes)
    assert rois[:, 0].tolist() == [0] * 4 + [1] * 3
    order = torch.tensor([6, 0, 5, 1, 4, 2, 3])
    found = RoIAlign()(features, rois[order], strides=STRIDES, output_size=7)
    assert torch.equal(found, RoIAlign()(features, boxes, strides=STRIDES, output_size=7)[order])


def test_rows_keep_the_order_of_the_boxes() -> None:
    features = [torch.zeros(2, 1, f.shape[2], f.shape[3]) for f in make_features()]
    for level, feature in enumerate(features):
        for image in range(2):
            feature[image] = 10 * image + level
    sides = [[230.0, 20, 120, 30], [40.0, 250]]
    boxes = [torch.tensor([[0.0, 0, side, side] for side in row]) for row in sides]
    found = RoIAlign()(features, boxes, strides=STRIDES, output_size=1)
    assert found.flatten().tolist() == [2, 0, 1, 0, 10, 12]


@pytest.mark.parametrize("gather", [False, True])
def test_half_precision_features_are_pooled_in_float32(gather: bool) -> None:
    features = [f.bfloat16() for f in make_features()]
    boxes = [random_boxes(10, 1) + 0.3, random_boxes(5, 2)]
    found = RoIAlign(gather=gather)(features, boxes, strides=STRIDES, output_size=7)
    assert found.dtype == torch.float32
    expected = RoIAlign(gather=gather)([f.float() for f in features], boxes, strides=STRIDES, output_size=7)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("gather", [False, True])
def test_levels_without_boxes_stay_in_the_graph(gather: bool) -> None:
    features = [f.requires_grad_() for f in make_features()]
    found = RoIAlign(gather=gather)(features, [torch.zeros(0, 4)] * 2, strides=STRIDES, output_size=7)
    assert found.shape == (0, 3, 7, 7)
    found.sum().backward()
    for feature in features[:4]:
        assert feature.grad is not None
        assert feature.grad.eq(0).all()


def test_gradient_reaches_only_the_level_of_the_box() -> None:
    features = [f.requires_grad_() for f in make_features(1)]
    box = torch.tensor([[16.0, 16, 136, 136]])  # level 1
    RoIAlign()(features, [box], strides=STRIDES, output_size=7).sum().backward()
    sums = [f.grad.sum().item() for f in features[:4] if f.grad is not None]
    assert sums == pytest.approx([0, 7 * 7 * 3, 0, 0], rel=1e-4)
    direct = features[1].detach().clone().requires_grad_()
    rois = torch.cat((torch.zeros(1, 1), box), dim=1)
    torchvision_roi_align(direct, rois, 7, 1 / 8, 2).sum().backward()
    torch.testing.assert_close(features[1].grad, direct.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "value"), [("num_levels", 0), ("canonical_size", 0), ("canonical_size", -1)])
def test_invalid_arguments_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        RoIAlign(**{name: value})

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from maskrcnn.models.matching import BalancedSampler, Matcher
from maskrcnn.models.roi_align import RoIAlign
from maskrcnn.models.roi_heads import BoxHead, MaskHead, RoIHeads, RoISettings, RoIStage, _instances
from maskrcnn.ops.boxes import decode_boxes, encode_boxes
from maskrcnn.ops.image_batch import ImageBatch

STRIDES = (4, 8, 16, 32, 64)
CHANNELS = 4
PADDED = (64, 96)
SIZES = [(64, 96), (50, 70)]
BATCH = ImageBatch(torch.zeros(2, 3, *PADDED), SIZES)
CODER_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def make_features() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, CHANNELS, -(-PADDED[0] // s), -(-PADDED[1] // s), generator=generator) for s in STRIDES]


def make_heads(
    *,
    num_classes: int = 3,
    batch_size_per_image: int = 8,
    class_agnostic: bool = False,
    box_loss: str = "smooth_l1",
    box_loss_normalizer: str = "sampled",
    stages: Sequence[RoIStage] = (RoIStage(matcher=Matcher()),),
    box_head: Mapping[str, Any] | None = None,
    **settings: Any,
) -> RoIHeads:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "score_thresh": 0.05,
        "nms_thresh": 0.5,
        "detections_per_image": 100,
        "min_box_size": 1e-2,
    }
    return RoIHeads(
        in_channels=CHANNELS,
        strides=STRIDES,
        num_classes=num_classes,
        roi=RoISettings(
            stages=stages,
            sampler=BalancedSampler(batch_size_per_image=batch_size_per_image, positive_fraction=0.25),
        ),
        roi_align=RoIAlign(),
        box_head=partial(
            BoxHead,
            hidden_dim=16,
            class_agnostic=class_agnostic,
            box_loss=box_loss,
            box_loss_normalizer=box_loss_normalizer,
            **box_head or {},
        ),
        mask_head=partial(MaskHead, num_convs=1, channels=8),
        **defaults | settings,
    )


def make_target(
    boxes: Tensor, labels: list[int], masks: Tensor, *, has_mask: list[bool] | None = None
) -> dict[str, Tensor]:
    return {
        "boxes": boxes,
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": masks.to(torch.uint8),
        "has_mask": torch.tensor([True] * len(labels) if has_mask is None else has_mask, dtype=torch.bool),
    }


class FixedHead(nn.Module):
    """A box head that predicts what it was given."""

    resolution = 7

    def __init__(self, probs: Tensor, deltas: Tensor) -> None:
        super().__init__()
        self.predictions = probs.log(), deltas

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert len(x) == len(self.predictions[0])
        return self.predictions


def detect(heads: RoIHeads, proposals: list[Tensor], probs: Tensor, deltas: Tensor) -> list[dict[str, Tensor]]:
    heads.box_heads[0] = FixedHead(probs, deltas)
    return heads.detect(make_features(), proposals, BATCH)


def test_box_head_computes_what_torchvision_does() -> None:
    torch.manual_seed(0)
    theirs = nn.Sequential(TwoMLPHead(CHANNELS * 49, 16), FastRCNNPredictor(16, 4))
    ours = BoxHead(in_channels=CHANNELS, num_classes=3, hidden_dim=16)
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    pooled = torch.randn(5, CHANNELS, 7, 7)
    for found, expected in zip(ours(pooled), theirs(pooled), strict=True):
        torch.testing.assert_close(found, expected)


def test_mask_head_computes_what_torchvision_does() -> None:
    torch.manual_seed(0)
    theirs = nn.Sequential(MaskRCNNHeads(CHANNELS, (8, 8), 1), MaskRCNNPredictor(8, 8, 4))
    ours = MaskHead(in_channels=CHANNELS, num_classes=3, num_convs=2, channels=8)
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    pooled = torch.randn(5, CHANNELS, 14, 14)
    found = ours(pooled)
    assert found.shape == (5, 4, 28, 28)
    torch.testing.assert_close(found, theirs(pooled))


def test_heads_start_with_biases_of_zero_in_the_mask_branch() -> None:
    head = MaskHead(in_channels=CHANNELS, num_classes=3)
    for layer in (*head.convs, head.upsample, head.logits):
        assert layer.bias.count_nonzero() == 0
    fan_out = 256 * 9
    assert head.convs[1].weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.02)


def test_predictions_leave_half_precision_as_float32() -> None:
    head = BoxHead(in_channels=CHANNELS, num_classes=3, hidden_dim=16).bfloat16()
    scores, deltas = head(torch.randn(2, CHANNELS, 7, 7).bfloat16())
    assert (scores.dtype, deltas.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize(("class_agnostic", "normalizer", "count"), [(False, "sampled", 8), (True, "positive", 2)])
def test_losses_of_a_network_that_predicts_nothing(class_agnostic: bool, normalizer: str, count: int) -> None:
    heads = make_heads(class_agnostic=class_agnostic, batch_size_per_image=1000, box_loss_normalizer=normalizer)
    head = heads.box_heads[0]
    with torch.no_grad():
        for layer in (head.scores, head.deltas, heads.mask_head.logits):
            layer.weight.zero_()
            layer.bias.zero_()
    boxes = torch.tensor([[10.0, 10, 50, 40]])
    close = torch.tensor([[12.0, 10, 50, 44]])  # IoU 0.84
    far = torch.tensor([[0.0, 0, 20, 20], [60.0, 30, 90, 60], [40.0, 30, 90, 60]])
    targets = [
        make_target(boxes, [2], torch.full((1, 28, 28), 255)),
        make_target(boxes[:0], [], torch.zeros(0, 28, 28)),
    ]
    losses = heads.losses(make_features(), [torch.cat((far, close)), far], targets, SIZES)
    # RoIs: 3 far, 1 close and the box itself, then 3 of the empty picture.
    assert losses["loss_classifier"].item() == pytest.approx(math.log(4))
    assert losses["loss_mask"].item() == pytest.approx(math.log(2))
    target = encode_boxes(boxes, close, CODER_WEIGHTS)
    expected = F.smooth_l1_loss(torch.zeros_like(target), target, beta=1 / 9, reduction="sum") / count
    assert expected > 0.1
    assert losses["loss_box_reg"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_losses_of_a_network_that_knows_the_class() -> None:
    heads = make_heads(batch_size_per_image=1000)
    head = heads.box_heads[0]
    with torch.no_grad():
        for layer in (head.scores, head.deltas, heads.mask_head.logits):
            layer.weight.zero_()
            layer.bias.zero_()
        head.scores.bias[2] = 3.0
        head.deltas.bias.view(4, 4)[2] = torch.tensor([1.0, 0, 0, 0])
        head.deltas.bias.view(4, 4)[[0, 1, 3]] = 100.0
        heads.mask_head.logits.bias.copy_(torch.tensor([100.0, 100.0, -2.0, 100.0]))
    boxes = torch.tensor([[10.0, 10, 50, 40]])
    target = make_target(boxes, [2], torch.full((1, 28, 28), 255))
    features = [feature[:1] for feature in make_features()]
    losses = heads.losses(features, [torch.tensor([[60.0, 30, 90, 60]])], [target], SIZES)
    # One background RoI and the box itself, whose delta of 0 was predicted as 1.
    total = math.log(3 + math.exp(3))
    assert losses["loss_classifier"].item() == pytest.approx((total + total - 3) / 2, rel=1e-5)
    assert losses["loss_box_reg"].item() == pytest.approx((1 - 1 / 18) / 2, rel=1e-5)
    assert losses["loss_mask"].item() == pytest.approx(math.log1p(math.exp(2)), rel=1e-5)


def test_mask_loss_sees_the_mask_of_the_matched_instance() -> None:
    heads = make_heads(num_classes=1, batch_size_per_image=1000)
    with torch.no_grad():
        heads.mask_head.logits.weight.zero_()
        heads.mask_head.logits.bias.fill_(4.0)  # every pixel is foreground
    boxes = torch.tensor([[0.0, 0, 40, 40], [50.0, 10, 90, 60]])
    masks = torch.stack((torch.full((28, 28), 255), torch.zeros(28, 28)))
    right, wrong = math.log1p(math.exp(-4)), math.log1p(math.exp(4))
    features = [feature[:1] for feature in make_features()]
    for order, expected in (([0, 1], (right * 3 + wrong) / 4), ([1, 0], (right + wrong * 3) / 4)):
        target = make_target(boxes, [1, 1], masks[order])
        # Three RoIs on the first box, one on the second.
        proposals = boxes[:1].expand(2, 4)
        loss = heads.losses(features, [proposals], [target], SIZES)["loss_mask"]
        assert loss.item() == pytest.approx(expected, rel=1e-4)


BOXES = torch.tensor([[10.0, 10, 50, 40], [60.0, 10, 90, 50], [5.0, 42, 40, 62]])
FAR = torch.tensor([[50.0, 50, 60, 60], [70.0, 52, 90, 63]])


def half_masked_losses(heads: RoIHeads, *, unknown: Tensor, has_mask: list[bool]) -> dict[str, Tensor]:
    """Of three instances in each of two pictures; `unknown` [28, 28] is the mask where none is known."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 2, (3, 28, 28), generator=generator) * 255
    masks[~torch.tensor(has_mask)] = unknown.long()
    known = make_target(BOXES, [1, 2, 3], masks, has_mask=has_mask)
    none = make_target(BOXES[:1], [3], unknown[None], has_mask=[False])
    torch.manual_seed(0)  # the sampler shuffles
    return heads.losses(make_features(), [torch.cat((FAR, BOXES + 1)), FAR], [known, none], SIZES)


def test_where_no_mask_is_known_it_may_be_anything() -> None:
    heads = make_heads(batch_size_per_image=1000)
    unknowns = [torch.zeros(28, 28), torch.full((28, 28), 255), torch.eye(28) * 255]
    seen = [half_masked_losses(heads, unknown=unknown, has_mask=[True, False, True]) for unknown in unknowns]
    assert seen[0]["loss_mask"] > 0.1
    for losses in seen[1:]:
        assert {name: loss.item() for name, loss in losses.items()} == {n: loss.item() for n, loss in seen[0].items()}
    known = [half_masked_losses(heads, unknown=unknown, has_mask=[True, True, True]) for unknown in unknowns]
    for name in ("loss_classifier", "loss_box_reg"):  # an instance without a mask teaches its box
        assert known[0][name].item() == seen[0][name].item()
    assert known[0]["loss_mask"].item() != seen[0]["loss_mask"].item()


def test_the_mask_loss_is_the_mean_over_known_masks_alone() -> None:
    heads = make_heads(batch_size_per_image=1000)
    with torch.no_grad():
        heads.mask_head.logits.weight.zero_()
        heads.mask_head.logits.bias.copy_(torch.tensor([50.0, 1.0, 2.0, 3.0]))
    full = torch.full((3, 28, 28), 255)
    features = [feature[:1] for feature in make_features()]
    for has_mask in ([True, True, True], [True, False, False], [False, True, True], [False, False, True]):
        losses = heads.losses(features, [FAR], [make_target(BOXES, [1, 2, 3], full, has_mask=has_mask)], SIZES)
        expected = [math.log1p(math.exp(-label)) for label, known in zip((1, 2, 3), has_mask, strict=True) if known]
        assert losses["loss_mask"].item() == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_without_any_known_mask_the_mask_head_stays_in_the_graph() -> None:
    heads = make_heads(batch_size_per_image=1000)
    losses = half_masked_losses(heads, unknown=torch.full((28, 28), 255), has_mask=[False] * 3)
    assert losses["loss_mask"].item() == 0
    assert losses["loss_box_reg"] > 0
    torch.stack(list(losses.values())).sum().backward()
    for parameter in heads.mask_head.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert not parameter.grad.any()
    for parameter in heads.box_heads.parameters():
        assert parameter.grad is not None
        assert parameter.grad.any()


def test_sampled_rois_are_labelled_by_their_box_positives_first() -> None:
    heads = make_heads(batch_size_per_image=8)
    boxes = torch.tensor([[0.0, 0, 20, 20], [40.0, 0, 80, 40]])
    target = {"boxes": boxes, "labels": torch.tensor([3, 1])}
    empty = {"boxes": boxes[:0], "labels": torch.zeros(0).long()}
    background = torch.tensor([[0.0, 40, 20, 60]]) + torch.arange(20)[:, None]
    rois, labels, matches = heads._sample([background, background], _instances([target, empty]), Matcher())
    assert rois.shape == (2, 8, 4)
    # Nothing but the two boxes themselves is positive, and they fill the quarter.
    assert sorted(matches[0][:2].tolist()) == [1, 2]
    assert torch.equal(rois[0][:2], boxes[matches[0][:2] - 1])
    assert torch.equal(labels[0][:2], target["labels"][matches[0][:2] - 1])
    assert labels[0][2:].tolist() == matches[0][2:].tolist() == [0] * 6
    assert labels[1].tolist() == matches[1].tolist() == [0] * 8


def test_detections_are_thresholded_suppressed_per_class_and_sorted() -> None:
    near = [[10.0, 10, 30, 30], [11.0, 10, 31, 30], [10.0, 11, 30, 31]]
    proposals = [torch.tensor([*near, [50.0, 20, 80, 50]]), torch.tensor([[5.0, 5, 25, 25]])]
    probs = torch.tensor(
        [
            [0.10, 0.60, 0.26, 0.04],
            [0.10, 0.70, 0.16, 0.04],  # suppresses the class 1 of the first
            [0.53, 0.03, 0.40, 0.04],  # suppresses the class 2 of the first two
            [0.37, 0.55, 0.04, 0.04],
            [0.94, 0.02, 0.02, 0.02],  # below the threshold
        ]
    )
    first, second = detect(make_heads(), proposals, probs, torch.zeros(5, 16))
    torch.testing.assert_close(first["scores"], torch.tensor([0.70, 0.55, 0.40]))
    assert first["labels"].tolist() == [1, 1, 2]
    torch.testing.assert_close(first["boxes"], proposals[0][[1, 3, 2]])
    assert first["mask_probs"].shape == (3, 28, 28)
    assert [len(second[key]) for key in ("boxes", "scores", "labels", "mask_probs")] == [0, 0, 0, 0]


def test_only_the_best_detections_are_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    proposals = [torch.rand(30, 4, generator=generator).cumsum(dim=1) * 20 for _ in range(2)]
    probs = torch.rand(60, 4, generator=generator).softmax(dim=1)
    everything = detect(make_heads(), proposals, probs, torch.zeros(60, 16))
    best = detect(make_heads(detections_per_image=7), proposals, probs, torch.zeros(60, 16))
    for few, many in zip(best, everything, strict=True):
        assert len(many["scores"]) > 7
        assert torch.equal(few["scores"], many["scores"][:7])
        assert torch.equal(few["boxes"], many["boxes"][:7])


def test_each_class_has_its_own_box_unless_class_agnostic() -> None:
    proposals = [torch.tensor([[20.0, 20, 40, 40]]), torch.zeros(0, 4)]
    probs = torch.tensor([[0.1, 0.3, 0.2, 0.4]])
    deltas = torch.arange(16.0).view(1, 4, 4) / 10
    own = detect(make_heads(), proposals, probs, deltas.flatten(1))[0]
    assert own["labels"].tolist() == [3, 1, 2]
    expected = decode_boxes(deltas, proposals[0], CODER_WEIGHTS)[0, [3, 1, 2]]
    torch.testing.assert_close(own["boxes"], expected)
    assert len(expected.unique(dim=0)) == 3
    shared = detect(make_heads(class_agnostic=True), proposals, probs, deltas[:, 1])[0]
    assert shared["labels"].tolist() == [3, 1, 2]
    torch.testing.assert_close(shared["boxes"], expected[1].expand(3, 4))


def test_boxes_are_cut_to_their_picture_and_dropped_where_nothing_is_left() -> None:
    proposals = [torch.zeros(0, 4), torch.tensor([[60.0, 40, 90, 64], [80.0, 10, 95, 20]])]
    probs = torch.tensor([[0.1, 0.9, 0.0, 0.0], [0.1, 0.9, 0.0, 0.0]])
    _, found = detect(make_heads(), proposals, probs, torch.zeros(2, 16))
    assert found["boxes"].tolist() == [[60, 40, 70, 50]]


def test_boxes_without_an_area_may_count_among_the_best() -> None:
    """As in detectron2, which drops them in the end, where torchvision's rule drops short sides first."""
    outside = [[100.0, 10, 120, 30], [100.0, 35, 120, 60]]  # of which nothing is left in a picture of 96 pixels
    proposals = [torch.tensor([*outside, [10.0, 10, 30, 30], [50.0, 20, 50.005, 50]]), torch.zeros(0, 4)]
    probs = torch.tensor([[0.1, 0.9, 0.0, 0.0], [0.2, 0.8, 0.0, 0.0], [0.3, 0.7, 0.0, 0.0], [0.4, 0.6, 0.0, 0.0]])

    def scores(min_box_size: float, limit: int) -> list[float]:
        heads = make_heads(min_box_size=min_box_size, detections_per_image=limit)
        found: list[float] = detect(heads, proposals, probs, torch.zeros(4, 16))[0]["scores"].tolist()
        return found

    assert [scores(1e-2, limit) for limit in (1, 2)] == [pytest.approx([0.7])] * 2
    assert [scores(0.0, limit) for limit in (2, 3, 4)] == [
        [],
        pytest.approx([0.7]),
        pytest.approx([0.7, 0.6]),
    ]


def test_each_detection_carries_the_mask_of_its_class() -> None:
    heads = make_heads()
    with torch.no_grad():
        heads.mask_head.logits.weight.zero_()
        heads.mask_head.logits.bias.copy_(torch.tensor([9.0, -1.0, 0.0, 2.0]))
    proposals = [torch.tensor([[20.0, 20, 40, 40]]), torch.tensor([[5.0, 5, 25, 25]])]
    probs = torch.tensor([[0.1, 0.3, 0.2, 0.4], [0.1, 0.8, 0.1, 0.0]])
    first, second = detect(heads, proposals, probs, torch.zeros(2, 16))
    for detection, logits in ((first, [2.0, -1.0, 0.0]), (second, [-1.0, 0.0])):
        expected = torch.tensor(logits).sigmoid()[:, None, None].expand(-1, 28, 28)
        torch.testing.assert_close(detection["mask_probs"], expected)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: BoxHead(in_channels=4, num_classes=3, box_loss="l2"), "box_loss"),
        (lambda: MaskHead(in_channels=4, num_classes=3, paste="opencv"), "paste"),
        (lambda: RoIStage(matcher=Matcher(), coder_weights=(1.0, 1.0)), "coder_weights"),
        (lambda: RoIStage(matcher=Matcher(), coder_weights=(1.0, 1.0, -1.0, 1.0)), "coder_weights"),
    ],
)
def test_invalid_arguments_are_named(make: Callable[[], Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make()


def test_no_stage_is_refused() -> None:
    with pytest.raises(ValueError, match=r"roi\.stages must hold at least one stage"):
        make_heads(stages=[])

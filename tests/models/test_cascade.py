"""RoI heads of several stages."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn.errors import UserError
from maskrcnn.models.matching import Matcher
from maskrcnn.models.roi_heads import RoIHeads, RoIStage
from maskrcnn.ops.boxes import decode_boxes, encode_boxes
from tests.models.test_roi_heads import BATCH, SIZES, make_features, make_heads, make_target

Factory = Callable[..., Any]

WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
THRESHOLDS = (0.5, 0.6, 0.7)
STAGES = [
    RoIStage(matcher=Matcher(high_threshold=t, low_threshold=t), coder_weights=w)
    for t, w in zip(THRESHOLDS, WEIGHTS, strict=True)
]


class Stub(nn.Module):
    """A class-agnostic box head that says the same of every RoI."""

    resolution = 7
    box_loss = "smooth_l1"
    box_loss_normalizer = "sampled"
    smooth_l1_beta = 1 / 9

    def __init__(self, scores: list[float], deltas: list[float]) -> None:
        super().__init__()
        self.scores, self.deltas = (nn.Parameter(torch.tensor(values)) for values in (scores, deltas))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.scores.expand(len(x), -1), self.deltas.expand(len(x), -1)


def stub_cascade(scores: list[list[float]], deltas: list[list[float]], **settings: Any) -> tuple[RoIHeads, list[Any]]:
    """A cascade of stubs, and what it pools: (resolution, boxes of each picture) of each call."""
    heads = make_heads(stages=STAGES, class_agnostic=True, **settings)
    heads.box_heads = nn.ModuleList(Stub(s, d) for s, d in zip(scores, deltas, strict=True))
    pooled = []
    pool = heads.roi_align

    def recording(features: Any, boxes: list[Tensor] | Tensor, **arguments: Any) -> Tensor:
        apart = boxes
        if isinstance(boxes, Tensor):
            apart = [boxes[boxes[:, 0] == image, 1:] for image in range(len(features[0]))]
        pooled.append((arguments["output_size"], apart))
        return pool(features, boxes, **arguments)

    heads.roi_align = recording  # type: ignore[assignment]
    return heads, pooled


TRUTH = torch.tensor([[0.0, 0, 40, 40]])
NONE = [0.0, 0.0, 0.0, 0.0]
# IoU with the truth: 0.65, 0.55 and 0.
PROPOSALS = torch.tensor([[0.0, 0, 40, 26], [0.0, 0, 40, 22], [50.0, 40, 90, 60]])


def one_image(boxes: Tensor = TRUTH) -> dict[str, Any]:
    return {
        "features": [feature[:1] for feature in make_features()],
        "proposals": [PROPOSALS],
        "targets": [make_target(boxes, [2] * len(boxes), torch.full((len(boxes), 28, 28), 255))],
        "sizes": SIZES[:1],
    }


def test_each_stage_labels_by_its_own_threshold_and_losses_are_summed() -> None:
    t = 1.5
    heads, pooled = stub_cascade([[0.0, 0.0, t, 0.0]] * 3, [NONE] * 3, batch_size_per_image=1000)
    losses = heads.losses(**one_image())
    # Positive of the three proposals and the truth itself: 0.65, 0.55, 1; 0.65, 1; 1.
    positives = (3, 2, 1)
    total = math.log(3 + math.exp(t))
    assert losses["loss_classifier"].item() == pytest.approx(sum(total - t * n / 4 for n in positives), rel=1e-5)
    expected = 0.0
    candidates = torch.cat((PROPOSALS[:2], TRUTH))
    for weights, seen in zip(WEIGHTS, ([0, 1, 2], [0, 2], [2]), strict=True):
        target = encode_boxes(TRUTH.expand(len(seen), 4), candidates[seen], weights)
        expected += F.smooth_l1_loss(torch.zeros_like(target), target, beta=1 / 9, reduction="sum").item() / 4
    assert expected > 0.1
    assert losses["loss_box_reg"].item() == pytest.approx(expected, rel=1e-5)
    # The truth joins in the first stage alone: four RoIs throughout, and the mask head sees the first positives.
    assert [(size, len(boxes[0])) for size, boxes in pooled] == [(7, 4), (7, 4), (7, 4), (14, 3)]
    assert sorted(pooled[3][1][0].tolist()) == sorted(candidates.tolist())


def test_a_stage_takes_the_refined_boxes_cut_to_the_picture_without_gradient() -> None:
    # By half a width to the right, then a tenth of the height up, and in the last anywhere.
    deltas = [[5.0, 0.0, 0.0, 0.0], [0.0, -2.0, 0.0, 0.0], [3.0, 3.0, 3.0, 3.0]]
    heads, pooled = stub_cascade([NONE] * 3, deltas, batch_size_per_image=1000)
    losses = heads.losses(**one_image())
    first, second, third = ({tuple(box) for box in boxes[0].tolist()} for _, boxes in pooled[:3])
    assert first == {tuple(box) for box in torch.cat((PROPOSALS, TRUTH)).tolist()}
    expected = {(20, 0, 60, 26), (20, 0, 60, 22), (20, 0, 60, 40), (70, 40, 96, 60)}  # the picture is 96 wide
    assert second == expected
    moved = {(x1, max(y1 - (y2 - y1) / 10, 0), x2, y2 - (y2 - y1) / 10) for x1, y1, x2, y2 in expected}
    torch.testing.assert_close(torch.tensor(sorted(third)), torch.tensor(sorted(moved)))
    assert not any(boxes[0].requires_grad for _, boxes in pooled)
    # No RoI of the second and third stage is a positive: nothing to learn about boxes there.
    losses["loss_box_reg"].backward()
    assert [bool(head.deltas.grad.any()) for head in heads.box_heads] == [True, False, False]


def test_boxes_that_leave_the_picture_leave_training() -> None:
    heads, pooled = stub_cascade([NONE] * 3, [[100.0, 0.0, 0.0, 0.0], NONE, NONE], batch_size_per_image=1000)
    losses = heads.losses(**one_image())
    assert [len(boxes[0]) for _, boxes in pooled] == [4, 0, 0, 3]
    # -log(1 / 4) in the first stage, nothing in the others.
    assert losses["loss_classifier"].item() == pytest.approx(math.log(4))
    sum(losses.values()).backward()
    for head in heads.box_heads:
        assert head.scores.grad.isfinite().all()
        assert head.deltas.grad.isfinite().all()


def test_scores_are_averaged_and_boxes_are_the_last_ones() -> None:
    probs = torch.tensor([[0.1, 0.5, 0.4, 0.0], [0.2, 0.3, 0.5, 0.0], [0.3, 0.1, 0.6, 0.0]])
    deltas = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.5, 0.0], [-1.0, 0.0, 0.0, -0.5]]
    heads, pooled = stub_cascade((probs + 1e-30).log().tolist(), deltas)
    proposals = [torch.tensor([[20.0, 20, 40, 40]]), torch.tensor([[5.0, 5, 25, 30], [50.0, 30, 70, 50]])]
    found = heads.detect(make_features(), proposals, BATCH)
    for detection, boxes, (height, width) in zip(found, proposals, SIZES, strict=True):
        for delta, weights in zip(deltas, WEIGHTS, strict=True):
            boxes = decode_boxes(torch.tensor([delta]).expand(len(boxes), 4), boxes, weights)
            boxes = torch.minimum(boxes, torch.tensor([width, height, width, height]))
        count = len(boxes)
        assert detection["labels"].tolist() == [2] * count + [1] * count
        torch.testing.assert_close(detection["scores"], torch.tensor([0.5] * count + [0.3] * count))
        torch.testing.assert_close(detection["boxes"].unique(dim=0), boxes.unique(dim=0))
        assert detection["mask_probs"].shape == (2 * count, 28, 28)
    assert [size for size, _ in pooled] == [7, 7, 7, 14]
    for boxes, detection in zip(pooled[3][1], found, strict=True):
        assert boxes is detection["boxes"]  # masks are those of the final boxes


def test_features_get_the_mean_gradient_of_the_stages() -> None:
    """Three equal stages that move nothing: three times the loss, but the gradient of one."""
    found = []
    for count in (1, 3):
        heads = make_heads(stages=[RoIStage(matcher=Matcher())] * count, class_agnostic=True, batch_size_per_image=1000)
        with torch.no_grad():
            for head in heads.box_heads:
                head.load_state_dict(heads.box_heads[0].state_dict())
                head.deltas.weight.zero_()
                head.deltas.bias.zero_()
        image = one_image()
        features = [feature.requires_grad_() for feature in image["features"]]
        losses = heads.losses(**image)
        (losses["loss_classifier"] + losses["loss_box_reg"]).backward()
        weight = heads.box_heads[0].fc1.weight.grad
        found.append((losses, [feature.grad for feature in features], weight))
    (one, one_features, one_weight), (three, three_features, three_weight) = found
    for name in ("loss_classifier", "loss_box_reg"):
        torch.testing.assert_close(three[name], 3 * one[name])
    assert any(gradient.any() for gradient in one_features)
    torch.testing.assert_close(three_features, one_features)
    torch.testing.assert_close(three_weight, one_weight)


def test_boxes_per_class_are_refused(make_tiny_model: Factory) -> None:
    with pytest.raises(UserError, match=r"model: box_head\.class_agnostic must be true where roi has 3 stages"):
        make_tiny_model("model/roi=cascade", "model.box_head.class_agnostic=false")


def test_the_preset_is_that_of_the_paper(make_tiny_model: Factory) -> None:
    heads = make_tiny_model("model/roi=cascade").roi_heads
    assert [stage.coder_weights for stage in heads.stages] == list(WEIGHTS)
    for stage, threshold in zip(heads.stages, THRESHOLDS, strict=True):
        assert stage.matcher.low_threshold == stage.matcher.high_threshold == threshold
        assert not stage.matcher.allow_low_quality
    weights = [head.fc1.weight for head in heads.box_heads]
    assert len(weights) == 3
    assert not torch.equal(weights[0], weights[1])

import math
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import box_iou

from maskrcnn.models.anchors import AnchorGenerator
from maskrcnn.models.matching import BETWEEN, BalancedSampler, Matcher
from maskrcnn.models.rpn import RPN
from maskrcnn.models.weights import load_weights, read_weights
from maskrcnn.ops.image_batch import ImageBatch

Factory = Callable[..., Any]

PADDED = (64, 96)
SIZES = [(64, 96), (50, 70)]


def make_rpn(**settings: Any) -> RPN:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "in_channels": 8,
        "anchors": AnchorGenerator(sizes=(16, 32), strides=(8, 16)),
        "matcher": Matcher(high_threshold=0.7, low_threshold=0.3, allow_low_quality=True),
        "sampler": BalancedSampler(batch_size_per_image=64, positive_fraction=0.5),
    }
    return RPN(**defaults | settings)


def make_features(channels: int, strides: list[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(-(-PADDED[0] // stride), -(-PADDED[1] // stride)) for stride in strides]
    return [torch.randn(2, channels, *shape, generator=generator) for shape in shapes]


BATCH = ImageBatch(torch.zeros(2, 3, *PADDED), SIZES)


@pytest.fixture(scope="module")
def pair(
    make_tiny_torchvision: Factory, make_tiny_model: Factory, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RegionProposalNetwork, RPN]:
    """torchvision's RPN and ours with the same weights, confident enough that NMS has work to do."""
    reference = make_tiny_torchvision(rpn_batch_size_per_image=100_000)
    with torch.no_grad():
        reference.rpn.head.cls_logits.weight.mul_(30)
        reference.rpn.head.bbox_pred.weight.mul_(10)
    path: Path = tmp_path_factory.mktemp("rpn") / "weights.pth"
    torch.save(reference.state_dict(), path)
    model = make_tiny_model("model.rpn.sampler.batch_size_per_image=100000", preset="torchvision")
    load_weights(model, read_weights(path))
    return reference.rpn, model.rpn


@pytest.mark.parametrize("training", [False, True])
def test_proposals_and_losses_equal_torchvision(
    pair: tuple[RegionProposalNetwork, RPN], make_targets: Factory, training: bool
) -> None:
    theirs, ours = (rpn.train(training) for rpn in pair)
    features, targets = make_features(32, [4, 8, 16, 32, 64]), make_targets(SIZES, [4, 2])
    images = ImageList(BATCH.pixels, SIZES)
    expected, losses = theirs(images, OrderedDict(enumerate(features)), targets)
    found, our_losses = ours(features, BATCH, targets)
    for ours_i, theirs_i in zip(found, expected, strict=True):
        assert len(theirs_i) == 50
        torch.testing.assert_close(ours_i, theirs_i, atol=1e-3, rtol=1e-5)
    assert set(our_losses) == {"loss_objectness", "loss_rpn_box_reg"}
    for name, loss in losses.items():
        torch.testing.assert_close(our_losses[name], loss, rtol=1e-5, atol=1e-7)
    assert bool(losses) == training


@pytest.mark.parametrize("limit", [1, 5, 40])
def test_pre_nms_limit_equals_torchvision(
    pair: tuple[RegionProposalNetwork, RPN], monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    theirs, ours = (rpn.eval() for rpn in pair)
    monkeypatch.setitem(theirs._pre_nms_top_n, "testing", limit)
    monkeypatch.setitem(ours.pre_nms_top_n, False, limit)
    features = make_features(32, [4, 8, 16, 32, 64])
    expected, _ = theirs(ImageList(BATCH.pixels, SIZES), OrderedDict(enumerate(features)))
    found, losses = ours(features, BATCH)
    assert losses == {}
    assert [len(boxes) for boxes in found] == [len(boxes) for boxes in expected]
    assert max(len(boxes) for boxes in found) <= 5 * limit
    for ours_i, theirs_i in zip(found, expected, strict=True):
        torch.testing.assert_close(ours_i, theirs_i, atol=1e-3, rtol=1e-5)


def test_proposals_lie_in_their_picture_apart_from_each_other_and_without_gradient() -> None:
    rpn = make_rpn(nms_thresh=0.3, min_size=6.0, pre_nms_top_n_test=150, post_nms_top_n_test=20).eval()
    with torch.no_grad():
        rpn.objectness.weight.mul_(100)
        rpn.deltas.weight.mul_(100)
    proposals, _ = rpn(make_features(8, [8, 16]), BATCH)
    for boxes, (height, width) in zip(proposals, SIZES, strict=True):
        assert 10 <= len(boxes) <= 20
        assert not boxes.requires_grad
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height, width, height])).all()
        assert (boxes[:, 2:] - boxes[:, :2] >= 6).all()
        assert boxes[:, 2].max() > width - 10
        # NMS holds within a level only; no more than two boxes, one of each, may coincide.
        assert ((box_iou(boxes, boxes) > 0.3).sum(dim=1) <= 3).all()


def test_proposals_are_ranked_by_their_logits() -> None:
    """Of which a constant changes nothing, though all probabilities are 1 in float32."""
    rpn = make_rpn(nms_thresh=1.0, pre_nms_top_n_test=20, post_nms_top_n_test=20).eval()
    features = make_features(8, [8, 16])
    with torch.no_grad():
        rpn.objectness.weight.mul_(100)
        expected, _ = rpn(features, BATCH)
        rpn.objectness.bias.fill_(60.0)
        assert all((logits.sigmoid() == 1).all() for logits in rpn.predict(features)[0])
        found, _ = rpn(features, BATCH)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_training_and_testing_have_their_own_limits() -> None:
    rpn = make_rpn(nms_thresh=1.0, post_nms_top_n_train=30, post_nms_top_n_test=7)
    features = make_features(8, [8, 16])
    assert [len(boxes) for boxes in rpn.train()(features, BATCH)[0]] == [30, 30]
    assert [len(boxes) for boxes in rpn.eval()(features, BATCH)[0]] == [7, 7]


def test_losses_of_known_predictions(make_targets: Factory) -> None:
    rpn = make_rpn().train()
    with torch.no_grad():
        rpn.objectness.weight.zero_()
        rpn.objectness.bias.fill_(2.0)
        rpn.deltas.weight.zero_()
    features = make_features(8, [8, 16])
    # Without instances every anchor is background: -log(1 - sigmoid(2)).
    _, losses = rpn(features, BATCH, make_targets(SIZES, [0, 0]))
    assert losses["loss_objectness"].item() == pytest.approx(math.log1p(math.exp(2)))
    assert losses["loss_rpn_box_reg"].item() == 0
    # A box that is an anchor: its own delta is 0, and no other anchor comes near.
    anchors = torch.cat(rpn.anchors(features, PADDED))
    targets = make_targets(SIZES, [1, 0])
    targets[0]["boxes"] = anchors[100:101].clone()
    overlap = box_iou(anchors[100:101], anchors)[0]
    positives = int((overlap >= 0.7).sum())
    assert positives == 1
    _, losses = rpn(features, BATCH, targets)
    # 1 positive and 63 negatives of the first picture, 64 negatives of the second.
    wrong, right = math.log1p(math.exp(2)), math.log1p(math.exp(-2))
    assert losses["loss_objectness"].item() == pytest.approx((127 * wrong + right) / 128, rel=1e-5)
    assert losses["loss_rpn_box_reg"].item() == 0
    with torch.no_grad():
        rpn.deltas.bias.view(-1, 4)[:, 1] = 0.5  # linear part of smooth L1: 0.5 - 1 / 18
    _, losses = rpn(features, BATCH, targets)
    assert losses["loss_rpn_box_reg"].item() == pytest.approx((0.5 - 1 / 18) / 128, rel=1e-5)


@pytest.mark.parametrize("num_convs", [1, 2])
def test_predictions_at_some_anchors_are_those_of_the_whole_maps(num_convs: int) -> None:
    """At each anchor of each picture, the borders of the maps too."""
    rpn = make_rpn(num_convs=num_convs)
    for layer in rpn.convs:
        torch.nn.init.normal_(layer.weight, std=0.3)
        torch.nn.init.normal_(layer.bias)  # so that a zero around a map is not what a convolution makes of zeros
    features = make_features(8, [8, 16])
    objectness, deltas = (torch.cat(levels, dim=1) for levels in rpn.predict(features))
    images, anchors = torch.meshgrid(torch.arange(2), torch.arange(objectness.shape[1]), indexing="ij")
    logits_at, deltas_at = rpn._predict_at(features, anchors.flatten(), images.flatten())
    torch.testing.assert_close(logits_at, objectness.flatten(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(deltas_at, deltas.flatten(0, 1), atol=1e-5, rtol=1e-5)


def test_all_parameters_learn_under_autocast(make_targets: Factory) -> None:
    """It keeps weights that it has cast: those for the proposals, without gradient, must not serve the losses."""
    rpn, features, gradients = make_rpn(), make_features(8, [8, 16]), []
    for enabled in (False, True):
        torch.manual_seed(1)  # of the sampled anchors
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            losses = rpn(features, BATCH, make_targets(SIZES, [3, 2]))[1]
        gradients.append(torch.autograd.grad(torch.stack(list(losses.values())).sum(), list(rpn.parameters())))
    for exact, rounded in zip(*gradients, strict=True):
        assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_more_convolutions_come_before_the_predictions() -> None:
    rpn = make_rpn(num_convs=3)
    assert len(rpn.convs) == 3
    features = make_features(8, [8, 16])
    found = rpn.predict(features)[0][0]
    x = features[0]
    for conv in rpn.convs:
        x = conv(x).relu()
    torch.testing.assert_close(found, rpn.objectness(x).permute(0, 2, 3, 1).flatten(1))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pre_nms_top_n_train", 0),
        ("pre_nms_top_n_test", 0),
        ("post_nms_top_n_train", 0),
        ("post_nms_top_n_test", 0),
        ("nms_thresh", 0.0),
        ("nms_thresh", 1.5),
        ("box_loss", "l2"),
        ("coder_weights", (1.0, 1.0, 1.0)),
        ("coder_weights", (1.0, 1.0, 1.0, 0.0)),
    ],
)
def test_invalid_arguments_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        make_rpn(**{name: value})


@pytest.mark.parametrize("box_loss", ["smooth_l1", "giou"])
def test_the_box_loss_is_a_mean_over_all_or_over_positive_anchors(box_loss: Any, make_targets: Factory) -> None:
    features, targets = make_features(8, [8, 16]), make_targets(SIZES, [4, 2])
    # All anchors are sampled, so that both models see the same.
    sampler = BalancedSampler(batch_size_per_image=100_000, positive_fraction=0.9)
    sampled, positive = (
        make_rpn(box_loss=box_loss, box_loss_normalizer=over, sampler=sampler)(features, BATCH, targets)[1]
        for over in ("sampled", "positive")
    )
    assert torch.equal(sampled["loss_objectness"], positive["loss_objectness"])
    rpn = make_rpn()
    anchors = torch.cat(rpn.anchors(features, PADDED))
    matches = torch.stack([rpn.matcher(target["boxes"], anchors) for target in targets])
    share = (matches >= 0).sum() / (matches != BETWEEN).sum()
    assert 0 < share < 0.1
    torch.testing.assert_close(sampled["loss_rpn_box_reg"], share * positive["loss_rpn_box_reg"])


def test_no_positive_anchor_costs_nothing(make_targets: Factory) -> None:
    rpn = make_rpn(box_loss="giou", box_loss_normalizer="positive")
    losses = rpn(make_features(8, [8, 16]), BATCH, make_targets(SIZES, [0, 0]))[1]
    assert losses["loss_rpn_box_reg"] == 0

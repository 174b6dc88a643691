"""Necks, heads and losses in the whole model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn.models.mask_rcnn import LOSSES
from maskrcnn.models.weights import Weights, init_weights
from maskrcnn.ops.image_batch import pad_images

Factory = Callable[..., Any]

SIZES = [(64, 96), (50, 70)]
CONVOLUTIONS = ("model.box_head.num_convs=2", "model.box_head.num_fcs=1", "model.box_head.conv_channels=16")
OPTIONS = {
    "panet": ("model/neck=panet", "model.neck.upsampling=bilinear"),
    "bifpn": ("model/neck=bifpn", "model.neck.repeats=2"),
    "fpn from outputs": ("model.neck.top_down=output", "model.neck.upsampling=bilinear", "model.neck.norm=gn"),
    "bn heads": (*CONVOLUTIONS, "model.box_head.norm=bn", "model.mask_head.norm=bn", "model.rpn.num_convs=2"),
    "gn heads": (*CONVOLUTIONS, "model.box_head.norm=gn", "model.mask_head.norm=gn"),
    "plain convolutions": CONVOLUTIONS,
    "cascade": ("model/roi=cascade",),
    "cascade with bn heads": ("model/roi=cascade", *CONVOLUTIONS, "model.box_head.norm=bn", "model.mask_head.norm=bn"),
    "l1": ("model.rpn.box_loss=l1", "model.box_head.box_loss=l1"),
}


@pytest.fixture(params=list(OPTIONS))
def model(request: pytest.FixtureRequest, make_tiny_model: Factory) -> Any:
    return make_tiny_model(*OPTIONS[request.param])


@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (3, 2)])
def test_every_parameter_gets_a_finite_gradient(
    model: Any, make_images: Factory, make_targets: Factory, counts: tuple[int, int]
) -> None:
    losses = model.train()(pad_images(make_images(SIZES), divisor=32), make_targets(SIZES, counts))
    assert set(losses) == set(LOSSES)
    assert losses["loss_classifier"] > 0
    assert (losses["loss_mask"] > 0) == (sum(counts) > 0)
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    if sum(counts):
        still = {name for name, parameter in model.named_parameters() if not parameter.grad.any()}
        # A later stage of a cascade may have no positives.
        assert all(name.startswith(("roi_heads.box_heads.1.deltas", "roi_heads.box_heads.2.deltas")) for name in still)
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_rois_that_do_not_exist_leave_the_graph_whole(model: Any, make_targets: Factory) -> None:
    """As on a device whose proposals have all been dropped, in a batch without instances."""
    features = [torch.randn(2, 32, -(-64 // s), -(-96 // s)) for s in (4, 8, 16, 32, 64)]
    losses = model.train().roi_heads.losses(features, [torch.zeros(0, 4)] * 2, make_targets(SIZES, [0, 0]), SIZES)
    assert {name: loss.item() for name, loss in losses.items()} == dict.fromkeys(LOSSES[2:], 0)
    sum(losses.values()).backward()
    for name, parameter in model.roi_heads.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_detections_are_sound(model: Any, make_images: Factory) -> None:
    model.eval().roi_heads.score_thresh = 0.0
    for detection, (height, width) in zip(model.predict(make_images(SIZES)), SIZES, strict=True):
        assert len(detection["boxes"]) > 0
        assert detection["mask_probs"].shape == (len(detection["boxes"]), 28, 28)
        assert all(value.isfinite().all() for value in detection.values())
        assert (detection["boxes"] <= torch.tensor([width, height, width, height]) + 1e-3).all()


def test_rows_of_classes_follow_their_name_in_every_stage(make_tiny_model: Factory) -> None:
    old = make_tiny_model("model/roi=cascade", num_classes=2)
    with torch.no_grad():
        for head in old.roi_heads.box_heads:
            head.scores.bias.copy_(torch.tensor([10.0, 11.0, 12.0]))
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    weights = Weights(Path("cascade.ckpt"), old.state_dict(), categories)
    new = make_tiny_model("model/roi=cascade", num_classes=3)
    with torch.no_grad():
        for head in new.roi_heads.box_heads:
            head.scores.bias.fill_(100.0)
    init_weights(new, weights, class_names=["dog", "bird", "cat"])
    for ours, theirs in zip(new.roi_heads.box_heads, old.roi_heads.box_heads, strict=True):
        assert ours.scores.bias.tolist() == [10, 12, 100, 11]
        assert torch.equal(ours.deltas.weight, theirs.deltas.weight)
        assert torch.equal(ours.fc1.weight, theirs.fc1.weight)


def test_a_cascade_starts_from_one_stage(make_tiny_model: Factory) -> None:
    old = make_tiny_model()
    categories = [{"id": i, "name": name} for i, name in enumerate(("a", "b", "c"), start=1)]
    weights = Weights(Path("one.ckpt"), old.state_dict(), categories)
    new = make_tiny_model("model/roi=cascade")
    fresh = init_weights(new, weights, class_names=["a", "b", "c"]).fresh
    assert {name.rpartition(".")[0].rpartition(".")[0] for name in fresh} == {
        "roi_heads.box_heads.1",
        "roi_heads.box_heads.2",
    }

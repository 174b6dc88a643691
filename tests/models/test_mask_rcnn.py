from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection import maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2, roi_heads

from maskrcnn.models.losses import BoxLossName
from maskrcnn.models.mask_rcnn import LOSSES, MaskRCNN
from maskrcnn.models.weights import Weights, load_weights, read_weights
from maskrcnn.ops.image_batch import ImageBatch, pad_images
from maskrcnn.ops.masks import masks_to_rle, sample_mask_targets

Factory = Callable[..., Any]
Target = dict[str, Tensor]

# All anchors and RoIs enter the losses, so that no draw can differ.
EVERYTHING = 1_000_000


@pytest.fixture(scope="module")
def read_torchvision(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Tensor]], Weights]:
    """Send tensors with torchvision's names through a file, to get them back with ours."""

    def read(state: dict[str, Tensor]) -> Weights:
        path = tmp_path_factory.mktemp("weights") / "torchvision.pth"
        torch.save(state, path)
        weights = read_weights(path)
        path.unlink()
        return weights

    return read


@pytest.fixture(scope="module")
def pair(
    make_torchvision: Factory, make_model: Factory, read_torchvision: Factory
) -> tuple[TorchvisionMaskRCNN, MaskRCNN]:
    """torchvision's model and ours with the same weights."""
    reference = make_torchvision(
        min_size=96,
        max_size=160,
        rpn_post_nms_top_n_train=80,
        rpn_post_nms_top_n_test=80,
        rpn_batch_size_per_image=EVERYTHING,
        box_batch_size_per_image=EVERYTHING,
        box_detections_per_img=15,
    )
    model = make_model(
        "model.input.min_size=96",
        "model.input.max_size=160",
        "model.rpn.post_nms_top_n_train=80",
        "model.rpn.post_nms_top_n_test=80",
        f"model.rpn.sampler.batch_size_per_image={EVERYTHING}",
        f"model.roi.sampler.batch_size_per_image={EVERYTHING}",
        "model.detections_per_image=15",
        preset="torchvision",
        num_classes=90,
    )
    load_weights(model, read_torchvision(reference.state_dict()))
    return reference, model.eval()


@pytest.mark.parametrize(
    "sizes",
    [[(96, 128)], [(77, 149)], [(151, 70)], [(480, 640)], [(60, 90), (109, 54)]],
    ids=["unscaled", "odd", "portrait", "larger", "two_sizes"],
)
def test_detections_equal_torchvision(
    pair: tuple[TorchvisionMaskRCNN, MaskRCNN], make_images: Factory, sizes: list[tuple[int, int]]
) -> None:
    reference, ours = pair
    images = make_images(sizes)
    with torch.no_grad():
        expected = reference(images)
    for size, want, got in zip(sizes, expected, ours.predict(images), strict=True):
        assert len(want["boxes"]) == 15
        assert len(want["labels"].unique()) >= 5
        torch.testing.assert_close(got["boxes"], want["boxes"], atol=0.05, rtol=0)
        torch.testing.assert_close(got["scores"], want["scores"], atol=1e-3, rtol=0)
        assert torch.equal(got["labels"], want["labels"])
        rles = masks_to_rle(got["mask_probs"], got["boxes"], size=size, paste="torchvision")
        masks = (want["masks"][:, 0] > 0.5).byte().numpy()
        wanted = [coco_mask.encode(np.asfortranarray(mask)) for mask in masks]
        areas, wanted_areas = coco_mask.area(rles), coco_mask.area(wanted)
        assert np.array_equal(areas == 0, wanted_areas == 0)
        assert (areas > 0).sum() >= 12
        ious = coco_mask.iou(rles, wanted, [0] * len(rles)).diagonal()
        assert ious[areas > 0].min() > 0.99


@pytest.mark.parametrize(
    ("make", "preset"),
    [(maskrcnn_resnet50_fpn, "torchvision"), (maskrcnn_resnet50_fpn_v2, "torchvision_v2")],
    ids=["v1", "v2"],
)
def test_preset_has_the_settings_of_torchvision(make_model: Factory, make: Factory, preset: str) -> None:
    with torch.device("meta"):
        theirs = make(weights=None, weights_backbone=None)
        ours = make_model(preset=preset, num_classes=90)
    transform, rpn, roi = theirs.transform, theirs.rpn, theirs.roi_heads
    assert (ours.input.min_size, ours.input.max_size) == (transform.min_size[-1], transform.max_size)
    assert ours.input.size_divisor == transform.size_divisible
    assert (ours.input.resize, ours.input.channel_order) == ("torchvision", "rgb")
    assert ours.rpn.pre_nms_top_n == {
        training: rpn._pre_nms_top_n[mode] for training, mode in ((True, "training"), (False, "testing"))
    }
    assert ours.rpn.post_nms_top_n == {
        training: rpn._post_nms_top_n[mode] for training, mode in ((True, "training"), (False, "testing"))
    }
    assert (ours.rpn.nms_thresh, ours.rpn.min_size) == (rpn.nms_thresh, rpn.min_size)
    assert ours.rpn.coder_weights == rpn.box_coder.weights
    assert ours.roi_heads.stages[0].coder_weights == roi.box_coder.weights
    for mine, other in (
        (ours.rpn.matcher, rpn.proposal_matcher),
        (ours.roi_heads.stages[0].matcher, roi.proposal_matcher),
    ):
        assert (mine.high_threshold, mine.low_threshold) == (other.high_threshold, other.low_threshold)
        assert mine.allow_low_quality == other.allow_low_quality_matches
    for mine, other in (
        (ours.rpn.sampler, rpn.fg_bg_sampler),
        (ours.roi_heads.sampler, roi.fg_bg_sampler),
    ):
        assert mine.batch_size_per_image == other.batch_size_per_image
        assert mine.positive_fraction == other.positive_fraction
    assert ours.roi_heads.score_thresh == roi.score_thresh
    assert ours.roi_heads.nms_thresh == roi.nms_thresh
    assert ours.roi_heads.detections_per_image == roi.detections_per_img
    align = ours.roi_heads.roi_align
    assert (align.sampling_ratio, align.aligned) == (roi.box_roi_pool.sampling_ratio, False)
    assert (align.canonical_size, align.canonical_level) == (
        roi.box_roi_pool.canonical_scale,
        roi.box_roi_pool.canonical_level,
    )
    assert (ours.roi_heads.box_heads[0].resolution,) * 2 == roi.box_roi_pool.output_size
    assert (ours.roi_heads.mask_head.resolution,) * 2 == roi.mask_roi_pool.output_size
    assert ours.rpn.anchors.strides is None


def test_losses_and_gradients_equal_torchvision(
    pair: tuple[TorchvisionMaskRCNN, MaskRCNN],
    read_torchvision: Factory,
    make_images: Factory,
    make_targets: Factory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference, ours = pair
    sizes = [(96, 128), (112, 96)]  # the transform of the reference leaves these as they are
    images, targets = make_images(sizes), make_targets(sizes, [5, 3], num_classes=90)
    of_image = iter(targets)

    def project(masks: Tensor, rois: Tensor, matched: Tensor, side: int) -> Tensor:
        target = next(of_image)
        assert torch.equal(masks, target["masks"])
        return sample_mask_targets(masks[matched], boxes=target["boxes"][matched], rois=rois, size=side)

    monkeypatch.setattr(roi_heads, "project_masks_on_boxes", project)
    reference.train()
    expected = reference(images, targets)
    sum(expected.values()).backward()
    gradients = read_torchvision({name: p.grad for name, p in reference.named_parameters()}).state
    reference.eval().zero_grad()

    ours.train()
    losses = ours(pad_images(images, divisor=32), targets)
    sum(losses.values()).backward()
    found = {name: p.grad for name, p in ours.named_parameters()}
    ours.eval().zero_grad()

    assert set(losses) == set(LOSSES) == set(expected)
    assert min(loss.item() for loss in expected.values()) > 1e-3
    for name in LOSSES:
        torch.testing.assert_close(losses[name], expected[name], rtol=1e-4, atol=0)
    assert set(found) == set(gradients)
    for name, gradient in found.items():
        scale = gradients[name].abs().max()
        assert scale > 0, name
        assert (gradient - gradients[name]).abs().max() <= 1e-4 * scale, name


@pytest.mark.parametrize(
    "case",
    [
        ((5, 0, 2),),
        ((0, 0, 0),),
        ((5, 0, 2), "model/roi=cascade"),
        ((0, 0, 0), "model/roi=cascade"),
        (
            (5, 0, 2),
            "model.box_head.class_agnostic=false",
            "model.rpn.box_loss=smooth_l1",
            "model.box_head.box_loss=l1",
        ),
        ((5, 0, 2), "model.rpn.box_loss_normalizer=sampled", "model.box_head.box_loss_normalizer=sampled"),
    ],
    ids=["recipe", "recipe_empty", "cascade", "cascade_empty", "per_class", "sampled"],
)
def test_losses_and_gradients_do_not_depend_on_empty_slots(
    make_tiny_model: Factory,
    make_images: Factory,
    make_targets: Factory,
    as_on_accelerator: Callable[[], None],
    case: tuple[Any, ...],
) -> None:
    """All of which an accelerator computes: everything is sampled, and no draw can differ."""
    counts, *overrides = case
    sampled = [f"model.{part}.sampler.batch_size_per_image={EVERYTHING}" for part in ("rpn", "roi")]
    model = make_tiny_model(*sampled, *overrides, "model.roi_align.gather=false")
    sizes = [*SIZES, (64, 64)]
    batch, targets, found = make_batch(make_images(sizes)), make_targets(sizes, counts), []
    if any(counts):
        targets[0]["has_mask"][1] = False
    with torch.no_grad():  # boxes of their own, so that proposals overlap and some leave the picture
        model.rpn.objectness.weight.mul_(30)
        model.rpn.deltas.weight.mul_(30)
    for _ in range(2):
        losses = model.eval()(batch, targets)
        sum(losses.values()).backward()
        found.append((losses, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}))
        model.zero_grad()
        as_on_accelerator()
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=1e-7)
    for name, gradient in found[0][1].items():
        scale = gradient.abs().max() + 1e-8
        assert (found[1][1][name] - gradient).abs().max() <= 1e-4 * scale, name


def test_detections_do_not_depend_on_empty_slots(
    make_tiny_model: Factory, make_images: Factory, as_on_accelerator: Callable[[], None]
) -> None:
    overrides = ("model.min_box_size=0", "model.rpn.min_size=20", "model.rpn.pre_nms_top_n_test=8")
    model = make_tiny_model("model.score_thresh=0.0", "model.roi_align.gather=false", *overrides).eval()
    batch = make_batch(make_images(SIZES))
    assert max(len(boxes) for boxes in model.rpn(model.features(batch), batch)[0]) < 5 * 8
    found = model.predict(make_images(SIZES))
    as_on_accelerator()
    torch.testing.assert_close(model.predict(make_images(SIZES)), found)


@pytest.fixture(scope="module")
def tiny(make_tiny_model: Factory) -> MaskRCNN:
    model: MaskRCNN = make_tiny_model()
    return model.train()


def make_batch(images: list[Tensor]) -> ImageBatch:
    return pad_images(images, divisor=32)


SIZES = [(64, 96), (50, 70)]


@pytest.mark.parametrize(
    "case",
    [
        ((0, 0), False, "smooth_l1"),
        ((0, 0), True, "smooth_l1"),
        ((0, 0), False, "iou"),
        ((0, 0), True, "ciou"),
        ((0, 3), False, "giou"),
        ((0, 3), True, "smooth_l1"),
        ((3, 0), False, "smooth_l1"),
        ((3, 0), True, "diou"),
    ],
)
def test_pictures_without_instances_leave_every_parameter_a_finite_gradient(
    make_tiny_model: Factory,
    make_images: Factory,
    make_targets: Factory,
    case: tuple[tuple[int, int], bool, BoxLossName],
) -> None:
    counts, class_agnostic, box_loss = case
    model = make_tiny_model(
        f"model.rpn.box_loss={box_loss}",
        f"model.box_head.box_loss={box_loss}",
        f"model.box_head.class_agnostic={str(class_agnostic).lower()}",
    ).train()
    losses = model(make_batch(make_images(SIZES)), make_targets(SIZES, counts))
    assert set(losses) == set(LOSSES)
    assert all(loss.isfinite() for loss in losses.values())
    if counts == (0, 0):
        for name in ("loss_rpn_box_reg", "loss_box_reg", "loss_mask"):
            assert losses[name] == 0
    else:
        assert all(loss > 0 for loss in losses.values())
    assert losses["loss_objectness"] > 0
    assert losses["loss_classifier"] > 0
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("box_loss", "class_agnostic"),
    [
        ("smooth_l1", False),
        ("smooth_l1", True),
        ("iou", False),
        ("giou", True),
        ("diou", False),
        ("ciou", True),
    ],
)
def test_a_step_with_each_box_loss_moves_both_regressors(
    make_tiny_model: Factory,
    make_images: Factory,
    make_targets: Factory,
    box_loss: BoxLossName,
    class_agnostic: bool,
) -> None:
    model = make_tiny_model(
        f"model.rpn.box_loss={box_loss}",
        f"model.box_head.box_loss={box_loss}",
        f"model.box_head.class_agnostic={str(class_agnostic).lower()}",
    ).train()
    head = model.roi_heads.box_heads[0]
    assert head.deltas.out_features == (4 if class_agnostic else 16)
    losses = model(make_batch(make_images(SIZES)), make_targets(SIZES, [3, 2]))
    (losses["loss_rpn_box_reg"] + losses["loss_box_reg"]).backward()
    for regressor in (model.rpn.deltas, head.deltas):
        assert regressor.weight.grad.isfinite().all()
        assert regressor.weight.grad.abs().max() > 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


def test_gradients_reach_only_the_deltas_of_present_classes(
    make_tiny_model: Factory, make_images: Factory, make_targets: Factory
) -> None:
    model = make_tiny_model("model.box_head.class_agnostic=false").train()
    targets = make_targets(SIZES, [3, 2])
    for target in targets:
        target["labels"].fill_(2)
    losses = model(make_batch(make_images(SIZES)), targets)
    (losses["loss_box_reg"] + losses["loss_mask"]).backward()
    rows = model.roi_heads.box_heads[0].deltas.weight.grad.unflatten(0, (4, 4)).abs().amax(dim=(1, 2))
    masks = model.roi_heads.mask_head.logits.weight.grad.abs().amax(dim=(1, 2, 3))
    assert (rows > 0).tolist() == [False, False, True, False]
    assert (masks > 0).tolist() == [False, False, True, False]


def test_each_loss_has_its_weight(make_tiny_model: Factory, make_images: Factory, make_targets: Factory) -> None:
    factors = dict(zip(LOSSES, (2.0, 3.0, 0.0, 0.5, 10.0), strict=True))
    overrides = [f"model.loss_weights.{name}={value}" for name, value in factors.items()]
    found = {}
    for key, model in (("plain", make_tiny_model()), ("weighted", make_tiny_model(*overrides))):
        torch.manual_seed(0)
        found[key] = model.train()(make_batch(make_images(SIZES)), make_targets(SIZES, [3, 2]))
    for name, factor in factors.items():
        torch.testing.assert_close(found["weighted"][name], found["plain"][name] * factor)


def test_padding_of_the_input_does_not_matter(tiny: MaskRCNN, make_images: Factory, make_targets: Factory) -> None:
    sizes = [(60, 90), (50, 70)]
    batch, targets = make_batch(make_images(sizes)), make_targets(sizes, [2, 2])
    dirty = batch.pixels.clone()
    for canvas, (height, width) in zip(dirty, sizes, strict=True):
        canvas[:, height:] = 7.0
        canvas[:, :, width:] = 7.0
    losses = []
    for pixels in (batch.pixels, dirty):
        torch.manual_seed(0)
        losses.append(tiny.eval()(ImageBatch(pixels, sizes), targets))
    for name in LOSSES:
        assert torch.equal(losses[0][name], losses[1][name])


def test_predictions_lie_in_the_given_pictures_best_first(make_tiny_model: Factory, make_images: Factory) -> None:
    sizes = [(30, 45), (200, 100)]
    model = make_tiny_model("model.score_thresh=0.0", "model.detections_per_image=7").eval()
    found = model.predict(make_images(sizes))
    for detection, (height, width) in zip(found, sizes, strict=True):
        boxes, scores, labels = detection["boxes"], detection["scores"], detection["labels"]
        assert boxes.shape == (7, 4)
        assert detection["mask_probs"].shape == (7, 28, 28)
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height, width, height]) + 1e-3).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert boxes[:, 2].max() > width / 2
        assert torch.equal(scores, scores.sort(descending=True).values)
        assert set(labels.tolist()) <= {1, 2, 3}
        assert detection["mask_probs"].min() >= 0
        assert detection["mask_probs"].max() <= 1


def test_a_picture_without_detections_gives_empty_tensors(make_tiny_model: Factory, make_images: Factory) -> None:
    model = make_tiny_model("model.score_thresh=1.0").eval()
    for detection in model.predict(make_images(SIZES)):
        assert detection["boxes"].shape == (0, 4)
        assert detection["scores"].shape == detection["labels"].shape == (0,)
        assert detection["mask_probs"].shape == (0, 28, 28)


@pytest.mark.parametrize("box", [[5.0, 5.0, 5.0, 9.0], [5.0, 5.0, 9.0, 5.0], [9.0, 5.0, 5.0, 9.0]])
def test_a_box_without_size_is_refused_with_its_index(
    tiny: MaskRCNN, make_images: Factory, make_targets: Factory, box: list[float]
) -> None:
    targets = make_targets(SIZES, [2, 3])
    targets[1]["boxes"][2] = torch.tensor(box)
    with pytest.raises(ValueError, match=r"invalid box .* for target at index 1") as caught:
        tiny(make_batch(make_images(SIZES)), targets)
    assert str(box) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_classes", 0),
        ("score_thresh", -0.1),
        ("score_thresh", 1.1),
        ("nms_thresh", -0.1),
        ("nms_thresh", 1.1),
        ("detections_per_image", 0),
        ("loss_weights", {"loss_keypoint": 1.0}),
    ],
)
def test_invalid_arguments_are_named(name: str, value: Any) -> None:
    arguments: dict[str, Any] = {
        "num_classes": 3,
        "input": None,
        "backbone": None,
        "neck": None,
        "anchors": None,
        "rpn": None,
        "roi_align": None,
        "roi": None,
        "box_head": None,
        "mask_head": None,
    }
    with pytest.raises(ValueError, match=name):
        MaskRCNN(**arguments | {name: value})

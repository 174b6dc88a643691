"""The form for exporters finds what the model finds, before any exporter comes in."""

import pytest
import torch
from torchvision.ops import batched_nms

from maskrcnn.export.network import ExportNetwork
from maskrcnn.export.suppression import suppress, suppress_op
from maskrcnn.models.input import ModelInput
from tests.export_tools import assert_same_detections, sharpen

SIZES = [(60, 100), (64, 64), (40, 90), (100, 70), (64, 128)]
VARIANTS = {
    "class-agnostic": (),
    "per class": ("model.box_head.class_agnostic=false",),
    "cascade": ("model/roi=cascade",),
    "aligned": ("model.roi_align.aligned=true", "model.roi_align.sampling_ratio=0"),
    "two levels": ("model.roi_align.num_levels=2", "model.roi_align.canonical_size=56"),
    "bgr": ("model.input.channel_order=bgr", "model.input.mean=[0.1,0.2,0.3]"),
    "letterbox": ("model.input.letterbox=[255,51,0]",),
    "derived strides": ("model.anchors.strides=null",),
    "panet, group norm": ("model/neck=panet", "model.box_head.num_convs=1", "model.mask_head.norm=gn"),
    "bifpn": ("model/neck=bifpn",),
}


def run(network, model, images):
    """Detections of the network, by picture, in pixels of the pictures."""
    expected = model.input
    plain = ModelInput(
        min_size=expected.min_size,
        max_size=expected.max_size,
        mean=(0, 0, 0),
        std=(1 / 255, 1 / 255, 1 / 255),
        letterbox=None if expected.letterbox is None else expected.letterbox.flatten().tolist(),
    )
    batch = plain.prepare(images)
    padded = batch.pixels.clone()
    for canvas, (height, width) in zip(padded, batch.sizes, strict=True):
        canvas[:, height:] = 77  # whatever stands beside the picture
        canvas[:, :, width:] = 77
    with torch.no_grad():
        boxes, labels, scores, mask_probs, image_index = network(padded, torch.tensor(batch.sizes))
    assert (image_index.diff() >= 0).all()
    found = []
    for i, image in enumerate(images):
        mine = image_index == i
        found.append(
            {
                "boxes": plain.restore(boxes[mine], image),
                "labels": labels[mine],
                "scores": scores[mine],
                "mask_probs": mask_probs[mine],
            }
        )
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_model_finds_the_same(variant, make_tiny_model, make_images):
    model = sharpen(make_tiny_model(*VARIANTS[variant]))
    images = make_images(SIZES)
    expected = model.predict(images)
    assert sum(len(detection["boxes"]) for detection in expected) > 20
    for batch in (slice(0, 1), slice(1, 3), slice(0, 5)):
        found = run(ExportNetwork(model, suppress=suppress), model, images[batch])
        assert_same_detections(found, model.predict(images[batch]), images[batch], paste=model.paste)


def test_nothing_found(make_tiny_model, make_images):
    model = sharpen(make_tiny_model("model.score_thresh=1.0"))
    images = make_images(SIZES[:2])
    (first, second) = run(ExportNetwork(model, suppress=suppress), model, images)
    assert first["boxes"].shape == second["boxes"].shape == (0, 4)
    assert first["mask_probs"].shape == (0, 28, 28)


def test_no_more_than_the_model_keeps(make_tiny_model, make_images):
    model = sharpen(make_tiny_model("model.detections_per_image=7", "model.rpn.pre_nms_top_n_test=30"))
    images = make_images(SIZES)
    found = run(ExportNetwork(model, suppress=suppress), model, images)
    assert [len(detection["boxes"]) for detection in found] == [7] * 5
    assert_same_detections(found, model.predict(images), images, paste=model.paste)


def test_suppression_is_that_of_torchvision_in_each_group_and_class():
    generator = torch.Generator().manual_seed(3)
    corner = torch.rand(3, 40, 2, generator=generator) * 50
    boxes = torch.cat((corner, corner + 5 + 30 * torch.rand(3, 40, 2, generator=generator)), dim=-1)
    scores = torch.rand(3, 2, 40, generator=generator)
    kept = suppress(boxes, scores, 0.4, 0.3)
    assert kept.dtype == torch.bool
    for group in range(3):
        label, index = torch.where(scores[group] > 0.3)
        left = batched_nms(boxes[group, index], scores[group, label, index], label, 0.4)
        expected = torch.zeros(2, 40, dtype=torch.bool)
        expected[label[left], index[left]] = True
        assert torch.equal(kept[group], expected)
    assert 0 < kept.sum() < (scores > 0.3).sum()
    assert torch.equal(suppress_op(boxes, scores, 0.4, 0.3), kept)
    assert not suppress(boxes, scores, 0.4, 1.0).any()


def test_half_precision_leaves_boxes_and_scores_in_float32(make_tiny_model, make_images):
    model = sharpen(make_tiny_model())
    images = make_images(SIZES[:1])
    (expected,) = model.predict(images)
    (found,) = run(ExportNetwork(model, suppress=suppress, half=True), model, images)
    assert {value.dtype for value in model.backbone.state_dict().values()} == {torch.float16, torch.int64}
    assert found["boxes"].dtype == found["scores"].dtype == found["mask_probs"].dtype == torch.float32
    assert abs(found["scores"][0] - expected["scores"][0]) < 0.02

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.models.detection import (
    MaskRCNN_ResNet50_FPN_V2_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
)

from maskrcnn.errors import UserError
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.models.weights import load_weights, read_weights
from maskrcnn.models.weights import torchvision as module
from maskrcnn.ops.masks import masks_to_rle
from tests.models.weights.weight_files import saved

Factory = Callable[..., Any]
State = dict[str, Tensor]

SCORES, DELTAS = "roi_heads.box_heads.0.scores", "roi_heads.box_heads.0.deltas"
LOGITS = "roi_heads.mask_head.logits"


def old_name(name: str) -> str:
    """The name that a parameter has in the file that torchvision published in 2019."""
    name = re.sub(r"fpn\.(inner|layer)_blocks\.(\d)\.0\.", r"fpn.\1_blocks.\2.", name)
    name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
    return re.sub(r"mask_head\.(\d)\.0\.", lambda match: f"mask_head.mask_fcn{int(match[1]) + 1}.", name)


@pytest.mark.parametrize("names", ["new", "old"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_torchvision_names_of_both_ages_give_the_same_weights(
    state: State, model: MaskRCNN, tmp_path: Path, names: str, wrapped: bool
) -> None:
    content = {old_name(name) if names == "old" else name: value for name, value in state.items()}
    if names == "old":
        expected = {
            "backbone.fpn.inner_blocks.0.weight",
            "rpn.head.conv.weight",
            "roi_heads.mask_head.mask_fcn1.weight",
            "roi_heads.mask_head.mask_fcn2.bias",
        }
        assert expected <= set(content)
    content["backbone.body.bn1.num_batches_tracked"] = torch.tensor(7)
    path = saved({"model": content, "epoch": 3} if wrapped else content, tmp_path / "w.pth")
    weights = read_weights(path)
    assert (weights.path, weights.config, weights.settings) == (path, {}, {})
    assert weights.groups == {"model": "torchvision"}
    load_weights(model, weights)
    found = model.state_dict()
    assert len(found) == len(state)
    for ours, theirs in {
        "backbone.layer3.1.bn2.running_var": "backbone.body.layer3.1.bn2.running_var",
        "neck.lateral.1.0.weight": "backbone.fpn.inner_blocks.1.0.weight",
        "neck.output.3.0.bias": "backbone.fpn.layer_blocks.3.0.bias",
        "rpn.convs.0.weight": "rpn.head.conv.0.0.weight",
        "rpn.objectness.weight": "rpn.head.cls_logits.weight",
        "rpn.deltas.weight": "rpn.head.bbox_pred.weight",
        "roi_heads.box_heads.0.fc1.weight": "roi_heads.box_head.fc6.weight",
        "roi_heads.box_heads.0.fc2.bias": "roi_heads.box_head.fc7.bias",
        f"{SCORES}.weight": "roi_heads.box_predictor.cls_score.weight",
        f"{DELTAS}.weight": "roi_heads.box_predictor.bbox_pred.weight",
        "roi_heads.mask_head.convs.1.weight": "roi_heads.mask_head.1.0.weight",
        "roi_heads.mask_head.upsample.weight": "roi_heads.mask_predictor.conv5_mask.weight",
        f"{LOGITS}.weight": "roi_heads.mask_predictor.mask_fcn_logits.weight",
    }.items():
        assert torch.equal(found[ours], state[theirs]), ours


@pytest.mark.parametrize(
    ("make", "preset", "rename"),
    [
        (maskrcnn_resnet50_fpn, "torchvision", str),
        (maskrcnn_resnet50_fpn, "torchvision", old_name),
        (maskrcnn_resnet50_fpn_v2, "torchvision_v2", str),
    ],
    ids=["v1", "old", "v2"],
)
def test_every_name_and_shape_of_the_published_models_is_known(
    make_model: Factory, tmp_path: Path, make: Factory, preset: str, rename: Callable[[str], str]
) -> None:
    with torch.device("meta"):
        theirs = make(weights=None, weights_backbone=None).state_dict()
        ours = make_model(preset=preset, num_classes=90).state_dict()
    # One number stands for a whole tensor, so that the file stays small.
    content = {rename(name): torch.zeros(()).expand(value.shape) for name, value in theirs.items()}
    weights = read_weights(saved(content, tmp_path / "w.pth"))
    assert weights.groups == {"model": preset}
    assert {name: v.shape for name, v in weights.state.items()} == {n: v.shape for n, v in ours.items()}
    names = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    assert len(weights.categories) == 90
    assert weights.categories[0] == {"id": 1, "name": "person"}
    assert weights.categories[89] == {"id": 90, "name": "toothbrush"} == {"id": 90, "name": names[90]}
    assert names == MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1.meta["categories"]


def test_detections_equal_those_of_the_second_model(
    make_tiny_torchvision: Factory, make_tiny_model: Factory, make_images: Factory, tmp_path: Path
) -> None:
    reference = make_tiny_torchvision(v2=True, num_classes=20, box_detections_per_img=15)
    weights = read_weights(saved(reference.state_dict(), tmp_path / "w.pth"))
    narrow = ("model.box_head.conv_channels=32", "model.mask_head.num_convs=2", "model.detections_per_image=15")
    ours = make_tiny_model(*narrow, preset="torchvision_v2", num_classes=20).eval()
    load_weights(ours, weights)
    sizes = [(64, 96), (51, 93), (240, 320)]
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
        masks = (want["masks"][:, 0] > 0.5).byte().permute(1, 2, 0).numpy()
        wanted = coco_mask.encode(np.asfortranarray(masks))
        areas = coco_mask.area(wanted)
        assert np.array_equal(coco_mask.area(rles) > 0, areas > 0)
        assert (areas > 0).sum() >= 12
        assert coco_mask.iou(rles, wanted, [0] * len(rles)).diagonal()[areas > 0].min() > 0.99


def test_classes_of_another_number_are_named_by_their_label(state: State, tmp_path: Path) -> None:
    weights = read_weights(saved(state, tmp_path / "w.pth"))
    assert weights.categories == [{"id": label, "name": str(label)} for label in (1, 2, 3)]


def test_the_published_file_switches_the_epsilon_off(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module._COCO_V1_SHA256 in MaskRCNN_ResNet50_FPN_Weights.COCO_V1.url
    path = saved(state, tmp_path / "w.pth")
    assert read_weights(path).settings == {}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(module, "_COCO_V1_SHA256", digest[:8])
    assert read_weights(path).settings == {"backbone.norm_eps": 0.0}


def test_an_unknown_parameter_among_torchvision_names_is_named(state: State, tmp_path: Path) -> None:
    content = state | {"roi_heads.keypoint_head.0.weight": torch.zeros(1)}
    with pytest.raises(UserError, match=r"resnet50_fpn: roi_heads\.keypoint_head\.0\.weight is not a param"):
        read_weights(saved(content, tmp_path / "w.pth"))

"""Weights of detectron2: Mask R-CNN and Cascade Mask R-CNN on ResNet-FPN, from its model zoo or its training.

A `.pkl` of the zoo is {"model": {name: array}, "__author__": ...}, a `.pth` {"model": {name: tensor}, ...}.
K classes; theirs come before the background, and boxes and masks have no rows of the background.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskrcnn.errors import UserError
from maskrcnn.models.weights.contents import NameTable, Weights, coco_categories, translate
from maskrcnn.models.weights.shapes import (
    Settings,
    State,
    backbone_name,
    check_parts,
    count,
    head_settings,
    norm_name,
)

_MODULE = "(weight|bias|running_mean|running_var|num_batches_tracked)"
_STAGES = [("", 0), *((f"{stage}.", stage) for stage in range(3))]  # of one box head, or of a cascade
_MOST_CONVS = 8

_NAMES: NameTable = [
    (r"pixel_mean|pixel_std", ""),  # settings, see _backbone_settings
    (r"proposal_generator\.anchor_generator\.cell_anchors\.\d", ""),  # see _anchor_settings
    (r"backbone\.bottom_up\.stem\.conv1\.weight", r"backbone.conv1.weight"),
    (rf"backbone\.bottom_up\.stem\.conv1\.norm\.{_MODULE}", r"backbone.bn1.\1"),
    *(
        row
        for stage in range(2, 6)
        for block in (rf"backbone\.bottom_up\.res{stage}\.(\d+)",)
        for row in (
            (rf"{block}\.conv(\d)\.weight", rf"backbone.layer{stage - 1}.\1.conv\2.weight"),
            (rf"{block}\.conv(\d)\.norm\.{_MODULE}", rf"backbone.layer{stage - 1}.\1.bn\2.\3"),
            (rf"{block}\.shortcut\.weight", rf"backbone.layer{stage - 1}.\1.downsample.0.weight"),
            (rf"{block}\.shortcut\.norm\.{_MODULE}", rf"backbone.layer{stage - 1}.\1.downsample.1.\2"),
            (rf"backbone\.fpn_(lateral|output){stage}\.(weight|bias)", rf"neck.\1.{stage - 2}.0.\2"),
            (rf"backbone\.fpn_(lateral|output){stage}\.norm\.{_MODULE}", rf"neck.\1.{stage - 2}.1.\2"),
        )
    ),
    (r"proposal_generator\.rpn_head\.conv\.(weight|bias)", r"rpn.convs.0.\1"),
    (r"proposal_generator\.rpn_head\.conv\.conv(\d)\.(weight|bias)", r"rpn.convs.\1.\2"),
    (r"proposal_generator\.rpn_head\.objectness_logits\.(weight|bias)", r"rpn.objectness.\1"),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.(weight|bias)", r"rpn.deltas.\1"),
    *(
        row
        for there, stage in _STAGES
        for head, ours in ((rf"roi_heads\.box_head\.{re.escape(there)}", f"roi_heads.box_heads.{stage}"),)
        for predictor in (rf"roi_heads\.box_predictor\.{re.escape(there)}",)
        for row in (
            *((rf"{head}conv{i + 1}\.(weight|bias)", rf"{ours}.convs.{i}.\1") for i in range(_MOST_CONVS)),
            *((rf"{head}conv{i + 1}\.norm\.{_MODULE}", rf"{ours}.norms.{i}.\1") for i in range(_MOST_CONVS)),
            (rf"{head}fc(\d)\.(weight|bias)", rf"{ours}.fc\1.\2"),
            (rf"{predictor}cls_score\.(weight|bias)", rf"{ours}.scores.\1"),
            (rf"{predictor}bbox_pred\.(weight|bias)", rf"{ours}.deltas.\1"),
        )
    ),
    *(
        row
        for i in range(_MOST_CONVS)
        for row in (
            (rf"roi_heads\.mask_head\.mask_fcn{i + 1}\.(weight|bias)", rf"roi_heads.mask_head.convs.{i}.\1"),
            (rf"roi_heads\.mask_head\.mask_fcn{i + 1}\.norm\.{_MODULE}", rf"roi_heads.mask_head.norms.{i}.\1"),
        )
    ),
    (r"roi_heads\.mask_head\.deconv\.(weight|bias)", r"roi_heads.mask_head.upsample.\1"),
    (r"roi_heads\.mask_head\.predictor\.(weight|bias)", r"roi_heads.mask_head.logits.\1"),
]

# Names that only a model has of which we have none, and what makes it one.
_ELSEWHERE = [
    (r"roi_heads\.keypoint_head\..+", "keypoints"),
    (r"sem_seg_head\..+", "a segmentation of the whole picture"),
    (r"roi_heads\.res5\..+|backbone\.(stem|res\d)\..+", "a backbone without FPN (C4, DC5)"),
    (r".+\.conv2_offset\..+", "deformable convolutions"),
    (r".+\.fed_loss_cls_weights", "independent scores for the classes (federated loss)"),
]

# For pixels in 0..1: blue, green, red.
_IMAGENET_MEAN = [0.406, 0.456, 0.485]
_IMAGENET_STD = [0.225, 0.224, 0.229]
_NO_STD = [float(f"{1 / 255:.7g}")] * 3


def read_detectron2(path: Path, content: dict[str, Any], key: str) -> Weights | None:
    """The weights in our names; None where `content`, read from `path`, is of another kind.

    What the file needs of the config is told by its names and shapes. Two things are not in the files of the zoo, the
    scale of the pixels and where a stage has its stride; both follow from what training started from, which for
    plain ResNets were the weights of He et al. and for ResNeXt and GroupNorm those that came later. A file that keeps
    its `pixel_std` tells.
    """
    state = content["model"] if isinstance(content.get("model"), dict) else content
    if not any(str(name).startswith(("proposal_generator.", "backbone.bottom_up.")) for name in state):
        return None
    source = f"{key}={path}, a model of detectron2"
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{source}: {name} is not a tensor")
    theirs: State = dict(state)
    for pattern, what in _ELSEWHERE:
        if any(re.fullmatch(pattern, name) for name in theirs):
            raise UserError(f"{source}: has {what}, which no model here has; Mask R-CNN on ResNet-FPN is read")
    ours = translate(theirs, _NAMES, source=source)
    check_parts(ours, source)
    backbone = backbone_name(ours, source)
    num_classes = len(ours["roi_heads.box_heads.0.scores.weight"]) - 1
    stages = count(ours, r"roi_heads\.box_heads\.(\d)\..+")
    groups = {"model": "detectron2", "model/backbone": backbone, "model/roi": "cascade" if stages > 1 else "standard"}
    settings = _backbone_settings(theirs, ours, backbone) | _anchor_settings(theirs, source) | head_settings(ours)
    if stages > 1:
        settings["rpn.post_nms_top_n_train"] = 2000
    fixed = settings["backbone.norm"] == "frozen_bn"
    for norm in [name.removesuffix("running_mean") for name in ours if name.endswith("running_mean")]:
        if not (fixed and norm.startswith("backbone.")):
            ours.setdefault(f"{norm}num_batches_tracked", torch.tensor(0))
    _put_background_first(ours, num_classes, source)
    return Weights(path, ours, coco_categories(num_classes), groups=groups, settings=settings)


def _put_background_first(state: State, num_classes: int, source: str) -> None:
    """In place: scores with the background in front; zeros for its boxes and its mask, which nothing reads."""
    for name, value in state.items():
        found = re.fullmatch(r"roi_heads\.(?:box_heads\.\d|mask_head)\.(scores|deltas|logits)\.(?:weight|bias)", name)
        if not found:
            continue
        rows = {"scores": (num_classes + 1,), "deltas": (4, num_classes * 4), "logits": (num_classes,)}[found[1]]
        if not num_classes or not value.dim() or len(value) not in rows:
            raise UserError(
                f"{source}: {name} is {list(value.shape)}, its rows are not the {rows[-1]} of {num_classes} classes"
            )
        if found[1] == "scores":
            state[name] = value.roll(1, dims=0)
        elif len(value) != 4 or found[1] == "logits":  # 4 are those of one box for all classes
            state[name] = torch.cat((torch.zeros_like(value[: len(value) // num_classes]), value))


def _backbone_settings(theirs: State, ours: State, backbone: str) -> Settings:
    """Pixels, strides and norms."""
    settings: Settings = {}
    later = backbone.startswith("resnext")
    std = _IMAGENET_STD if later else _NO_STD
    if "pixel_std" in theirs:
        std = _per_level(theirs["pixel_std"])
    if "pixel_mean" in theirs:
        settings["input.mean"] = _per_level(theirs["pixel_mean"])
        is_rgb = settings["input.mean"] == _IMAGENET_MEAN[::-1]
        settings["input.channel_order"] = "rgb" if is_rgb else "bgr"
    settings["input.std"] = std
    norm = norm_name(ours, "backbone.bn1")
    trained = any(re.fullmatch(r"backbone\..+\.num_batches_tracked|neck\..+\.running_mean", name) for name in ours)
    settings["backbone.norm"] = "frozen_bn" if norm == "bn" and not trained else norm
    if trained:
        settings["backbone.frozen_stages"] = 0
    settings["backbone.stride_in_1x1"] = (
        std == _NO_STD and norm == "bn" and not later and "backbone.layer1.0.conv3.weight" in ours
    )
    return settings


def _per_level(values: Tensor) -> list[float]:
    """Of pixels in 0..1 instead of 0..255."""
    return [float(f"{value / 255:.7g}") for value in values.flatten().tolist()]


def _anchor_settings(theirs: State, source: str) -> Settings:
    """Sizes and ratios of the anchors, which older files hold."""
    cells = [value for name, value in sorted(theirs.items()) if ".cell_anchors." in name]
    if not cells:
        return {}
    if any(cell.dim() != 2 or cell.shape[1] != 4 for cell in cells):
        raise UserError(f"{source}: has anchors of {[list(cell.shape) for cell in cells]}; upright boxes are read")
    sides = [cell[:, 2:] - cell[:, :2] for cell in cells]
    sizes = [side.prod(dim=1).sqrt().round(decimals=3).tolist() for side in sides]
    ratios = [(side[:, 1] / side[:, 0]).round(decimals=4).tolist() for side in sides]
    if any(len(set(level)) != 1 for level in sizes) or any(level != ratios[0] for level in ratios):
        raise UserError(f"{source}: has anchors of several sizes on a level, {sizes}; one size per level is read")
    return {"anchors.sizes": [level[0] for level in sizes], "anchors.ratios": ratios[0]}

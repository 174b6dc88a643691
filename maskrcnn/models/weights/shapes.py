"""What the shapes of a model's weights, in our names, tell about its settings."""

import re
from typing import Any

import torch
from torch import Tensor

from maskrcnn.errors import UserError

State = dict[str, Tensor]
Settings = dict[str, Any]

# (blocks of the stage of stride 16, channels of c2, conv2 of the first block) -> backbone
_BACKBONES = {
    (2, 64, (64, 64)): "resnet18",
    (6, 64, (64, 64)): "resnet34",
    (6, 256, (64, 64)): "resnet50",
    (23, 256, (64, 64)): "resnet101",
    (36, 256, (64, 64)): "resnet152",
    (6, 256, (128, 4)): "resnext50_32x4d",
    (23, 256, (256, 8)): "resnext101_32x8d",
    (6, 256, (128, 128)): "wide_resnet50_2",
    (23, 256, (128, 128)): "wide_resnet101_2",
}


def check_parts(ours: State, source: str) -> None:
    """Raise UserError, which opens with `source`, where these are not the weights of a Mask R-CNN with FPN."""
    for part, name, dims in (
        ("FPN", "neck.lateral.0.0.weight", 4),
        ("box head", "roi_heads.box_heads.0.scores.weight", 2),
        ("box head", "roi_heads.box_heads.0.deltas.weight", 2),
        ("mask head", "roi_heads.mask_head.logits.weight", 4),
    ):
        if name not in ours or ours[name].dim() != dims:
            raise UserError(f"{source}: has no {part}; Mask R-CNN on ResNet-FPN is read")


def backbone_name(ours: State, source: str) -> str:
    """Which backbone has these shapes; raises UserError, which opens with `source`, where none has."""
    blocks = count(ours, r"backbone\.layer3\.(\d+)\.conv1\.weight")
    first = ours.get("backbone.layer1.0.conv2.weight", torch.empty(0))
    shape = (blocks, ours["neck.lateral.0.0.weight"].shape[1], tuple(first.shape[:2]))
    if shape not in _BACKBONES:
        raise UserError(
            f"{source}: its backbone is none of {', '.join(_BACKBONES.values())}: {blocks} blocks of stride 16, "
            f"{shape[1]} channels of stride 4, which come from a convolution of {list(first.shape)}"
        )
    return _BACKBONES[shape]


def head_settings(ours: State) -> Settings:
    """Widths, depths and norms of the neck and the heads."""
    box, mask = "roi_heads.box_heads.0", "roi_heads.mask_head"
    settings: Settings = {
        "neck.out_channels": len(ours["neck.lateral.0.0.weight"]),
        "neck.bias": "neck.lateral.0.0.bias" in ours,
        "neck.norm": norm_name(ours, "neck.lateral.0.1"),
        "rpn.num_convs": count(ours, r"rpn\.convs\.(\d)\.weight"),
        "box_head.num_convs": count(ours, rf"{box}\.convs\.(\d)\.weight"),
        "box_head.norm": norm_name(ours, f"{box}.norms.0"),
        "box_head.num_fcs": count(ours, rf"{box}\.fc(\d)\.weight"),
        "box_head.hidden_dim": ours[f"{box}.scores.weight"].shape[1],
        "box_head.class_agnostic": len(ours[f"{box}.deltas.weight"]) == 4,
        "mask_head.num_convs": count(ours, rf"{mask}\.convs\.(\d)\.weight"),
        "mask_head.norm": norm_name(ours, f"{mask}.norms.0"),
        "mask_head.channels": ours[f"{mask}.logits.weight"].shape[1],
    }
    if settings["box_head.num_convs"]:
        settings["box_head.conv_channels"] = ours[f"{box}.convs.0.weight"].shape[:1].numel()
    return {key: value for key, value in settings.items() if value is not None}


def norm_name(ours: State, name: str) -> str | None:
    """`bn` or `gn`, None where there is no normalisation of this name."""
    if f"{name}.weight" not in ours:
        return None
    return "bn" if f"{name}.running_mean" in ours else "gn"


def count(ours: State, pattern: str) -> int:
    """Different values of the group in `pattern` among the names."""
    return len({found[1] for found in map(re.compile(pattern).fullmatch, ours) if found})

"""The files of github.com/liangheming/maskrcnn: its average, class-agnostic boxes, masks of the foreground alone."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskrcnn.models.weights.contents import NameTable, Weights, coco_categories, translate
from maskrcnn.models.weights.shapes import backbone_name, check_parts, head_settings

_NAMES: NameTable = [
    (r"backbone\.(.+)", r"backbone.\1"),
    (r"fpn\.latent_layers\.(\d)\.(weight|bias)", r"neck.lateral.\1.0.\2"),
    (r"fpn\.out_layers\.(\d)\.(weight|bias)", r"neck.output.\1.0.\2"),
    (r"rpn\.rpn_head\.conv\.(weight|bias)", r"rpn.convs.0.\1"),
    (r"rpn\.rpn_head\.cls\.(weight|bias)", r"rpn.objectness.\1"),
    (r"rpn\.rpn_head\.box\.(weight|bias)", r"rpn.deltas.\1"),
    (r"roi_head\.box_head\.fc6\.(weight|bias)", r"roi_heads.box_heads.0.fc1.\1"),
    (r"roi_head\.box_head\.fc7\.(weight|bias)", r"roi_heads.box_heads.0.fc2.\1"),
    (r"roi_head\.box_head\.cls\.(weight|bias)", r"roi_heads.box_heads.0.scores.\1"),
    (r"roi_head\.box_head\.bbox\.(weight|bias)", r"roi_heads.box_heads.0.deltas.\1"),
    *(  # ReLUs count too
        (rf"roi_head\.mask_head\.conv_list\.{2 * i}\.(weight|bias)", rf"roi_heads.mask_head.convs.{i}.\1")
        for i in range(4)
    ),
    (r"roi_head\.mask_head\.conv_list\.8\.(weight|bias)", r"roi_heads.mask_head.upsample.\1"),
    (r"roi_head\.mask_head\.conv_list\.10\.(weight|bias)", r"roi_heads.mask_head.logits.\1"),
]
_LOGITS = "roi_heads.mask_head.logits"


def read_original(path: Path, content: dict[str, Any], key: str) -> Weights | None:
    """The weights in our names; None where `content`, read from `path`, is of another kind."""
    state = content.get("ema")
    if not isinstance(state, dict) or "roi_head.mask_head.conv_list.10.weight" not in state:
        return None
    source = f"{key}={path}, a model of liangheming/maskrcnn"
    state = translate(state, _NAMES, source=source)
    check_parts(state, source)
    for name in (f"{_LOGITS}.weight", f"{_LOGITS}.bias"):
        foreground: Tensor = state[name]
        state[name] = torch.cat((torch.zeros_like(foreground[:1]), foreground))  # it has no mask of the background
    groups = {"model": "original", "model/backbone": backbone_name(state, source)}
    categories = coco_categories(len(state[f"{_LOGITS}.bias"]) - 1)
    return Weights(path, state, categories, groups=groups, settings=head_settings(state))

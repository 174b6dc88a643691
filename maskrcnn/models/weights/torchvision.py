"""State dicts of torchvision's `maskrcnn_resnet50_fpn` and `maskrcnn_resnet50_fpn_v2`."""

import hashlib
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from maskrcnn.models.weights.contents import NameTable, Weights, numbered_categories, translate

# torchvision switches the BatchNorm epsilon off for exactly this published file.
_COCO_V1_SHA256 = "bf2d0c1e"

# Both models, with the names from before torchvision 0.14 as they stand in the published file of the first.
_NAMES: NameTable = [
    (r"backbone\.body\.(.+)", r"backbone.\1"),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.(?:0\.)?(weight|bias)", r"neck.lateral.\1.0.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.(?:0\.)?(weight|bias)", r"neck.output.\1.0.\2"),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.1\.(.+)", r"neck.lateral.\1.1.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.1\.(.+)", r"neck.output.\1.1.\2"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.convs.0.\1"),
    (r"rpn\.head\.conv\.(\d)\.0\.(weight|bias)", r"rpn.convs.\1.\2"),
    (r"rpn\.head\.cls_logits\.(weight|bias)", r"rpn.objectness.\1"),
    (r"rpn\.head\.bbox_pred\.(weight|bias)", r"rpn.deltas.\1"),
    (r"roi_heads\.box_head\.fc6\.(weight|bias)", r"roi_heads.box_heads.0.fc1.\1"),
    (r"roi_heads\.box_head\.fc7\.(weight|bias)", r"roi_heads.box_heads.0.fc2.\1"),
    (r"roi_heads\.box_head\.([0-3])\.0\.weight", r"roi_heads.box_heads.0.convs.\1.weight"),
    (r"roi_heads\.box_head\.([0-3])\.1\.(.+)", r"roi_heads.box_heads.0.norms.\1.\2"),
    (r"roi_heads\.box_head\.5\.(weight|bias)", r"roi_heads.box_heads.0.fc1.\1"),
    (r"roi_heads\.box_predictor\.cls_score\.(weight|bias)", r"roi_heads.box_heads.0.scores.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(weight|bias)", r"roi_heads.box_heads.0.deltas.\1"),
    (r"roi_heads\.mask_head\.(\d)\.0\.(weight|bias)", r"roi_heads.mask_head.convs.\1.\2"),
    (r"roi_heads\.mask_head\.(\d)\.1\.(.+)", r"roi_heads.mask_head.norms.\1.\2"),
    *(
        (rf"roi_heads\.mask_head\.mask_fcn{i + 1}\.(weight|bias)", rf"roi_heads.mask_head.convs.{i}.\1")
        for i in range(4)
    ),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(weight|bias)", r"roi_heads.mask_head.upsample.\1"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(weight|bias)", r"roi_heads.mask_head.logits.\1"),
]
# The first model's frozen BatchNorm counts nothing; a copy that was trained with another one does.
_UNCOUNTED: NameTable = [(r".+\.num_batches_tracked", "")]


def read_torchvision(path: Path, content: dict[str, Any], key: str) -> Weights | None:
    """The weights in our names; None where `content`, read from `path`, is of another kind."""
    state: dict[str, Tensor] = content["model"] if isinstance(content.get("model"), dict) else content
    if "roi_heads.box_predictor.cls_score.weight" not in state:
        return None
    second = "backbone.fpn.inner_blocks.0.1.weight" in state  # normalisation in the neck and heads
    name = "maskrcnn_resnet50_fpn_v2" if second else "maskrcnn_resnet50_fpn"
    table = _NAMES if second else [*_UNCOUNTED, *_NAMES]
    state = translate(state, table, source=f"{key}={path}, torchvision's {name}")
    num_classes = len(state["roi_heads.box_heads.0.scores.weight"]) - 1
    names = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    if num_classes == len(names) - 1:
        categories = [{"id": label, "name": names[label]} for label in range(1, num_classes + 1)]
    else:
        categories = numbered_categories(num_classes)
    settings: dict[str, Any] = {}
    if hashlib.sha256(path.read_bytes()).hexdigest().startswith(_COCO_V1_SHA256):
        settings["backbone.norm_eps"] = 0.0
    return Weights(
        path, state, categories, groups={"model": "torchvision_v2" if second else "torchvision"}, settings=settings
    )

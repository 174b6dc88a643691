"""What travels in an exported file beside the network: JSON by key, so that no second file is needed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskrcnn.errors import UserError
from maskrcnn.models.mask_rcnn import MaskRCNN

VERSION = 1

INPUTS = ("images", "sizes")
OUTPUTS = ("boxes", "labels", "scores", "mask_probs", "image_index")

INTERFACE = (
    "images: float32 [batch, 3, height, width], RGB in 0..255. Resize each picture by `input` (short side min_size, "
    "long side at most max_size), put it into the top left of a canvas whose sides are multiples of size_divisor; "
    "the rest may hold anything. A torch.export program wants sides above 64. "
    "sizes: int64 [batch, 2], height and width of each resized picture. With `letterbox`, first put the resized "
    "picture into the top left of a square of that RGB colour, whose side is the next multiple of size_divisor: it "
    "counts as the resized picture, and boxes may reach beyond the picture in it. "
    "boxes: float32 [detections, 4], x1 y1 x2 y2 in pixels of the resized picture, of all pictures in their order, "
    "best first. labels: int64 [detections], 1 for the first of `categories`. scores: float32 [detections]. "
    "mask_probs: float32 [detections, M, M], the share of the mask in its box, cut at masks.threshold. "
    "image_index: int64 [detections], the picture each belongs to, from 0."
)


def make_metadata(
    model: MaskRCNN, categories: list[dict[str, Any]], config: Mapping[str, Any], *, precision: str
) -> dict[str, str]:
    """Key -> JSON.

    Args:
        model: The network.
        categories: {"id", "name"} of each label 1..K.
        config: Plain; its `model` and `data` travel along, the latter as defaults for evaluation.
        precision: `fp32` or `fp16`.
    """
    expected = model.input
    content = {
        "version": VERSION,
        "interface": INTERFACE,
        "categories": categories,
        "input": {
            "min_size": expected.min_size,
            "max_size": expected.max_size,
            "resize": expected.resize,
            "size_divisor": expected.size_divisor,
            "letterbox": None if expected.letterbox is None else expected.letterbox.flatten().tolist(),
        },
        # The network does this itself.
        "normalization": {
            "channel_order": expected.channel_order,
            "mean": [round(value, 6) for value in expected.mean.flatten().tolist()],  # float32 has 7 digits
            "std": [round(value, 6) for value in expected.std.flatten().tolist()],
        },
        "masks": {"paste": model.paste, "threshold": 0.5},
        "precision": precision,
        "model": config["model"],
        "data": config["data"],
    }
    return {key: json.dumps(value) for key, value in content.items()}


def read_metadata(content: Mapping[str, str], path: Path) -> dict[str, Any]:
    """The values again.

    Raises:
        UserError: The file is not one of this project, or one of another version.
    """
    if "interface" not in content or "categories" not in content:
        raise UserError(f"ckpt={path}: was not written by python -m maskrcnn.export, it does not say what it expects")
    values = {key: json.loads(value) for key, value in content.items()}
    if values["version"] != VERSION:
        raise UserError(
            f"ckpt={path}: is of version {values['version']}, this program reads {VERSION}; export the model again"
        )
    return values

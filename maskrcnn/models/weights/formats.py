"""Which of the known kinds a weight file is."""

from pathlib import Path
from typing import Any

from maskrcnn.errors import UserError
from maskrcnn.models.weights.contents import Weights
from maskrcnn.models.weights.detectron2 import read_detectron2
from maskrcnn.models.weights.files import load_file
from maskrcnn.models.weights.original import read_original
from maskrcnn.models.weights.torchvision import read_torchvision

# Where our checkpoints keep what is ours, beside Lightning's own entries.
CHECKPOINT_KEY = "maskrcnn"
_MODULE_PREFIX = "model."


def read_weights(path: str | Path, *, key: str = "ckpt") -> Weights:
    """Read a checkpoint of ours, or another project's weights; the readers of its kinds say which.

    Args:
        path: The file.
        key: The config key that named it, for messages.

    Raises:
        UserError: The file is missing, is not a checkpoint, or holds weights of no known kind.
    """
    path = Path(path).expanduser()
    content = load_file(path, key)
    if isinstance(content, dict):
        for read in (_read_ours, read_detectron2, read_torchvision, read_original):
            weights = read(path, content, key)
            if weights is not None:
                return weights
    raise UserError(
        f"{key}={path}: holds no Mask R-CNN weights that are known here; "
        "give a checkpoint of this project, a state dict of torchvision's maskrcnn_resnet50_fpn or _v2, a Mask R-CNN "
        "of detectron2 (.pkl, .pth) or a file of liangheming/maskrcnn"
    )


def _read_ours(path: Path, content: dict[str, Any], key: str) -> Weights | None:
    ours = content.get(CHECKPOINT_KEY)
    if not isinstance(ours, dict):
        return None
    if not isinstance(content.get("state_dict"), dict) or not {"categories", "config"} <= set(ours):
        raise UserError(f"{key}={path}: a checkpoint of this project that lacks its weights, categories or config")
    state = {
        name.removeprefix(_MODULE_PREFIX): value
        for name, value in content["state_dict"].items()
        if name.startswith(_MODULE_PREFIX)
    }
    return Weights(path, state, ours["categories"], ours["config"])

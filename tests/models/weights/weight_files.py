"""Weight files to read in tests."""

from pathlib import Path
from typing import Any

import torch

from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.models.weights import CHECKPOINT_KEY


def saved(content: Any, path: Path) -> Path:
    """Write `content` and return where it is."""
    torch.save(content, path)
    return path


def checkpoint(model: MaskRCNN, names: list[str], path: Path) -> Path:
    """A checkpoint of ours of a model with classes of these names."""
    content = {
        CHECKPOINT_KEY: {
            "categories": [{"id": i, "name": name} for i, name in enumerate(names, start=1)],
            "config": {},
        },
        "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()},
    }
    return saved(content, path)

"""Files of tensors, read as tensors and plain types alone: nothing in them can run code."""

import pickle
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskrcnn.errors import UserError


def load_file(path: Path, key: str, *, mmap: bool = False) -> Any:
    """What `torch.save` wrote, or a `.safetensors` file: tensors and plain types alone.

    Args:
        path: The file.
        key: The config key that named it, for messages.
        mmap: Leave the tensors on the disk until they are used.

    Raises:
        UserError: The file is missing, is not a checkpoint, or is damaged.
    """
    if not path.is_file():
        raise UserError(f"{key}={path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return _load_safetensors(path, key)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:
        raise UserError(
            f"{key}={path}: not a checkpoint, or one that holds more than tensors and plain types; "
            "such a file could run code and is not read"
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError, KeyError, IndexError, AttributeError, UnicodeDecodeError) as e:
        reason = (str(e) or type(e).__name__).splitlines()[0][:100]
        raise UserError(f"{key}={path}: not a checkpoint, or a damaged one ({reason})") from None


def _load_safetensors(path: Path, key: str) -> dict[str, Tensor]:
    if find_spec("safetensors") is None:
        raise UserError(f"{key}={path}: safetensors is not installed; pip install 'maskrcnn-lightning[timm]'")
    try:
        return import_module("safetensors.torch").load_file(path)
    except import_module("safetensors").SafetensorError as error:
        raise ValueError(error) from None

"""Files of tensors, read as tensors and plain types alone: nothing in them can run code."""

import pickle
from collections import OrderedDict
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskrcnn.errors import UserError


def load_file(path: Path, key: str, *, mmap: bool = False) -> Any:
    """What `torch.save` wrote, a `.safetensors` file, or a `.pkl` of arrays: tensors and plain types alone.

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
        if path.suffix == ".pkl":
            return _load_arrays(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:
        raise UserError(
            f"{key}={path}: not a checkpoint, or one that holds more than tensors and plain types; "
            "such a file could run code and is not read"
        ) from None
    except (
        RuntimeError,
        EOFError,
        ValueError,
        TypeError,
        OSError,
        LookupError,
        AttributeError,
        MemoryError,
        OverflowError,
    ) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:100]
        raise UserError(f"{key}={path}: not a checkpoint, or a damaged one ({reason})") from None


def _load_safetensors(path: Path, key: str) -> dict[str, Tensor]:
    if find_spec("safetensors") is None:
        raise UserError(f"{key}={path}: safetensors is not installed; pip install 'maskrcnn-lightning[timm]'")
    try:
        return import_module("safetensors.torch").load_file(path)
    except import_module("safetensors").SafetensorError as error:
        raise ValueError(error) from None


def _latin1(text: str, encoding: str) -> bytes:
    """How pickles before protocol 3 spell bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes as {encoding}")
    return text.encode(encoding)


_reconstruct = np.empty(1).__reduce__()[0]
_frombuffer = np.empty(1).__reduce_ex__(5)[0]
_scalar = np.float32(0).__reduce__()[0]

# All that a pickle may name; numpy moved core to _core in version 2.
_ALLOWED = {
    ("_codecs", "encode"): _latin1,
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
}


class _ArrayUnpickler(pickle.Unpickler):
    """Makes arrays and plain types; refuses whatever else a pickle asks for."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not an array") from None


def _load_arrays(path: Path) -> Any:
    with path.open("rb") as file:
        return _as_tensors(_ArrayUnpickler(file, encoding="latin1").load())


def _as_tensors(value: Any) -> Any:
    """The same with tensors for arrays, in nested dicts."""
    if isinstance(value, dict):
        return {name: _as_tensors(entry) for name, entry in value.items()}
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind not in "biuf":
        raise pickle.UnpicklingError(f"an array of {value.dtype}")
    return torch.from_numpy(value.copy())  # what pickle gives is read-only

"""Mask R-CNN for instance segmentation, trained with PyTorch Lightning and configured with Hydra.

For programs: `load("best.ckpt").predict("photo.jpg")`, see `maskrcnn.predict.predictor`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskrcnn.predict.predictor import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """`load`, imported when it is first used, with torch and all: the package itself imports in no time."""
    if name in __all__:
        return getattr(import_module("maskrcnn.predict.predictor"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

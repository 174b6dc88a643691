"""Weights from files: our checkpoints, other projects' Mask R-CNN, ImageNet backbones."""

from maskrcnn.models.weights.contents import Weights
from maskrcnn.models.weights.files import load_file
from maskrcnn.models.weights.formats import CHECKPOINT_KEY, read_weights
from maskrcnn.models.weights.imagenet import load_backbone_weights
from maskrcnn.models.weights.settings import Differences, differing_settings
from maskrcnn.models.weights.transfer import Transfer, init_weights, load_weights

__all__ = [
    "CHECKPOINT_KEY",
    "Differences",
    "Transfer",
    "Weights",
    "differing_settings",
    "init_weights",
    "load_backbone_weights",
    "load_file",
    "load_weights",
    "read_weights",
]

"""Backbones: from pictures to maps of growing stride.

in   [B, 3, H, W], normalised, H and W multiples of 32
out  list of [B, C_i, H / 2^i, W / 2^i], i = 2..5 (c2..c5)
"""

from maskrcnn.models.backbones.mobilenet import MobileNet
from maskrcnn.models.backbones.resnet import ResNet
from maskrcnn.models.backbones.timm_network import Timm

__all__ = ["MobileNet", "ResNet", "Timm"]

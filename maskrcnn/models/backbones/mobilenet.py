"""MobileNet V2 and V3: an eighth of the computation of a ResNet-50 and less.

in   [B, 3, H, W]
out  list of [B, C_i, H / 2^i, W / 2^i], i = 2..5 (c2..c5)
"""

from itertools import pairwise
from typing import Literal

import torchvision
from torch import nn

from maskrcnn.models.backbones.norms import norm_layer
from maskrcnn.models.backbones.stages import Backbone, Layers
from maskrcnn.models.weights import load_backbone_weights

# What torchvision trained them with: eps and momentum of BatchNorm.
_NORMS = {
    "mobilenet_v2": (1e-5, 0.1),
    "mobilenet_v3_large": (1e-3, 0.01),
    "mobilenet_v3_small": (1e-3, 0.01),
}


class MobileNet(Backbone):
    """MobileNet V2 (Sandler et al. 2018) or V3 (Howard et al. 2019) without its classifier.

    Each of c2..c5 is the last map of its stride; c5 is what the classifier pools.

    Args:
        name: The network in torchvision: `mobilenet_v2`, `mobilenet_v3_large` or `mobilenet_v3_small`.
        weights: `default` for torchvision's best ImageNet weights, a state-dict file, or null for random ones.
        norm: `bn`, `frozen_bn` (fixed statistics and affine, for small batches) or `gn`.
        norm_eps: Added to the variance by the normalisation; null for what the ImageNet weights were trained with,
            1e-5 in V2, 1e-3 in V3.
        frozen_stages: How many of stem, stage 2, ... 5 get no gradient, counted from the stem.
        gradient_checkpointing: Compute stages 2..5 a second time in the backward pass instead of keeping their
            activations (Chen et al. 2016): less memory, the same numbers, about a third more time.

    Attributes:
        out_channels: Channels of c2..c5.
    """

    def __init__(
        self,
        *,
        name: Literal["mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"] = "mobilenet_v2",
        weights: str | None = "default",
        norm: Literal["bn", "frozen_bn", "gn"] = "bn",
        norm_eps: float | None = None,
        frozen_stages: int = 0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if name not in _NORMS:
            raise ValueError(f"name must be one of {', '.join(_NORMS)}, got {name!r}")
        eps, momentum = _NORMS[name]
        norms = norm_layer(norm, eps=eps if norm_eps is None else norm_eps, momentum=momentum)
        self.features: nn.Sequential = torchvision.models.get_model(name, weights=None, norm_layer=norms).features
        halving = [index for index, layer in enumerate(self.features) if _halves(layer)]
        self._bounds = list(pairwise([0, *halving[1:], len(self.features)]))
        self.out_channels = [layers[-1].out_channels for layers in self.layers()[1:]]  # type: ignore[misc]
        self.gradient_checkpointing = gradient_checkpointing
        if weights is not None:
            load_backbone_weights(self, name=name, weights=weights)
        self.freeze(frozen_stages)

    def layers(self) -> list[Layers]:
        """Layers of the stem and of stages 2..5, in the order they are applied."""
        layers = list(self.features)
        return [layers[first:end] for first, end in self._bounds]


def _halves(layer: nn.Module) -> bool:
    return any(isinstance(module, nn.Conv2d) and module.stride[0] == 2 for module in layer.modules())

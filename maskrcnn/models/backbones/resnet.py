"""ResNet and its relatives: ResNeXt, Wide ResNet, each with squeeze-and-excitation or without.

in   [B, 3, H, W]
out  list of [B, C_i, H / 2^i, W / 2^i], i = 2..5 (c2..c5)
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import SqueezeExcitation

from maskrcnn.models.backbones.norms import norm_layer
from maskrcnn.models.backbones.stages import Backbone, Layers
from maskrcnn.models.weights import load_backbone_weights

_REDUCTION = 16  # Hu et al. 2018, section 6.1
# All gates start at 1 / (1 + e^-4) = 0.98: with ImageNet weights a block is nearly what it was without them.
_OPEN = 4.0


class _SEBasicBlock(BasicBlock):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        channels = self.conv2.out_channels
        self.se = SqueezeExcitation(channels, channels // _REDUCTION)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(shortcut + self.se(self.bn2(self.conv2(x))))


class _SEBottleneck(Bottleneck):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        channels = self.conv3.out_channels
        self.se = SqueezeExcitation(channels, channels // _REDUCTION)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(shortcut + self.se(self.bn3(self.conv3(x))))


@dataclass(frozen=True)
class _Shape:
    """Blocks of each stage, and how wide they are."""

    blocks: list[int]
    bottleneck: bool = True
    width: dict[str, int] = field(default_factory=dict)


_SHAPES = {
    "resnet18": _Shape([2, 2, 2, 2], bottleneck=False),
    "resnet34": _Shape([3, 4, 6, 3], bottleneck=False),
    "resnet50": _Shape([3, 4, 6, 3]),
    "resnet101": _Shape([3, 4, 23, 3]),
    "resnet152": _Shape([3, 8, 36, 3]),
    "resnext50_32x4d": _Shape([3, 4, 6, 3], width={"groups": 32, "width_per_group": 4}),
    "resnext101_32x8d": _Shape([3, 4, 23, 3], width={"groups": 32, "width_per_group": 8}),
    "wide_resnet50_2": _Shape([3, 4, 6, 3], width={"width_per_group": 128}),
    "wide_resnet101_2": _Shape([3, 4, 23, 3], width={"width_per_group": 128}),
}


class ResNet(Backbone):
    """ResNet (He et al. 2016), ResNeXt (Xie et al. 2017) or Wide ResNet (Zagoruyko 2016) without its classifier.

    Args:
        name: The network in torchvision: `resnet18`, `resnet34`, `resnet50`, `resnet101`, `resnet152`,
            `resnext50_32x4d`, `resnext101_32x8d`, `wide_resnet50_2` or `wide_resnet101_2`.
        weights: `default` for torchvision's best ImageNet weights, a state-dict file, or null for random ones.
        norm: `bn`, `frozen_bn` (fixed statistics and affine, for small batches) or `gn`.
        norm_eps: Added to the variance by the normalisation.
        squeeze_excitation: Weigh the channels at the end of each residual branch (Hu et al. 2018, figure 3). Files
            without these parts load too; the gates then start almost open.
        stride_in_1x1: Halve the maps in the first 1 x 1 convolution of a stage, as He et al. did and detectron2's
            models do, instead of in its 3 x 3; bottleneck blocks alone have the choice.
        frozen_stages: How many of stem, stage 2, ... 5 get no gradient, counted from the stem.
        gradient_checkpointing: Compute stages 2..5 a second time in the backward pass instead of keeping their
            activations (Chen et al. 2016): less memory, the same numbers, about a third more time.

    Attributes:
        out_channels: Channels of c2..c5.
    """

    def __init__(
        self,
        *,
        name: Literal[
            "resnet18",
            "resnet34",
            "resnet50",
            "resnet101",
            "resnet152",
            "resnext50_32x4d",
            "resnext101_32x8d",
            "wide_resnet50_2",
            "wide_resnet101_2",
        ] = "resnet50",
        weights: str | None = "default",
        norm: Literal["bn", "frozen_bn", "gn"] = "bn",
        norm_eps: float = 1e-5,
        squeeze_excitation: bool = False,
        stride_in_1x1: bool = False,
        frozen_stages: int = 0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if name not in _SHAPES:
            raise ValueError(f"name must be one of {', '.join(_SHAPES)}, got {name!r}")
        shape = _SHAPES[name]
        if stride_in_1x1 and not shape.bottleneck:
            raise ValueError(f"stride_in_1x1 must be false for {name}: its blocks have no 1 x 1 convolution")
        plain, gated = (Bottleneck, _SEBottleneck) if shape.bottleneck else (BasicBlock, _SEBasicBlock)
        body = torchvision.models.ResNet(
            gated if squeeze_excitation else plain,
            shape.blocks,
            norm_layer=norm_layer(norm, eps=norm_eps),
            **shape.width,
        )
        for gate in (module for module in body.modules() if isinstance(module, SqueezeExcitation)):
            nn.init.normal_(gate.fc2.weight, std=0.01)
            nn.init.constant_(gate.fc2.bias, _OPEN)
        self.conv1, self.bn1, self.relu, self.maxpool = body.conv1, body.bn1, body.relu, body.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = body.layer1, body.layer2, body.layer3, body.layer4
        if stride_in_1x1:
            for stage in (self.layer2, self.layer3, self.layer4):
                stage[0].conv1.stride, stage[0].conv2.stride = stage[0].conv2.stride, stage[0].conv1.stride
        self.out_channels = [
            stage[-1].conv1.in_channels for stage in (self.layer1, self.layer2, self.layer3, self.layer4)
        ]
        self.gradient_checkpointing = gradient_checkpointing
        if weights is not None:
            load_backbone_weights(self, name=name, weights=weights, optional=r".*\.se\..*")
        self.freeze(frozen_stages)

    def layers(self) -> list[Layers]:
        """Layers of the stem and of stages 2..5, in the order they are applied."""
        stem = [self.conv1, self.bn1, self.relu, self.maxpool]
        return [stem, [self.layer1], [self.layer2], [self.layer3], [self.layer4]]

"""Backbones: from pictures to maps of growing stride.

in   [B, 3, H, W], normalised
out  list of [B, C_i, H / 2^i, W / 2^i], i = 2..5 (c2..c5)
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Literal

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import FrozenBatchNorm2d

from maskrcnn.models.weights import load_backbone_weights


class ResNet(nn.Module):
    """ResNet (He et al. 2016) without its classifier.

    Args:
        name: The network in torchvision: `resnet50` or `resnet18`.
        weights: `default` for torchvision's best ImageNet weights, a state-dict file, or null for random ones.
        norm: `bn`, `frozen_bn` (fixed statistics and affine, for small batches) or `gn`.
        norm_eps: Added to the variance by the normalisation.
        frozen_stages: How many of stem, stage 2, ... 5 get no gradient, counted from the stem.
        gradient_checkpointing: Compute stages 2..5 a second time in the backward pass instead of keeping their
            activations (Chen et al. 2016): less memory, the same numbers, about a third more time.

    Attributes:
        out_channels: Channels of c2..c5.
    """

    def __init__(
        self,
        *,
        name: Literal["resnet18", "resnet50"] = "resnet50",
        weights: str | None = "default",
        norm: Literal["bn", "frozen_bn", "gn"] = "bn",
        norm_eps: float = 1e-5,
        frozen_stages: int = 0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if name not in ("resnet18", "resnet50"):
            raise ValueError(f"name must be resnet18 or resnet50, got {name!r}")
        if not 0 <= frozen_stages <= 5:
            raise ValueError(f"frozen_stages must be between 0 and 5, got {frozen_stages}")
        body = torchvision.models.get_model(name, weights=None, norm_layer=_norm_layer(norm, norm_eps))
        if weights is not None:
            load_backbone_weights(body, name=name, weights=weights)
        self.conv1, self.bn1, self.relu, self.maxpool = body.conv1, body.bn1, body.relu, body.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = body.layer1, body.layer2, body.layer3, body.layer4
        self.out_channels = [
            stage[-1].conv1.in_channels for stage in (self.layer1, self.layer2, self.layer3, self.layer4)
        ]
        self.gradient_checkpointing = gradient_checkpointing
        for stage in self.stages[:frozen_stages]:
            stage.requires_grad_(False)

    @property
    def stages(self) -> list[nn.Module]:
        """Stem and stages 2..5."""
        stem = nn.ModuleList([self.conv1, self.bn1])
        return [stem, self.layer1, self.layer2, self.layer3, self.layer4]

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Maps c2..c5, finest first."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(pixels))))
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(stage, x, use_reentrant=False, context_fn=partial(_first_and_second_time, stage))
            else:
                x = stage(x)
            features.append(x)
        return features


def _first_and_second_time(stage: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), _without_running_statistics(stage)


@contextmanager
def _without_running_statistics(stage: nn.Module) -> Iterator[None]:
    """They have seen this batch already."""
    norms = [m for m in stage.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    counters = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    counted = [counter.clone() for counter in counters]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for counter, count in zip(counters, counted, strict=True):
            counter.copy_(count)


def _norm_layer(norm: str, eps: float) -> Callable[[int], nn.Module]:
    if norm == "bn":
        return partial(nn.BatchNorm2d, eps=eps)
    if norm == "frozen_bn":
        return partial(FrozenBatchNorm2d, eps=eps)
    if norm == "gn":
        return lambda channels: nn.GroupNorm(32, channels, eps=eps)
    raise ValueError(f"norm must be bn, frozen_bn or gn, got {norm!r}")

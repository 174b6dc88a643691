"""What all backbones have in common: a stem and four stages, frozen from the stem on, computed once or twice.

in   [B, 3, H, W]
out  list of [B, C_i, H / 2^i, W / 2^i], i = 2..5 (c2..c5)
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Layers = list[nn.Module]


class Backbone(nn.Module):
    """A network that is a row of layers: those of the stem, then those of stages 2..5.

    Attributes:
        out_channels: Channels of c2..c5.
        gradient_checkpointing: Compute stages 2..5 a second time in the backward pass instead of keeping their
            activations (Chen et al. 2016): less memory, the same numbers, about a third more time.
    """

    out_channels: list[int]
    gradient_checkpointing: bool = False

    def layers(self) -> list[Layers]:
        """Layers of the stem and of stages 2..5, in the order they are applied."""
        raise NotImplementedError

    @property
    def stages(self) -> list[nn.ModuleList]:
        """Stem and stages 2..5."""
        return [nn.ModuleList(layers) for layers in self.layers()]

    def freeze(self, frozen_stages: int) -> None:
        """Give the first of stem, stage 2, ... 5 no gradient.

        Raises:
            ValueError: There are not so many.
        """
        if not 0 <= frozen_stages <= 5:
            raise ValueError(f"frozen_stages must be between 0 and 5, got {frozen_stages}")
        for stage in self.stages[:frozen_stages]:
            stage.requires_grad_(False)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Maps c2..c5, finest first."""
        stem, *stages = self.layers()
        x = _run(stem, pixels)
        features = []
        for layers in stages:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(_run, layers, x, use_reentrant=False, context_fn=partial(_first_and_second_time, layers))
            else:
                x = _run(layers, x)
            features.append(x)
        return features


def _run(layers: Layers, x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _first_and_second_time(layers: Layers) -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), _without_running_statistics(layers)


@contextmanager
def _without_running_statistics(layers: Iterable[nn.Module]) -> Iterator[None]:
    """They have seen this batch already."""
    norms = [m for layer in layers for m in layer.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
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

"""The normalisations that a backbone can be built with."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d

from maskrcnn.models.layers import group_norm


class FrozenBatchNorm2d(TorchvisionFrozenBatchNorm2d):
    """torchvision's, in the precision of the maps: there bfloat16 becomes float32.

    Args:
        num_features: Channels.
        eps: Added to the variance.
        inplace: Write into the maps that it is given, which nothing else may read then.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, *, inplace: bool = False) -> None:
        super().__init__(num_features, eps)
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        scale, shift = (one.to(x.dtype)[:, None, None] for one in (scale, shift))
        # Unlike F.batch_norm this keeps nothing for the backward pass.
        return (x.mul_(scale) if self.inplace else x * scale).add_(shift)


def norm_layer(norm: str, *, eps: float, momentum: float = 0.1) -> Callable[[int], nn.Module]:
    """From a number of channels to their normalisation.

    Args:
        norm: `bn`, `frozen_bn` or `gn`.
        eps: Added to the variance.
        momentum: The part of each batch in the running statistics of `bn`.

    Raises:
        ValueError: There is no such normalisation.
    """
    if norm == "bn":
        return partial(nn.BatchNorm2d, eps=eps, momentum=momentum)
    if norm == "frozen_bn":
        return partial(FrozenBatchNorm2d, eps=eps, inplace=True)  # torchvision's networks have it behind convolutions
    if norm == "gn":
        return partial(group_norm, eps=eps)
    raise ValueError(f"norm must be bn, frozen_bn or gn, got {norm!r}")

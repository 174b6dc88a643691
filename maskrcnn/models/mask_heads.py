"""The mask head: which pixels of a RoI are the object's (Mask R-CNN, section 3).

R RoIs, C channels, K classes, M mask resolution
x            pooled maps [R, C, M / 2, M / 2]
mask_logits  [R, K + 1, M, M]
"""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn.models.layers import NormName, make_norm, normalize
from maskrcnn.ops.masks import PASTE_RULES


class MaskHead(nn.Module):
    """Convolutions, one doubling of the resolution, and a mask per class (Mask R-CNN, figure 4, right).

    Args:
        in_channels: Channels of the features, from the neck.
        num_classes: Foreground classes.
        resolution: Side of the pooled map; the mask is twice as large.
        num_convs: 3 x 3 convolutions before the doubling.
        channels: Their width.
        norm: Normalisation after each of them, which then has no bias: `bn`, `gn` or null.
        paste: How a mask is laid into the picture: `torchvision`, `detectron2` or `original`, see `ops.masks`.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        resolution: int = 14,
        num_convs: int = 4,
        channels: int = 256,
        norm: NormName | None = None,
        paste: str = "torchvision",
    ) -> None:
        super().__init__()
        if paste not in PASTE_RULES:
            raise ValueError(f"paste must be one of {', '.join(PASTE_RULES)}, got {paste!r}")
        for key, value, least in (("num_convs", num_convs, 0), ("channels", channels, 1)):
            if value < least:
                raise ValueError(f"{key} must be at least {least}, got {value}")
        self.resolution = resolution
        self.paste = paste
        widths = [in_channels] + [channels] * num_convs
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=norm is None) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(make_norm(norm, channels) for _ in self.convs)
        self.upsample = nn.ConvTranspose2d(widths[-1], channels, 2, stride=2)
        self.logits = nn.Conv2d(channels, num_classes + 1, 1)
        for layer in (*self.convs, self.upsample, self.logits):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Pooled maps [R, C, resolution, resolution] -> mask_logits [R, K + 1, M, M], M = 2 * resolution."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu_(normalize(norm, conv(x)))
        return self.logits(F.relu_(self.upsample(x)))

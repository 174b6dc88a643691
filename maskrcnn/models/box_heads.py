"""The box head: which class a RoI holds, and where its box really is (Fast R-CNN, section 2.1).

R RoIs, C channels, K classes
x       pooled maps [R, C, resolution, resolution]
scores  logits [R, K + 1], background first
deltas  [R, (K + 1) * 4] per class, or [R, 4] class-agnostic
"""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn.models.layers import NormName, make_norm, normalize
from maskrcnn.models.losses import BoxLossName, BoxLossNormalizer, check_box_loss


class BoxHead(nn.Module):
    """Convolutions, then fully connected layers, then class scores and box deltas.

    Two fully connected layers are FPN's head (Lin et al. 2017, section 4.2); four convolutions and one such
    layer are the `4conv1fc` of Wu and He 2018, section 4.2.

    Args:
        in_channels: Channels of the features, from the neck.
        num_classes: Foreground classes.
        resolution: Side of the pooled map.
        num_convs: 3 x 3 convolutions.
        conv_channels: Their width.
        norm: Normalisation after each convolution, which then has no bias: `bn`, `gn` or null.
        num_fcs: Fully connected layers.
        hidden_dim: Their width.
        class_agnostic: One box for all classes instead of one per class.
        box_loss: `l1`, `smooth_l1`, `iou`, `giou`, `diou` or `ciou`.
        box_loss_normalizer: Its sum is divided by the number of all `sampled` or of the `positive` RoIs.
        smooth_l1_beta: Where smooth L1 turns from quadratic to linear.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        resolution: int = 7,
        num_convs: int = 0,
        conv_channels: int = 256,
        norm: NormName | None = None,
        num_fcs: int = 2,
        hidden_dim: int = 1024,
        class_agnostic: bool = False,
        box_loss: BoxLossName = "smooth_l1",
        box_loss_normalizer: BoxLossNormalizer = "sampled",
        smooth_l1_beta: float = 1 / 9,
    ) -> None:
        super().__init__()
        check_box_loss(box_loss, box_loss_normalizer)
        for key, value, least in (
            ("num_convs", num_convs, 0),
            ("conv_channels", conv_channels, 1),
            ("num_fcs", num_fcs, 1),
            ("hidden_dim", hidden_dim, 1),
        ):
            if value < least:
                raise ValueError(f"{key} must be at least {least}, got {value}")
        self.resolution = resolution
        self.class_agnostic = class_agnostic
        self.box_loss = box_loss
        self.box_loss_normalizer = box_loss_normalizer
        self.smooth_l1_beta = smooth_l1_beta
        maps = [in_channels] + [conv_channels] * num_convs
        convs = [nn.Conv2d(a, b, 3, padding=1, bias=norm is None) for a, b in pairwise(maps)]
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(make_norm(norm, conv_channels) for _ in convs)
        widths = [maps[-1] * resolution**2] + [hidden_dim] * num_fcs
        self._fc_names = [f"fc{i}" for i in range(1, num_fcs + 1)]
        for name, (a, b) in zip(self._fc_names, pairwise(widths), strict=True):
            self.add_module(name, nn.Linear(a, b))
        self.scores = nn.Linear(hidden_dim, num_classes + 1)
        self.deltas = nn.Linear(hidden_dim, 4 if class_agnostic else (num_classes + 1) * 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled maps [R, C, resolution, resolution] -> scores [R, K + 1], deltas [R, (K + 1) * 4 or 4]."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu_(normalize(norm, conv(x)))
        x = x.flatten(1)
        for name in self._fc_names:
            x = F.relu_(getattr(self, name)(x))
        return self.scores(x).float(), self.deltas(x).float()

"""Box regression losses.

deltas      float [N, 4], what the network predicts
references  float [N, 4], the anchors or proposals that the deltas refer to
boxes       float [N, 4], the ground truth
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from maskrcnn.ops.boxes import decode_boxes, encode_boxes

BoxLossName = Literal["l1", "smooth_l1", "iou", "giou", "diou", "ciou"]
# What the sum of the box losses is divided by: all sampled references (Faster R-CNN, Fast R-CNN), or those alone
# that have a box, which gives the IoU losses, at most 2 each, the weight of the classification loss.
BoxLossNormalizer = Literal["sampled", "positive"]

_EPSILON = 1e-7  # keeps what vanishes from dividing


def iou_loss(predicted: Tensor, boxes: Tensor) -> Tensor:
    """1 - IoU of box pairs [N, 4], [N, 4] -> [N]."""
    return 1 - _iou(predicted, boxes)[0]


def giou_loss(predicted: Tensor, boxes: Tensor) -> Tensor:
    """GIoU loss of box pairs [N, 4], [N, 4] -> [N]; torchvision's, but for its selection of pairs that overlap.

    That makes the host wait for an accelerator.
    """
    iou, union = _iou(predicted, boxes)
    hull = _area(_hull(predicted, boxes))
    return 1 - (iou - (hull - union) / (hull + _EPSILON))


def diou_loss(predicted: Tensor, boxes: Tensor) -> Tensor:
    """DIoU loss of box pairs [N, 4], [N, 4] -> [N]; torchvision's in the same sense."""
    hull = _hull(predicted, boxes)
    diagonal = (hull[:, 2:] - hull[:, :2]).square().sum(dim=1) + _EPSILON
    centres = [(one[:, 2:] + one[:, :2]) / 2 for one in (predicted, boxes)]
    distance = (centres[0] - centres[1]).square().sum(dim=1)
    return 1 - _iou(predicted, boxes)[0] + distance / diagonal


def ciou_loss(predicted: Tensor, boxes: Tensor) -> Tensor:
    """CIoU loss of box pairs [N, 4], [N, 4] -> [N]; finite, unlike torchvision's, for boxes without sides."""
    difference = _aspect_angle(boxes) - _aspect_angle(predicted)
    aspect = 4 / math.pi**2 * difference**2
    with torch.no_grad():
        weight = aspect / (iou_loss(predicted, boxes) + aspect + _EPSILON)
    return diou_loss(predicted, boxes) + weight * aspect


def _iou(predicted: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and union [N] of box pairs."""
    width, height = (torch.minimum(predicted[:, 2:], boxes[:, 2:]) - torch.maximum(predicted[:, :2], boxes[:, :2])).T
    intersection = torch.where((width > 0) & (height > 0), width * height, 0)
    union = _area(predicted) + _area(boxes) - intersection
    return intersection / (union + _EPSILON), union


def _hull(predicted: Tensor, boxes: Tensor) -> Tensor:
    """The smallest box [N, 4] around both of a pair."""
    return torch.cat((torch.minimum(predicted, boxes)[:, :2], torch.maximum(predicted, boxes)[:, 2:]), dim=1)


def _aspect_angle(boxes: Tensor) -> Tensor:
    """The arc tangent of width / height."""
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6)
    return torch.atan2(sides[:, 0], sides[:, 1])


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


# IoU; GIoU (Rezatofighi et al. 2019, eq. 1); DIoU and CIoU (Zheng et al. 2020, eqs. 7 and 10).
_IOU_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "iou": iou_loss,
    "giou": giou_loss,
    "diou": diou_loss,
    "ciou": ciou_loss,
}


def check_box_loss(name: str, normalizer: str) -> None:
    """Raise ValueError where `name` is not a box loss, or `normalizer` none of its normalizers."""
    if name not in get_args(BoxLossName):
        raise ValueError(f"box_loss must be one of {', '.join(get_args(BoxLossName))}, got {name!r}")
    if normalizer not in get_args(BoxLossNormalizer):
        raise ValueError(f"box_loss_normalizer must be sampled or positive, got {normalizer!r}")


def check_coder_weights(weights: Sequence[float]) -> None:
    """Raise ValueError where `weights` are not scales of dx, dy, dw, dh."""
    if len(weights) != 4 or min(weights) <= 0:
        raise ValueError(f"coder_weights must be four positive numbers, got {list(weights)}")


def box_regression_loss(
    name: BoxLossName,
    deltas: Tensor,
    *,
    references: Tensor,
    boxes: Tensor,
    weights: Sequence[float],
    beta: float,
    real: Tensor | None = None,
) -> Tensor:
    """Sum over N of the loss `name`, in float32.

    `l1` and `smooth_l1` (Fast R-CNN, eq. 3, quadratic below `beta`) compare deltas; the IoU family compares the
    decoded boxes. Where `real`, bool [N], is False, a row has no loss and no gradient, whatever its boxes are.
    """
    deltas = deltas.float()
    if real is not None:
        deltas = torch.where(real[:, None], deltas, 0)
    if name in ("l1", "smooth_l1"):
        target = encode_boxes(boxes, references, weights)
        beta = beta if name == "smooth_l1" else 0.0
        loss = F.smooth_l1_loss(deltas, target, beta=beta, reduction="none").sum(dim=1)
    else:
        loss = _IOU_LOSSES[name](decode_boxes(deltas, references, weights), boxes)
    return (loss if real is None else torch.where(real, loss, 0)).sum()

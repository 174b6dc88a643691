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
from torchvision.ops import distance_box_iou_loss, generalized_box_iou_loss

from maskrcnn.ops.boxes import decode_boxes, encode_boxes

BoxLossName = Literal["l1", "smooth_l1", "iou", "giou", "diou", "ciou"]
# What the sum of the box losses is divided by: all sampled references (Faster R-CNN, Fast R-CNN), or those alone
# that have a box, which gives the IoU losses, at most 2 each, the weight of the classification loss.
BoxLossNormalizer = Literal["sampled", "positive"]


def iou_loss(predicted: Tensor, boxes: Tensor) -> Tensor:
    """1 - IoU of box pairs [N, 4], [N, 4] -> [N]."""
    overlap = (torch.minimum(predicted[:, 2:], boxes[:, 2:]) - torch.maximum(predicted[:, :2], boxes[:, :2])).clamp(
        min=0
    )
    intersection = overlap.prod(dim=1)
    union = _area(predicted) + _area(boxes) - intersection
    return 1 - intersection / (union + 1e-7)


def ciou_loss(predicted: Tensor, boxes: Tensor) -> Tensor:
    """CIoU loss of box pairs [N, 4], [N, 4] -> [N]; finite, unlike torchvision's, for boxes without sides."""
    difference = _aspect_angle(boxes) - _aspect_angle(predicted)
    aspect = 4 / math.pi**2 * difference**2
    with torch.no_grad():
        weight = aspect / (iou_loss(predicted, boxes) + aspect + 1e-7)
    return distance_box_iou_loss(predicted, boxes) + weight * aspect


def _aspect_angle(boxes: Tensor) -> Tensor:
    """The arc tangent of width / height."""
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6)
    return torch.atan2(sides[:, 0], sides[:, 1])


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


# IoU; GIoU (Rezatofighi et al. 2019, eq. 1); DIoU and CIoU (Zheng et al. 2020, eqs. 7 and 10).
_IOU_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "iou": iou_loss,
    "giou": generalized_box_iou_loss,
    "diou": distance_box_iou_loss,
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
) -> Tensor:
    """Sum over N of the loss `name`, in float32.

    `l1` and `smooth_l1` (Fast R-CNN, eq. 3, quadratic below `beta`) compare deltas; the IoU family compares the
    decoded boxes.
    """
    deltas = deltas.float()
    if name in ("l1", "smooth_l1"):
        target = encode_boxes(boxes, references, weights)
        return F.smooth_l1_loss(deltas, target, beta=beta if name == "smooth_l1" else 0.0, reduction="sum")
    return _IOU_LOSSES[name](decode_boxes(deltas, references, weights), boxes).sum()

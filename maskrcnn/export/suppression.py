"""Non-maximum suppression of many groups of boxes at once, in a form that can be exported.

G groups, C classes that share their boxes, N boxes
boxes   float32 [G, N, 4]
scores  float32 [G, C, N]
kept    bool [G, C, N]
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms

# boxes, scores, iou_thresh, score_thresh -> kept
Suppress = Callable[[Tensor, Tensor, float, float], Tensor]


def suppress(boxes: Tensor, scores: Tensor, iou_thresh: float, score_thresh: float) -> Tensor:
    """Which boxes are left, [G, C, N]: scored above `score_thresh`, and no better one of their class overlaps them.

    All groups go through one call, moved so far apart that none meets another; float64 keeps every digit then.

    Args:
        boxes: [G, N, 4], without negative corners.
        scores: [G, C, N].
        iou_thresh: IoU above which the lower-scored of two boxes is dropped.
        score_thresh: Boxes with this score or a lower one are dropped.
    """
    chosen = torch.where(scores.flatten() > score_thresh)[0]
    place, index = chosen // scores.shape[2], chosen % scores.shape[2]
    side = boxes.amax().double() + 1
    moved = boxes[place // scores.shape[1], index].double() + (place * side)[:, None]
    # Two boxes more than there are, apart from all others: torch.export takes it that at least two are left.
    apart = moved.new_tensor([[-2, -2, -1, -1], [-4, -4, -3, -3]])
    count = scores.numel()
    chosen = torch.cat((chosen, count + torch.arange(2, device=boxes.device)))
    ranks = torch.cat((scores.flatten(), scores.new_zeros(2)))[chosen].double()
    left = nms(torch.cat((moved, apart)), ranks, iou_thresh)
    kept = torch.zeros(count + 2, dtype=torch.bool, device=boxes.device)
    return kept.index_put((chosen[left],), kept.new_ones(()))[:count].view(scores.shape)


suppress_op = torch.library.custom_op("maskrcnn::suppress", suppress, mutates_args=())
suppress_op.register_fake(lambda boxes, scores, iou_thresh, score_thresh: torch.empty_like(scores, dtype=torch.bool))


def onnx_translations() -> dict[Any, Any]:
    """What ONNX's exporter makes of `suppress_op`: the operator of the standard, which knows groups and classes."""
    op: Any = import_module("onnxscript").opset18

    def translate(boxes: Any, scores: Any, iou_thresh: float, score_thresh: float) -> Any:
        found = op.NonMaxSuppression(
            boxes,
            scores,
            op.Constant(value_int=torch.iinfo(torch.int32).max),
            op.Constant(value_float=iou_thresh),
            op.Constant(value_float=score_thresh),
        )  # [M, 3]: group, class, index
        group = op.Squeeze(op.Slice(found, [0], [1], [1]), [1])
        return op.ScatterND(op.Less(scores, scores), found, op.Equal(group, group))  # true into all that is false

    return {torch.ops.maskrcnn.suppress.default: translate}

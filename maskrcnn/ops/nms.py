"""Non-maximum suppression of many groups of boxes.

G groups, N boxes of each
boxes   float32 [G, N, 4]
scores  float32 [G, N], -inf where there is no box
kept    bool [G, N]
"""

import torch
from torch import Tensor
from torchvision.ops import box_iou, nms

from maskrcnn.ops.slots import waits

# Overlaps are computed in pieces of this many pairs: each takes 100 bytes on the way.
_CHUNK_PAIRS = 2**24
# Rounds before the host asks whether they were enough. It takes as many as the longest chain of boxes has in which each
# decides about the next: 4 to 10 among 2,000 anchors of a level and a network with random weights.
_ROUNDS = 16


def suppress(boxes: Tensor, scores: Tensor, iou_thresh: float) -> Tensor:
    """Which boxes are left, [G, N]: no better one of their group that is left overlaps them.

    Args:
        boxes: [G, N, 4].
        scores: [G, N].
        iou_thresh: IoU above which the lower-scored of two boxes is dropped.
    """
    if waits(boxes):
        return suppress_in_rounds(boxes, scores, iou_thresh)
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for left, box, score in zip(kept, boxes, scores, strict=True):
        present = (score > -torch.inf).nonzero()[:, 0]
        left[present[nms(box[present], score[present], iou_thresh)]] = True
    return kept


def suppress_in_rounds(boxes: Tensor, scores: Tensor, iou_thresh: float) -> Tensor:
    """The same for accelerators, all groups and boxes at once, where the host waits once for all of them.

    In each round a box is left unless one that was left in the round before overlaps it and is better. The best box of
    a group is right at once, each other one a round after those that overlap it; when a round changes nothing, all are.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    present = scores.gather(1, order) > -torch.inf
    ranked = boxes.gather(1, order[..., None].expand_as(boxes))
    groups, count = scores.shape
    overlapped = boxes.new_empty(groups, count, count, dtype=torch.bool)  # box i by the better box j
    size = max(1, _CHUNK_PAIRS // max(1, count**2))
    for part, chunk in zip(overlapped.split(size), ranked.split(size), strict=True):
        part.copy_((box_iou(chunk, chunk) > iou_thresh).tril_(-1))
    left = present
    while True:
        for _ in range(_ROUNDS):
            before = left
            left = present & ~(overlapped & before[:, None]).any(dim=2)
        if torch.equal(before, left):
            return torch.zeros_like(left).scatter(1, order, left)

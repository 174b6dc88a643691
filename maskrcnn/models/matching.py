"""Which prediction answers for which ground-truth box, and which of them a loss sees.

Example, 3 anchors and 2 boxes with thresholds 0.3 and 0.7:

    IoU       anchor 0  anchor 1  anchor 2
    box 0        0.8       0.5       0.1
    box 1        0.2       0.6       0.2
    match         0    BETWEEN    BELOW        low-quality matches off
    match         0         1     BELOW        low-quality matches on: anchor 1 is the best of box 1
"""

import torch
from torch import Tensor
from torchvision.ops import box_iou

BELOW = -1
BETWEEN = -2

# IoU matrices are computed in pieces of this many entries (64 MB): 500 boxes x 250,000 anchors at once
# would be 500 MB for the matrix and several times that on the way to it.
_CHUNK_ENTRIES = 2**24


class Matcher:
    """Assigns each reference box (anchor, proposal) to a ground-truth box by IoU (Faster R-CNN, section 3.1.2).

    Args:
        high_threshold: IoU from which a reference is a positive.
        low_threshold: IoU below which a reference is a negative; in between it is neither.
        allow_low_quality: The references that overlap a ground-truth box most are positives whatever
            their IoU, so that no box goes without one.
    """

    def __init__(
        self, *, high_threshold: float = 0.5, low_threshold: float = 0.5, allow_low_quality: bool = False
    ) -> None:
        if not 0 <= low_threshold <= high_threshold <= 1:
            raise ValueError(
                "low_threshold and high_threshold must satisfy 0 <= low <= high <= 1, "
                f"got {low_threshold} and {high_threshold}"
            )
        self.high_threshold = high_threshold
        self.low_threshold = low_threshold
        self.allow_low_quality = allow_low_quality

    def __call__(self, boxes: Tensor, references: Tensor) -> Tensor:
        """Index of the matched box for each reference, or BELOW, or BETWEEN.

        Args:
            boxes: [G, 4] ground truth, may be empty.
            references: [N, 4].

        Returns:
            int64 [N].
        """
        if len(boxes) == 0:
            return references.new_full((len(references),), BELOW, dtype=torch.int64)
        chunks = references.split(max(1, _CHUNK_ENTRIES // len(boxes)))
        ious = [box_iou(boxes, chunk) for chunk in chunks] if len(chunks) == 1 else None

        best_of_reference, nearest, best_of_box = [], [], boxes.new_zeros(len(boxes))
        for i, chunk in enumerate(chunks):
            iou = ious[i] if ious else box_iou(boxes, chunk)
            values, indices = iou.max(dim=0)
            best_of_reference.append(values)
            nearest.append(indices)
            if iou.shape[1]:
                best_of_box = torch.maximum(best_of_box, iou.max(dim=1).values)

        best, match = torch.cat(best_of_reference), torch.cat(nearest)
        result = torch.where(best < self.low_threshold, BELOW, torch.where(best < self.high_threshold, BETWEEN, match))
        if self.allow_low_quality:
            # A box that overlaps nothing has no best reference: its "best" of 0 would match them all.
            target = torch.where(best_of_box > 0, best_of_box, torch.inf)[:, None]
            is_best = [
                ((ious[i] if ious else box_iou(boxes, chunk)) == target).any(dim=0) for i, chunk in enumerate(chunks)
            ]
            result = torch.where(torch.cat(is_best), match, result)
        return result


class BalancedSampler:
    """Draws the references that enter a loss: at most a fraction of positives, the rest negatives.

    Args:
        batch_size_per_image: How many references are drawn from an image.
        positive_fraction: The largest share of positives among them; negatives fill up what is missing.
    """

    def __init__(self, *, batch_size_per_image: int = 512, positive_fraction: float = 0.25) -> None:
        if batch_size_per_image < 1:
            raise ValueError(f"batch_size_per_image must be at least 1, got {batch_size_per_image}")
        if not 0 < positive_fraction <= 1:
            raise ValueError(f"positive_fraction must be in (0, 1], got {positive_fraction}")
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction

    def __call__(self, match: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of the drawn positives and negatives among `match` [N], the output of a Matcher."""
        positive = torch.where(match >= 0)[0]
        negative = torch.where(match == BELOW)[0]
        num_positive = min(len(positive), int(self.batch_size_per_image * self.positive_fraction))
        num_negative = min(len(negative), self.batch_size_per_image - num_positive)
        return _draw(positive, num_positive), _draw(negative, num_negative)


def _draw(candidates: Tensor, count: int) -> Tensor:
    return candidates[torch.randperm(len(candidates), device=candidates.device)[:count]]

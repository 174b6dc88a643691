"""Which prediction answers for which ground-truth box, and which of them a loss sees.

Example, 3 anchors and 2 boxes with thresholds 0.3 and 0.7:

    IoU       anchor 0  anchor 1  anchor 2
    box 0        0.8       0.5       0.1
    box 1        0.2       0.6       0.2
    match         0    BETWEEN    BELOW        low-quality matches off
    match         0         1     BELOW        low-quality matches on: anchor 1 is the best of box 1
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
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

    @property
    def max_positives(self) -> int:
        """The most positives of an image; they are the first of what is drawn."""
        return int(self.batch_size_per_image * self.positive_fraction)

    def __call__(self, match: Tensor) -> tuple[Tensor, Tensor]:
        """Draw from each image, without waiting for how many there are to draw from.

        Args:
            match: [B, N], the output of a Matcher for each image.

        Returns:
            index int64 [B, S], positives first, S = min(`batch_size_per_image`, N); and bool [B, S], False where the
            image has no more to draw from.
        """
        key = torch.rand(match.shape, device=match.device)
        best = torch.where(match >= 0, key, -1.0).topk(min(self.max_positives, match.shape[1]), dim=1)
        # Those positives before all negatives, and the other ones, as what is neither, behind.
        rank = torch.where(match == BELOW, key, -1.0)
        rank.scatter_reduce_(1, best.indices, torch.where(best.values >= 0, best.values + 1, -1.0), "amax")
        drawn = rank.topk(min(self.batch_size_per_image, match.shape[1]), dim=1)
        return drawn.indices, drawn.values >= 0


def match_batch(matcher: Matcher, boxes: Sequence[Tensor], references: Sequence[Tensor]) -> Tensor:
    """Match each image's references to its boxes, and number the boxes through the batch.

    Args:
        matcher: Matches those of an image.
        boxes: B x [G_i, 4] ground truth.
        references: B x [N_i, 4].

    Returns:
        int64 [B, N], N the largest N_i: the matched box from 1 on, or BELOW, or BETWEEN, which also fills up.
    """
    first, matches = 1, []
    for own, reference in zip(boxes, references, strict=True):
        match = matcher(own, reference)
        matches.append(torch.where(match >= 0, match + first, match))
        first += len(own)
    return pad_sequence(matches, batch_first=True, padding_value=BETWEEN)


def numbered(boxes: Sequence[Tensor]) -> Tensor:
    """The boxes [1 + sum G_i, 4] that `match_batch` numbers; box 0, one pixel at the origin, stands for no match."""
    none = F.pad(boxes[0].new_zeros(1, 2), (0, 2), value=1.0)  # it has an area, so that losses can be computed
    return torch.cat((none, *boxes))

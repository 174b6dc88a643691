import pytest
import torch
from torch import Tensor
from torchvision.ops import nms

from maskrcnn.ops import nms as module
from maskrcnn.ops.nms import suppress, suppress_in_rounds


def crowd(groups: int, count: int) -> tuple[Tensor, Tensor]:
    """Boxes that overlap a lot, with scores of which some are equal and a fifth are none."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(groups, count, 2, generator=generator) * 60
    boxes = torch.cat((corner, corner + 5 + torch.rand(groups, count, 2, generator=generator) * 40), dim=2)
    scores = torch.randint(0, 500, (groups, count), generator=generator).float()
    return boxes, scores.masked_fill(torch.rand(groups, count, generator=generator) < 0.2, -torch.inf)


def reference(boxes: Tensor, scores: Tensor, iou_thresh: float) -> Tensor:
    """Group by group, by torchvision."""
    kept = torch.zeros(scores.shape, dtype=torch.bool)
    for left, box, score in zip(kept, boxes, scores, strict=True):
        present = torch.where(score > -torch.inf)[0]
        left[present[nms(box[present], score[present], iou_thresh)]] = True
    return kept


@pytest.mark.parametrize("iou_thresh", [0.1, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("chunk_pairs", [1, 70_000, 2**24])
def test_rounds_leave_what_torchvision_leaves(
    monkeypatch: pytest.MonkeyPatch, iou_thresh: float, chunk_pairs: int
) -> None:
    monkeypatch.setattr(module, "_CHUNK_PAIRS", chunk_pairs)
    boxes, scores = crowd(5, 150)
    expected = reference(boxes, scores, iou_thresh)
    assert torch.equal(suppress_in_rounds(boxes, scores, iou_thresh), expected)
    assert torch.equal(suppress(boxes, scores, iou_thresh), expected)
    assert expected.any(dim=1).all()


@pytest.mark.parametrize("rounds", [1, 2, 16])
def test_a_long_chain_takes_as_many_rounds_as_it_has_boxes(monkeypatch: pytest.MonkeyPatch, rounds: int) -> None:
    """Each box overlaps its neighbours alone: the first is left, the second dropped, the third left, ..."""
    monkeypatch.setattr(module, "_ROUNDS", rounds)
    left = torch.arange(61.0)[:, None] * 6
    boxes = torch.cat((left, torch.zeros_like(left), left + 10, torch.ones_like(left)), dim=1)[None]
    kept = suppress_in_rounds(boxes, -left.T, 0.2)
    assert kept.flatten().tolist() == [i % 2 == 0 for i in range(61)]


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (1, 1)])
def test_few_boxes_or_none(shape: tuple[int, int]) -> None:
    boxes, scores = torch.rand(*shape, 4), torch.rand(shape)
    assert torch.equal(suppress_in_rounds(boxes, scores, 0.5), torch.ones(shape, dtype=torch.bool))
    assert torch.equal(suppress(boxes, scores, 0.5), torch.ones(shape, dtype=torch.bool))

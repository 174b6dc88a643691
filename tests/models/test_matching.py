from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import Matcher as TorchvisionMatcher
from torchvision.ops import box_iou

from maskrcnn.models import matching
from maskrcnn.models.matching import BELOW, BETWEEN, BalancedSampler, Matcher


def random_boxes(count: int, generator: torch.Generator, *, cells: int) -> Tensor:
    """Boxes on a coarse grid, so that IoUs tie now and then."""
    corner = torch.randint(0, cells, (count, 2), generator=generator)
    side = torch.randint(1, cells, (count, 2), generator=generator)
    return torch.cat((corner, corner + side), dim=1).float() * 10


def iou_table(rows: list[list[float]], monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """Boxes and references whose IoUs are `rows`; a reference is known by its first coordinate."""
    table = torch.tensor(rows)
    monkeypatch.setattr(matching, "box_iou", lambda boxes, chunk: table[:, chunk[:, 0].long()])
    references = torch.arange(table.shape[1], dtype=torch.float32)[:, None].expand(-1, 4)
    return torch.zeros(len(table), 4), references


def test_the_example_of_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, anchors = iou_table([[0.8, 0.5, 0.1], [0.2, 0.6, 0.2]], monkeypatch)
    off = Matcher(high_threshold=0.7, low_threshold=0.3)
    on = Matcher(high_threshold=0.7, low_threshold=0.3, allow_low_quality=True)
    assert off(boxes, anchors).tolist() == [0, BETWEEN, BELOW]
    assert on(boxes, anchors).tolist() == [0, 1, BELOW]


def test_thresholds_are_inclusive_above(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, anchors = iou_table([[0.75, 0.7499, 0.25, 0.2499, 0.0]], monkeypatch)
    matcher = Matcher(high_threshold=0.75, low_threshold=0.25)
    assert matcher(boxes, anchors).tolist() == [0, BETWEEN, BETWEEN, BELOW, BELOW]


def test_low_quality_matches_all_ties_but_to_their_own_best_box(monkeypatch: pytest.MonkeyPatch) -> None:
    # Anchors 0 and 1 are both the best of box 0, but anchor 1 overlaps box 1 more.
    boxes, anchors = iou_table([[0.2, 0.2, 0.1, 0.0], [0.1, 0.25, 0.28, 0.0]], monkeypatch)
    matcher = Matcher(high_threshold=0.7, low_threshold=0.3, allow_low_quality=True)
    assert matcher(boxes, anchors).tolist() == [0, 1, 1, BELOW]


@pytest.mark.parametrize("chunk_entries", [1, 64, 1000, 2**24])
@pytest.mark.parametrize("low_quality", [False, True])
@settings(deadline=None, derandomize=True, max_examples=20)
@given(
    seed=st.integers(0, 2**31),
    num_boxes=st.integers(1, 20),
    thresholds=st.sampled_from([(0.7, 0.3), (0.5, 0.5), (0.2, 0.0)]),
)
def test_matches_equal_torchvision_in_chunks_of_any_size(
    chunk_entries: int, low_quality: bool, seed: int, num_boxes: int, thresholds: tuple[float, float]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(num_boxes, generator, cells=8)
    references = torch.cat((random_boxes(40, generator, cells=8), boxes[:3]))
    theirs = TorchvisionMatcher(*thresholds, allow_low_quality_matches=low_quality)
    iou = box_iou(boxes, references)
    # Where a box overlaps nothing, torchvision takes every reference for its best one.
    assume(not low_quality or (iou.max(dim=1).values > 0).all())
    ours = Matcher(high_threshold=thresholds[0], low_threshold=thresholds[1], allow_low_quality=low_quality)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "_CHUNK_ENTRIES", chunk_entries)
        found = ours(boxes, references)
    assert torch.equal(found, theirs(iou))
    assert (found >= 0).any() or not low_quality


def test_chunks_bound_the_size_of_the_iou_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = []

    def counted(boxes: Tensor, chunk: Tensor) -> Tensor:
        entries.append(len(boxes) * len(chunk))
        return box_iou(boxes, chunk)

    monkeypatch.setattr(matching, "box_iou", counted)
    monkeypatch.setattr(matching, "_CHUNK_ENTRIES", 100)
    generator = torch.Generator().manual_seed(0)
    boxes, references = random_boxes(7, generator, cells=8), random_boxes(200, generator, cells=8)
    Matcher(allow_low_quality=True)(boxes, references)
    assert max(entries) <= 100
    assert sum(entries) >= 7 * 200


@pytest.mark.parametrize("low_quality", [False, True])
def test_without_boxes_everything_is_below(low_quality: bool) -> None:
    found = Matcher(allow_low_quality=low_quality)(torch.zeros(0, 4), torch.rand(5, 4))
    assert found.dtype == torch.int64
    assert found.tolist() == [BELOW] * 5


@pytest.mark.parametrize("low_quality", [False, True])
def test_without_references_there_are_no_matches(low_quality: bool) -> None:
    found = Matcher(allow_low_quality=low_quality)(torch.tensor([[0.0, 0, 5, 5]]), torch.zeros(0, 4))
    assert found.tolist() == []


def test_a_box_that_overlaps_nothing_makes_no_positives() -> None:
    boxes = torch.tensor([[1000.0, 1000, 1010, 1010], [0.0, 0, 10, 10]])
    references = torch.tensor([[0.0, 0, 10, 5], [20.0, 20, 30, 30], [40.0, 0, 50, 9]])
    matcher = Matcher(high_threshold=0.7, low_threshold=0.3, allow_low_quality=True)
    assert matcher(boxes, references).tolist() == [1, BELOW, BELOW]
    assert matcher(boxes[:1], references).tolist() == [BELOW] * 3


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [
        (100, 100, (16, 48)),  # a quarter positives
        (5, 100, (5, 59)),  # negatives fill up
        (0, 100, (0, 64)),
        (100, 10, (16, 10)),  # positives never pass their share
        (3, 4, (3, 4)),
        (0, 0, (0, 0)),
    ],
)
def test_sampler_counts(positives: int, negatives: int, expected: tuple[int, int]) -> None:
    match = torch.cat((torch.arange(positives), torch.full((negatives,), BELOW), torch.full((30,), BETWEEN)))
    match = match[torch.randperm(len(match), generator=torch.Generator().manual_seed(0))]
    sampler = BalancedSampler(batch_size_per_image=64, positive_fraction=0.25)
    other = torch.full_like(match, BETWEEN)  # a picture with nothing to draw
    (index, _), (filled, nothing) = sampler(torch.stack((match, other)))
    assert not nothing.any()
    index = index[filled]
    drawn = match[index]
    assert ((drawn >= 0).sum(), (drawn == BELOW).sum()) == expected
    assert (drawn >= 0).tolist() == [True] * expected[0] + [False] * expected[1]  # positives first
    assert filled.tolist() == [True] * len(index) + [False] * (len(filled) - len(index))
    assert len(index.unique()) == len(index) == sum(expected)


def test_sampler_draws_evenly_and_anew() -> None:
    torch.manual_seed(0)
    match = torch.cat((torch.zeros(40, dtype=torch.int64), torch.full((40,), BELOW)))
    sampler = BalancedSampler(batch_size_per_image=20, positive_fraction=0.5)
    drawn = torch.zeros(80)
    for _ in range(400):
        index, filled = sampler(match[None])
        drawn[index[filled]] += 1
    # Each of the 80 is drawn with probability 1/4: 100 times, standard deviation 8.7.
    assert drawn.sum() == 400 * 20
    assert drawn.min() > 60
    assert drawn.max() < 140


@pytest.mark.parametrize(
    ("cls", "name", "arguments"),
    [
        (Matcher, "low_threshold", {"low_threshold": 0.6}),
        (Matcher, "low_threshold", {"low_threshold": -0.1}),
        (Matcher, "high_threshold", {"high_threshold": 1.1}),
        (BalancedSampler, "batch_size_per_image", {"batch_size_per_image": 0}),
        (BalancedSampler, "positive_fraction", {"positive_fraction": 0.0}),
        (BalancedSampler, "positive_fraction", {"positive_fraction": 1.5}),
    ],
)
def test_invalid_arguments_are_named(cls: type, name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=name):
        cls(**arguments)

from collections.abc import Callable

import torch

from maskrcnn.ops.slots import occupied, put_back, trimmed

FILLED = torch.tensor([[False, True, True, False], [True, False, False, False]])


def test_a_cpu_sees_the_filled_slots_alone() -> None:
    index, real = occupied(FILLED)
    assert index.tolist() == [1, 2, 4]
    assert real.all()
    assert occupied(torch.zeros(3, dtype=torch.bool))[0].tolist() == []


def test_an_accelerator_sees_as_many_as_there_are_slots(as_on_accelerator: Callable[[], None]) -> None:
    as_on_accelerator()
    index, real = occupied(FILLED)
    assert index.tolist() == [1, 2, 4, 1, 2, 4, 1, 2]
    assert real.tolist() == [True] * 3 + [False] * 5
    for count in (0, 1, 3):
        index, real = occupied(torch.zeros(count, dtype=torch.bool))
        assert index.tolist() == [0] * count
        assert not real.any()
        index, real = occupied(torch.ones(count, dtype=torch.bool))
        assert index.tolist() == list(range(count))
        assert real.all()


def test_values_find_back_to_their_slots(as_on_accelerator: Callable[[], None]) -> None:
    values = torch.arange(16.0).view(8, 2)
    expected = torch.where(FILLED[..., None], values.view(2, 4, 2), 0)
    for _ in range(2):
        assert torch.equal(put_back(values[occupied(FILLED)[0]], FILLED), expected)
        empty = torch.zeros_like(FILLED)
        assert torch.equal(put_back(values[occupied(empty)[0]], empty), torch.zeros(2, 4, 2))
        as_on_accelerator()


def test_values_of_each_picture_without_its_empty_slots() -> None:
    values = torch.arange(8.0).view(2, 4, 1)
    assert [one.flatten().tolist() for one in trimmed(values, FILLED)] == [[1, 2], [4]]


def test_values_of_each_picture_with_zeros_in_its_empty_slots(as_on_accelerator: Callable[[], None]) -> None:
    as_on_accelerator()
    values = torch.arange(8.0).view(2, 4, 1)
    assert [one.flatten().tolist() for one in trimmed(values, FILLED)] == [[0, 1, 2, 0], [4, 0, 0, 0]]

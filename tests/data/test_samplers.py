"""The order of pictures is a function of seed and epoch; ranks deal it among themselves."""

from collections import Counter

import numpy as np
import pytest

from maskrcnn.data.samplers import EpochSampler, dealt_batches, repeat_factors


def ranks(num_images, *, world_size=1, batch_size=2, epoch=0, seed=3, **settings):
    """What each rank draws in an epoch."""
    samplers = [
        EpochSampler(num_images, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size, **settings)
        for rank in range(world_size)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    parts = [list(sampler) for sampler in samplers]
    assert {len(sampler) for sampler in samplers} == {len(part) for part in parts}
    assert {key[0] for part in parts for key in part} == {epoch}
    return parts


def order(num_images, **settings):
    """Indices in the order of the steps, all ranks together."""
    return [index for step in zip(*ranks(num_images, **settings), strict=True) for _, index in step]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_images", [1, 7, 24, 25])
def test_ranks_draw_disjoint_shares_that_cover_the_set(num_images, world_size):
    drawn = order(num_images, world_size=world_size, epoch=5)
    assert len(drawn) % (2 * world_size) == 0
    assert len(drawn) < num_images + 2 * world_size
    assert sorted(drawn[:num_images]) == list(range(num_images))  # none twice before all came once


@pytest.mark.parametrize("settings", [{}, {"repeats": np.linspace(1, 3, 25)}, {"portrait": np.arange(25) % 3 == 0}])
def test_order_follows_from_seed_and_epoch(settings):
    first = ranks(25, world_size=2, epoch=5, **settings)
    assert first == ranks(25, world_size=2, epoch=5, **settings)
    assert first != ranks(25, world_size=2, epoch=6, **settings)
    assert first != ranks(25, world_size=2, epoch=5, seed=4, **settings)


def test_iterating_changes_nothing():
    sampler = EpochSampler(9, batch_size=2, seed=0, rank=0, world_size=1)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(7)
    sampler.set_epoch(0)
    assert list(sampler) == first


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 12), (2, 6), (3, 4), (4, 3)])
def test_global_batches_do_not_depend_on_how_they_are_shared(world_size, batch_size):
    assert order(50, world_size=world_size, batch_size=batch_size) == order(50, batch_size=12)


# --- upright and wide


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("upright", [0, 1, 5, 13, 30, 31])
def test_global_batches_are_of_one_kind_but_one(world_size, upright):
    portrait = np.random.default_rng(0).permutation(np.arange(31) < upright)
    size = 2 * world_size
    for epoch in range(5):
        grouped = order(31, world_size=world_size, epoch=epoch, portrait=portrait)
        batches = portrait[np.array(grouped).reshape(-1, size)]
        mixed = batches.any(axis=1) & ~batches.all(axis=1)
        assert mixed.sum() <= 1
        assert Counter(grouped) == Counter(order(31, world_size=world_size, epoch=epoch))


def test_kinds_alternate_at_random():
    portrait = np.arange(64) < 32
    batches = portrait[np.array(order(64, portrait=portrait)).reshape(-1, 2)][:, 0]
    assert 4 < np.abs(np.diff(batches.astype(int))).sum() < 28  # of 31: neither sorted nor in turns


# --- rare classes come more often


REPEATS = np.array([1.0, 1.0, 2.0, 1.25, 3.5, 1.0, 1.75, 4.5])  # 16 in all


def test_expected_counts_are_the_repeat_factors():
    epochs = 3000
    counts = Counter(index for epoch in range(epochs) for index in order(8, epoch=epoch, repeats=REPEATS))
    found = np.array([counts[index] for index in range(8)]) / epochs
    assert found == pytest.approx(REPEATS, abs=0.05)  # 5 standard errors of a coin per epoch


def test_every_picture_comes_as_often_as_its_factor_at_least():
    for epoch in range(300):
        counts = Counter(order(8, epoch=epoch, repeats=REPEATS))
        assert all(counts[index] >= np.floor(factor) for index, factor in enumerate(REPEATS))


@pytest.mark.parametrize("world_size", [1, 3])
def test_length_does_not_depend_on_the_epoch(world_size):
    lengths = {len(order(8, world_size=world_size, epoch=epoch, repeats=REPEATS)) for epoch in range(50)}
    assert lengths == {16 if world_size == 1 else 18}


def test_factors_of_one_change_nothing_but_the_order():
    assert sorted(order(25, repeats=np.ones(25))[:25]) == list(range(25))


def test_repeats_are_grouped_too():
    portrait = np.arange(8) % 2 == 0
    batches = portrait[np.array(order(8, repeats=REPEATS, portrait=portrait)).reshape(-1, 2)]
    assert (batches.any(axis=1) & ~batches.all(axis=1)).sum() <= 1


def test_repeat_factors_by_hand():
    """Class 1 in 8 of 10 pictures, class 2 in 4, class 3 in 1; threshold 0.5."""
    of_picture = [[1], [1, 1, 1], [1, 2], [1, 2, 2], [1], [1], [1, 2], [1], [2], [3, 3]]
    labels = np.concatenate([np.array(one) for one in of_picture])
    starts = np.concatenate(([0], np.cumsum([len(one) for one in of_picture])))
    r2, r3 = (0.5 / 0.4) ** 0.5, (0.5 / 0.1) ** 0.5
    expected = [1, 1, r2, r2, 1, 1, r2, 1, r2, r3]
    assert repeat_factors(labels, starts, threshold=0.5) == pytest.approx(expected)
    assert repeat_factors(labels, starts, threshold=0.1) == pytest.approx(np.ones(10))


def test_a_picture_has_the_factor_of_its_rarest_class():
    labels, starts = np.array([1, 1, 1, 2]), np.array([0, 1, 2, 4])
    assert repeat_factors(labels, starts, threshold=1.0) == pytest.approx([1, 1, 3**0.5])


@pytest.mark.parametrize("labels", [[], [5, 5]])
def test_a_picture_without_instances_comes_once(labels):
    starts = np.array([0, 0, 0, len(labels)])
    factors = repeat_factors(np.array(labels, dtype=np.int64), starts, threshold=0.01)
    assert factors == pytest.approx([1, 1, 1])


# --- evaluation


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_images", [1, 2, 8, 11])
def test_evaluation_batches_are_dealt_whole(num_images, world_size):
    parts = [dealt_batches(num_images, batch_size=3, rank=rank, world_size=world_size) for rank in range(world_size)]
    dealt = [batch for part in parts for batch in part]
    whole = dealt_batches(num_images, batch_size=3, rank=0, world_size=1)
    assert [index for batch in whole for index in batch] == list(range(num_images))
    without = max(world_size - len(whole), 0)  # ranks that repeat the first
    assert sorted(dealt) == sorted(whole + without * whole[:1])
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("settings", [{}, {"portrait": np.arange(11) % 3 == 0}, {"repeats": np.full(11, 1.4)}])
@pytest.mark.parametrize("world_size", [1, 2])
def test_resumed_epoch_is_the_rest_of_the_whole_one(world_size, settings):
    for rank in range(world_size):
        sampler = EpochSampler(11, batch_size=2, seed=3, rank=rank, world_size=world_size, **settings)
        sampler.set_epoch(1)
        order = list(sampler)
        for start in range(len(order) // 2 + 1):
            sampler.start = start
            assert list(sampler) == order[start * 2 :]
            assert len(sampler) == len(order)

"""Factors on the learning rate, against their closed forms."""

import math

import pytest
import torch

from maskrcnn.training.schedules import cosine, multistep

LR = 0.02


def rates(schedule, *, total_steps=100, steps_per_epoch=10, **settings):
    """Learning rate of each step, as a factor."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = schedule(optimizer, total_steps=total_steps, steps_per_epoch=steps_per_epoch, **settings)
    factors = []
    for _ in range(total_steps + 5):
        factors.append(optimizer.param_groups[0]["lr"] / LR)
        optimizer.step()
        scheduler.step()
    return factors


def test_cosine_goes_from_one_to_the_floor():
    factors = rates(cosine, floor=0.1)
    for step in (0, 1, 25, 50, 99):
        assert factors[step] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * step / 100)) / 2)
    assert factors[0] == 1
    assert factors[50] == pytest.approx(0.55)
    assert factors[100:] == pytest.approx([0.1] * 5)  # and stays there
    assert factors == sorted(factors, reverse=True)


def test_cosine_after_a_warmup():
    factors = rates(cosine, warmup_epochs=2, warmup_factor=0.25, floor=0.0)
    assert factors[:20] == pytest.approx([0.25 + 0.75 * step / 20 for step in range(20)])
    for step in (20, 40, 60, 99):
        assert factors[step] == pytest.approx((1 + math.cos(math.pi * (step - 20) / 80)) / 2)


def test_warmup_of_part_of_an_epoch():
    factors = rates(cosine, warmup_epochs=0.5, warmup_factor=0.5)
    assert factors[:6] == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])


def test_run_shorter_than_its_warmup_only_rises():
    factors = rates(cosine, total_steps=10, warmup_epochs=2, warmup_factor=0.1)
    assert factors == sorted(factors)
    assert max(factors) < 1


def test_cosine_starts_again_at_each_milestone():
    factors = rates(cosine, restarts=[6, 3.5], gamma=0.5, floor=0.2, warmup_epochs=1, warmup_factor=0.5)
    assert factors[:10] == pytest.approx([0.5 + 0.5 * step / 10 for step in range(10)])
    for i, (start, end) in enumerate([(10, 35), (35, 60), (60, 100)]):
        expected = [0.2 + 0.4 * (1 + math.cos(math.pi * (step - start) / (end - start))) for step in range(start, end)]
        assert factors[start:end] == pytest.approx([0.5**i * factor for factor in expected])
    assert factors[100:] == pytest.approx([0.25 * 0.2] * 5)


def test_restarts_after_the_end_do_nothing():
    assert rates(cosine, restarts=[10, 12]) == rates(cosine)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 0.0}, "gamma must be"),
        ({"restarts": [1], "warmup_epochs": 2}, "restarts must come"),
        ({"floor": 2.0}, "floor must"),
    ],
)
def test_restarts_check_their_settings(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        rates(cosine, **settings)


def test_multistep_drops_at_each_milestone():
    factors = rates(multistep, milestones=[3, 7.5], gamma=0.1)
    assert factors[:30] == [1] * 30
    assert factors[30:75] == pytest.approx([0.1] * 45)
    assert factors[75:] == pytest.approx([0.01] * 30)


def test_multistep_after_a_warmup():
    factors = rates(multistep, milestones=[5], gamma=0.5, warmup_epochs=1, warmup_factor=0.001)
    assert factors[:10] == pytest.approx([0.001 + 0.999 * step / 10 for step in range(10)])
    assert factors[10:50] == [1] * 40
    assert factors[50:] == pytest.approx([0.5] * 55)


def test_multistep_without_milestones_is_constant():
    assert rates(multistep, milestones=[]) == [1] * 105


@pytest.mark.parametrize("schedule", [cosine, multistep])
@pytest.mark.parametrize(("key", "value"), [("warmup_epochs", -1), ("warmup_factor", 0), ("warmup_factor", 1.5)])
def test_invalid_warmup_is_named(schedule, key, value):
    with pytest.raises(ValueError, match=key):
        rates(schedule, **{key: value})


@pytest.mark.parametrize("floor", [-0.1, 1.1])
def test_invalid_floor_is_named(floor):
    with pytest.raises(ValueError, match="floor"):
        rates(cosine, floor=floor)

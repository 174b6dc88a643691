"""Intervals for the difference of two runs."""

import math

import numpy as np
import pytest

from maskrcnn.evaluation.bootstrap import compare
from maskrcnn.evaluation.coco import score_classes
from maskrcnn.evaluation.matches import match
from tests.evaluation.hand_made import A, B, entry, ground_truth

IMAGES = 60


@pytest.fixture(scope="module")
def pair():
    """60 pictures; the second run finds one in four of class b, the first one in two; they agree on class a."""
    truth = ground_truth(
        [entry(k, (0, 50 * k, 10, 10), image=i) for i in range(1, IMAGES + 1) for k in (A, B)],
        images=IMAGES,
        names="abc",
    )
    rng = np.random.default_rng(0)
    runs = []
    for step in (2, 4):
        found = [entry(A, (0, 50, 10, 10), image=i, score=i / IMAGES) for i in range(3, IMAGES + 1)]
        found += [
            entry(B, (0, 100, 10, 10), image=i, score=float(rng.random())) for i in range(1, IMAGES + 1) if not i % step
        ]
        runs.append(found)
    return truth, runs


def test_values_are_those_of_the_tables_and_intervals_hold_them(pair):
    truth, runs = pair
    compared = compare([match(truth, run, kind="mask") for run in runs])
    tables = [score_classes(truth, run, kinds=["mask"]) for run in runs]
    assert compared.ap == pytest.approx([numbers["mask"]["ap"] for numbers, _ in tables])
    assert compared.ap50 == pytest.approx([numbers["mask"]["ap50"] for numbers, _ in tables])
    (difference,) = compared.difference
    assert difference.value == pytest.approx(compared.ap[1] - compared.ap[0])
    assert difference.low < difference.value < difference.high < 0
    assert difference.clear
    same, worse, nothing = compared.class_difference[0]
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert not same.clear
    assert worse.value == pytest.approx(2 * difference.value)
    assert math.isnan(nothing.value)
    assert math.isnan(nothing.low)
    assert not nothing.clear


def test_interval_is_as_wide_as_chance_makes_it(pair):
    """Class b: a found share p of n pictures has the variance p (1 - p) / n, and AP is p, up to its 101 steps."""
    truth, runs = pair
    compared = compare([match(truth, run, kind="box") for run in runs], resamples=2000)
    worse = compared.class_difference[0][1]
    # Those that the second finds the first finds too: the difference is a share of one in four.
    sigma = math.sqrt(0.25 * 0.75 / IMAGES)
    assert worse.value == pytest.approx(-0.25, abs=0.02)
    assert worse.high - worse.low == pytest.approx(2 * 1.96 * sigma, rel=0.1)


def test_draws_are_those_of_the_seed(pair):
    truth, runs = pair
    matched = [match(truth, run, kind="box") for run in runs]
    first, again, other = (compare(matched, resamples=50, seed=seed).difference[0] for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert first.value == other.value


def test_a_run_does_not_differ_from_itself(scene):
    matches = match(*scene, kind="mask")
    compared = compare([matches, matches, matches], resamples=20)
    assert [(one.value, one.low, one.high) for one in compared.difference] == [(0, 0, 0)] * 2


@pytest.mark.parametrize(("pictures", "enough"), [(9, False), (10, True)])
def test_few_pictures_have_no_interval(pictures, enough):
    truth = ground_truth([entry(A, (0, 0, 10, 10), image=i) for i in range(1, pictures + 1)], images=50)
    runs = [
        match(truth, [entry(A, (0, 0, 10, 10), image=i, score=0.5) for i in range(1, found + 1)], kind="box")
        for found in (3, 6)
    ]
    compared = compare(runs, resamples=50)
    for difference in (compared.difference[0], compared.class_difference[0][0]):
        assert 0.2 < difference.value < 0.4
        assert math.isnan(difference.low) != enough
        assert difference.clear == enough


def test_nothing_to_find():
    nothing = match(ground_truth([]), [entry(A, (0, 0, 10, 10), score=0.5)], kind="box")
    compared = compare([nothing, nothing], resamples=5)
    assert all(math.isnan(value) for value in [*compared.ap, compared.difference[0].value])

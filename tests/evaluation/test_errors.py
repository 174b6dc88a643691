"""TIDE's error types, by hand and by what must hold for any data."""

import numpy as np
import pytest

from maskrcnn.evaluation.coco import KINDS, score
from maskrcnn.evaluation.errors import TYPES, ap_without, error_costs, find_errors
from maskrcnn.evaluation.matches import match
from tests.evaluation.conftest import draw_scene
from tests.evaluation.hand_made import RESULTS, TRUTH, A, B, entry, ground_truth

HAND_KINDS = [None, "duplicate", "classification", "localisation", "both", "background", None, None]
# Of class a, 3 annotations: recalls up to 1/3 are 34 of the 101 that are read, up to 2/3 they are 67.
BASE = {A: 34 + 33 * 2 / 5, B: 34 / 3}
FIXED = {
    "classification": {A: 34 + 33 * 2 / 3 + 34 / 2, B: 34 / 2},
    "localisation": BASE | {B: 67 * 2 / 3},
    "both": BASE | {A: 34 + 33 / 2},
    "duplicate": BASE | {A: 34 + 33 / 2},
    "background": BASE | {A: 34 + 33 / 2},
    "missed": BASE | {B: 51 / 3},
}


def mean(by_class):
    return (by_class[A] + by_class[B]) / 2 / 101


@pytest.mark.parametrize("kind", KINDS)
def test_errors_of_a_picture_told_by_hand(kind):
    matches = match(TRUTH, RESULTS, kind=kind)
    errors = find_errors(matches)
    assert [None if code < 0 else list(TYPES)[code] for code in errors.kind] == HAND_KINDS
    assert errors.target.tolist() == [-1, -1, 1, 2, -1, -1, -1, -1]
    assert np.flatnonzero(errors.rescued).tolist() == [2, 3]
    assert np.flatnonzero(errors.missed).tolist() == [3]


@pytest.mark.parametrize("kind", KINDS)
def test_costs_of_a_picture_told_by_hand(kind):
    costs = error_costs(match(TRUTH, RESULTS, kind=kind))
    assert costs.ap50 == pytest.approx(mean(BASE))
    assert costs.counts == dict.fromkeys(TYPES, 1)
    for name, expected in FIXED.items():
        assert costs.types[name] == pytest.approx(mean(expected) - mean(BASE)), name
    assert costs.false_positives == pytest.approx(mean({A: 67, B: 34}) - mean(BASE))
    assert costs.false_negatives == pytest.approx(mean({A: 51 + 50 * 2 / 5, B: 101 / 3}) - mean(BASE))


def test_of_several_errors_on_an_annotation_the_best_is_rescued():
    truth = ground_truth([entry(A, (0, 0, 10, 10))])
    results = [
        entry(A, (6, 0, 10, 10), score=0.5),
        entry(B, (0, 0, 10, 10), score=0.9),
        entry(A, (0, 6, 10, 10), score=0.7),
    ]
    errors = find_errors(match(truth, results, kind="box"))  # best score first
    assert [list(TYPES)[code] for code in errors.kind] == ["classification", "localisation", "localisation"]
    assert errors.rescued.tolist() == [True, False, False]
    assert not errors.missed.any()


def test_what_a_crowd_holds_is_no_error():
    truth = ground_truth([entry(A, (0, 0, 100, 100), iscrowd=1), entry(A, (150, 0, 10, 10))])
    costs = error_costs(match(truth, [entry(A, (5, 5, 10, 10), score=0.9)], kind="mask"))
    assert costs.counts == dict.fromkeys(TYPES, 0) | {"missed": 1}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_what_holds_for_any_data(kind, seed):
    truth, results = draw_scene(seed, crowded=seed % 2 == 0)
    matches = match(truth, results, kind=kind)
    errors, costs = find_errors(matches), error_costs(matches)
    assert costs.ap50 == pytest.approx(score(truth, results, kinds=[kind])[kind]["ap50"], abs=1e-12)
    assert ap_without(matches, errors, TYPES) == 1
    assert ap_without(matches, errors, ()) == costs.ap50
    assert sum(costs.counts[name] for name in TYPES if name != "missed") == matches.wrong.sum()
    found = (matches.finder >= 0).sum()
    assert found + errors.rescued.sum() + errors.missed.sum() == len(matches.finder)
    for name in ("both", "duplicate", "background"):  # leaving out what is wrong never harms
        assert ap_without(matches, errors, (name,)) >= costs.ap50
    assert all(0 <= cost <= 1 - costs.ap50 for cost in costs.types.values())
    assert costs.counts["background"] > 0
    assert costs.counts["localisation"] > 0


def test_without_detections_everything_is_missed():
    costs = error_costs(match(TRUTH, [], kind="mask"))
    assert costs.ap50 == 0
    assert costs.counts == dict.fromkeys(TYPES, 0) | {"missed": 6}
    assert costs.types == dict.fromkeys(TYPES, 0.0) | {"missed": 1.0}
    assert costs.false_negatives == 1


def test_without_annotations_nothing_has_a_cost():
    costs = error_costs(match(ground_truth([]), RESULTS, kind="mask"))
    assert costs.ap50 == -1
    assert costs.counts == dict.fromkeys(TYPES, 0) | {"background": 8}
    assert set(costs.types.values()) == {0.0}


def test_one_class_has_no_classification_errors():
    truth = ground_truth([entry(A, (0, 0, 10, 10)), entry(A, (50, 0, 10, 10))], names="a")
    results = [entry(A, (0, 0, 10, 10), score=0.9), entry(A, (56, 0, 10, 10), score=0.8)]
    costs = error_costs(match(truth, results, kind="box"))
    assert costs.counts == dict.fromkeys(TYPES, 0) | {"localisation": 1}
    assert costs.types["localisation"] == pytest.approx(50 / 101)
    assert costs.ap50 == pytest.approx(51 / 101)

"""Thresholds, confusions, calibration and worst pictures, by hand and against what must hold."""

import math

import numpy as np
import pytest

from maskrcnn.evaluation.diagnosis import (
    DEFAULT_THRESHOLD,
    calibration,
    confusion,
    kept_detections,
    operating_points,
    worst_pictures,
)
from maskrcnn.evaluation.matches import match
from tests.evaluation.hand_made import RESULTS, TRUTH, A, B, entry, ground_truth

EVERYTHING = np.ones(len(RESULTS), dtype=bool)


@pytest.fixture
def matches():
    return match(TRUTH, RESULTS, kind="mask")


def test_best_threshold_told_by_hand(matches):
    first, second = operating_points(matches)
    # a: 1 of 1 right, 1 of 2, ..., 2 of 5; with 3 annotations F1 is 2/4, 2/5, 2/6, 2/7, 4/8
    assert (first.threshold, first.f1) == (0.9, 0.5)
    assert (first.precision, first.recall) == (1.0, pytest.approx(1 / 3))
    assert (second.threshold, second.f1) == (0.2, pytest.approx(2 / 6))
    assert (second.precision, second.recall) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert kept_detections(matches, [first, second]).tolist() == [True, False, True, True, False, False, False, True]


def test_threshold_is_never_between_equal_scores():
    truth = ground_truth([entry(A, (0, 0, 10, 10))])
    results = [entry(A, (0, 0, 10, 10), score=0.5), entry(A, (50, 0, 10, 10), score=0.5)]
    first, second = operating_points(match(truth, results, kind="box"))
    assert (first.threshold, first.f1, first.precision) == (0.5, pytest.approx(2 / 3), 0.5)
    assert (second.threshold, second.f1, second.precision, second.recall) == (DEFAULT_THRESHOLD, -1, -1, -1)


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_best_threshold_is_the_best_of_all(scene, kind):
    matches = match(*scene, kind=kind)
    for label, point in enumerate(operating_points(matches)):
        of_class = (matches.label == label) & ~matches.spared[0]
        tried = []
        for threshold in np.unique(matches.score[of_class]):
            kept = of_class & (matches.score >= threshold)
            tried.append(2 * matches.hit[0, kept].sum() / (kept.sum() + matches.counts[label]))
        if matches.counts[label]:
            assert point.f1 == pytest.approx(max(tried))
            assert point.f1 == pytest.approx(2 / (1 / point.precision + 1 / point.recall))
        else:
            assert point.f1 == -1


def test_confusions_told_by_hand(matches):
    assert confusion(matches, EVERYTHING).tolist() == [
        [2, 1, 0],  # one a is taken for b
        [0, 1, 2],  # both b near which something is overlap it too little
        [3, 1, 0],
    ]
    nothing = confusion(matches, ~EVERYTHING)
    assert nothing.tolist() == [[0, 0, 3], [0, 0, 3], [0, 0, 0]]


def test_an_annotation_is_confused_once_and_with_the_best_score():
    truth = ground_truth([entry(A, (0, 0, 10, 10))], names="abc")
    results = [entry(B, (0, 0, 10, 10), score=0.6), entry(3, (0, 0, 10, 10), score=0.7)]
    matrix = confusion(match(truth, results, kind="box"), np.ones(2, dtype=bool))
    assert matrix[0].tolist() == [0, 0, 1, 0]
    assert matrix[-1].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_confusions_add_up(scene, kind):
    matches = match(*scene, kind=kind)
    kept = kept_detections(matches, operating_points(matches))
    matrix = confusion(matches, kept)
    assert matrix[:-1].sum(axis=1).tolist() == matches.counts.tolist()
    counted = kept & ~matches.spared[0]
    assert matrix[:, :-1].sum(axis=0).tolist() == np.bincount(matches.label[counted], minlength=5).tolist()
    hits = kept & matches.hit[0]
    assert np.diag(matrix)[:-1].tolist() == np.bincount(matches.label[hits], minlength=5).tolist()
    assert matrix[:-1, :-1].sum() > hits.sum()  # some are confused


def test_calibration_told_by_hand(matches):
    trust = calibration(matches)
    assert trust.counts.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1, 1]
    right = [1, 1, 0, 0, 0, 0, 0, 1]
    np.testing.assert_allclose(trust.precision[2:], right)
    np.testing.assert_allclose(trust.score[2:], np.arange(2, 10) / 10)
    assert trust.error == pytest.approx(np.mean([abs(p - s / 10) for p, s in zip(right, range(2, 10), strict=True)]))
    assert math.isnan(trust.score[0])


def test_scores_that_are_no_probabilities_have_no_calibration():
    assert calibration(match(TRUTH, [RESULTS[0] | {"score": 3.5}], kind="box")) is None
    empty = calibration(match(TRUTH, [], kind="box"))
    assert not empty.counts.any()
    assert math.isnan(empty.error)


def test_worst_pictures_told_by_hand():
    truth = ground_truth([entry(A, (0, 0, 10, 10), image=i) for i in (1, 2, 3)], images=4)
    results = [
        entry(A, (0, 0, 10, 10), image=1, score=0.9),
        entry(A, (90, 0, 10, 10), image=2, score=0.8),
        entry(B, (90, 50, 10, 10), image=4, score=0.7),
    ]
    matches = match(truth, results, kind="box")
    worst = worst_pictures(matches, np.ones(3, dtype=bool), count=5)
    assert [(one.image_id, one.cost, one.wrong, one.missed) for one in worst] == [
        (2, 1.8, 1, 1),
        (3, 1.0, 0, 1),
        (4, 0.7, 1, 0),
    ]
    assert [one.image_id for one in worst_pictures(matches, np.ones(3, dtype=bool), count=1)] == [2]
    assert worst_pictures(match(truth, [], kind="box"), np.zeros(0, dtype=bool), count=9)[0].missed == 1

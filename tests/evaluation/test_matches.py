"""What found what, and the precision that follows: the same as in COCO's own evaluation."""

import contextlib
import copy
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn.evaluation.coco import KINDS, score, score_classes
from maskrcnn.evaluation.matches import THRESHOLDS, match
from maskrcnn.evaluation.precision import RECALLS, average_precision, precision_curves, weighted_ap
from tests.evaluation.conftest import draw_scene
from tests.evaluation.hand_made import RESULTS, TRUTH, A, B, entry, ground_truth


@pytest.mark.parametrize("kind", KINDS)
def test_matches_of_a_picture_told_by_hand(kind):
    matches = match(TRUTH, RESULTS[::-1], kind=kind)
    assert matches.score.tolist() == [result["score"] for result in RESULTS]
    assert np.flatnonzero(matches.hit[0]).tolist() == [0, 6, 7]
    assert (matches.hit == matches.hit[0]).all()
    assert not matches.spared.any()
    assert matches.finder.tolist() == [0, -1, -1, -1, 6, 7]
    np.testing.assert_allclose(matches.own_iou, [1, 1, 0, 0.25, 0, 0, 1, 1])
    np.testing.assert_allclose(matches.other_iou, [0, 0, 1, 0, 0.25, 0, 0, 0])
    assert matches.confused.tolist() == [[2, 1]]
    assert matches.counts.tolist() == [3, 3]


def test_crowds_and_ignored_annotations_spare_detections():
    truth = ground_truth(
        [
            entry(A, (0, 0, 100, 100), iscrowd=1),
            entry(B, (150, 0, 10, 10), ignore=1),
        ]
    )
    results = [
        entry(A, (0, 0, 10, 10), score=0.9),
        entry(A, (50, 50, 10, 10), score=0.8),
        entry(B, (150, 0, 10, 10), score=0.7),
        entry(B, (150, 0, 10, 10), score=0.6),  # an ignored annotation is found once, a crowd again and again
        entry(B, (0, 0, 10, 10), score=0.5),
    ]
    matches = match(truth, results, kind="box")
    assert matches.spared[0].tolist() == [True, True, True, False, False]
    assert matches.wrong.tolist() == [False, False, False, True, True]
    assert not matches.counts.any()


def reference(truth, results, kind):
    """COCO's precision [T, R, K]."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = copy.deepcopy(truth)
        gt.createIndex()
        evaluation = COCOeval(gt, gt.loadRes(copy.deepcopy(results)), KINDS[kind])
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, :, 0, -1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_precision_over_recall_is_pycocotools(kind, seed):
    truth, results = draw_scene(seed)
    for annotation in truth["annotations"]:
        annotation["ignore"] = 0  # pycocotools overwrites it
    curves = precision_curves(match(truth, results, kind=kind))
    assert curves.shape == (len(THRESHOLDS), len(RECALLS), len(truth["categories"]))
    np.testing.assert_allclose(curves, reference(truth, results, kind), atol=1e-12)
    assert 0.05 < curves[curves > -1].mean() < 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_ap_is_that_of_the_tables_with_ignored_annotations_too(scene, kind):
    truth, results = scene
    numbers, classes = score_classes(truth, results, kinds=[kind])
    matches = match(truth, results, kind=kind)
    ap = weighted_ap(matches, np.ones((1, len(truth["images"])), dtype=int))[0]
    assert np.nanmean(ap) == pytest.approx(numbers[kind]["ap"], abs=1e-12)
    assert np.nanmean(ap[0]) == pytest.approx(numbers[kind]["ap50"], abs=1e-12)
    for one, of_class in zip(classes, ap.T, strict=True):
        expected = [-1.0 if np.isnan(value) else value for value in (of_class.mean(), of_class[0])]
        assert expected == pytest.approx(one.ap[kind], abs=1e-12)


def test_an_image_that_is_drawn_twice_counts_as_two(scene):
    truth, results = scene
    rng = np.random.default_rng(0)
    for one in results:
        one["score"] = rng.random()  # without ties, copies follow each other
    weights = rng.integers(0, 3, len(truth["images"]))
    copies = {"images": [], "annotations": [], "categories": truth["categories"]}
    found = []
    for image, weight in zip(truth["images"], weights.tolist(), strict=True):
        for again in range(weight):
            new = 10 * image["id"] + again
            copies["images"].append(image | {"id": new})
            for entries, made in ((truth["annotations"], copies["annotations"]), (results, found)):
                made += [one | {"image_id": new} for one in entries if one["image_id"] == image["id"]]
    ap = weighted_ap(match(truth, results, kind="box"), np.stack((np.ones_like(weights), weights)))
    for numbers, expected in zip(ap, (score(truth, results), score(copies, found)), strict=True):
        assert np.nanmean(numbers) == pytest.approx(expected["box"]["ap"], abs=1e-12)
    assert np.nanmean(ap[0]) != pytest.approx(np.nanmean(ap[1]), abs=1e-3)


def test_no_detections_and_nothing_to_find():
    nothing = match(TRUTH, [], kind="mask")
    assert (precision_curves(nothing) == 0).all()
    assert nothing.finder.tolist() == [-1] * 6
    alone = match(ground_truth([]), RESULTS, kind="mask")
    assert (precision_curves(alone) == -1).all()
    assert np.isnan(weighted_ap(alone, np.ones((2, 1), dtype=int))).all()
    assert alone.wrong.all()


def test_a_thousand_detections_in_an_image_leave_the_best_hundred():
    results = [entry(A, (0, 0, 10, 10), score=1 - i / 1000) for i in range(999)]
    results.append(entry(B, (100, 0, 10, 10), score=0.0001))
    matches = match(TRUTH, results[::-1], kind="box")
    assert len(matches.score) == 101
    assert matches.score[:100].min() == pytest.approx(0.901)
    assert matches.hit[0].sum() == 2


def test_average_precision_told_by_hand():
    assert average_precision(np.array([True, False, True]), 2) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert average_precision(np.zeros(0, dtype=bool), 2) == 0

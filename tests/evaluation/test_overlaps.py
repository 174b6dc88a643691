"""Detections and annotations in flat arrays, and what becomes of them in each range of sizes."""

import contextlib
import copy
import io
import tracemalloc

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn.evaluation.coco import KINDS, METRICS, score
from maskrcnn.evaluation.comparable import complete
from maskrcnn.evaluation.matches import AREAS, match_area
from maskrcnn.evaluation.overlaps import overlap
from maskrcnn.evaluation.precision import precision_curves, recalls
from tests.evaluation.conftest import draw_scene
from tests.evaluation.hand_made import A, B, entry, ground_truth

MOST = (1, 10, 100)


def evaluate(truth, results, kind):
    """Run by pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = copy.deepcopy(truth)
        gt.createIndex()
        evaluation = COCOeval(gt, gt.loadRes(copy.deepcopy(results)), KINDS[kind])
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [11, 12])
def test_everything_is_pycocotools_to_the_last_digit(kind, seed):
    truth, results = draw_scene(seed, images=60)
    rng = np.random.default_rng(seed)
    for annotation in truth["annotations"]:
        annotation["ignore"] = 0  # pycocotools overwrites it
        if annotation["image_id"] == 60:
            annotation["category_id"] = 7  # a class in one image only
    for result in results:
        if result["image_id"] in (59, 60):
            result["category_id"] = int(rng.choice([7, 8]))  # the second is never annotated
    truth["annotations"] += [  # twice the same place, and in a crowd
        one | {"id": one["id"] + 1000, "iscrowd": int(rng.random() < 0.3)} for one in truth["annotations"][::5]
    ]
    truth["categories"] = [{"id": i, "name": str(i)} for i in (9, 8, 7, 5, 3, 2, 1)]

    expected = evaluate(truth, results, kind)
    overlaps = overlap(complete(truth), results, kind=kind)
    for area, name in enumerate(AREAS):
        matches = match_area(overlaps, name)
        np.testing.assert_array_equal(precision_curves(matches)[..., ::-1], expected.eval["precision"][..., area, -1])
        for column, most in enumerate(MOST):
            np.testing.assert_array_equal(recalls(matches, most)[:, ::-1], expected.eval["recall"][..., area, column])
        assert 0 < matches.hit.mean() < 0.5
    assert score(truth, results, kinds=[kind])[kind] == dict(zip(METRICS, expected.stats.tolist(), strict=True))


def test_detections_come_best_first_and_the_best_hundred_of_a_class():
    image_ids = [4, 2, 9]
    truth = ground_truth([]) | {"images": [{"id": i, "height": 200, "width": 200} for i in image_ids]}
    results = [entry(A, (0, 0, 10, 20), image=9, score=i / 200) for i in range(120)]
    results += [entry(B, (0, 0, 5, 5), image=2, score=0.5), entry(77, (0, 0, 5, 5), image=2, score=0.5)]
    results += [entry(B, (i, 0, 5, 5), image=9, score=0.3) for i in range(2)]
    for result in results[120:]:
        del result["bbox"]
    overlaps = overlap(complete(truth), results, kind="mask")
    assert overlaps.image_ids == [2, 4, 9]
    assert np.bincount(overlaps.image).tolist() == [1, 0, 102]
    assert np.bincount(overlaps.label).tolist() == [100, 3]
    assert overlaps.score[1:].tolist() == sorted(overlaps.score[1:], reverse=True)
    assert overlaps.score[overlaps.label == 0].min() == 20 / 200
    assert overlaps.rank[overlaps.label == 0].tolist() == list(range(100))
    assert overlaps.rank[overlaps.label == 1].tolist() == [0, 0, 1]
    assert (overlaps.area == np.where(overlaps.label == 0, 200, 25)).all()
    assert not len(overlaps.iou)


def test_of_equal_overlaps_the_last_is_taken_and_an_ignored_one_only_without_another():
    place, near = (0, 0, 10, 10), (0, 0, 10, 8)
    truth = ground_truth([entry(A, place), entry(A, place), entry(B, place, ignore=1), entry(B, near)])
    results = [entry(A, place, score=0.9), entry(B, place, score=0.8), entry(B, place, score=0.7)]
    matches = match_area(overlap(complete(truth), results, kind="box"))
    assert matches.finder.tolist() == [-1, 0, 1]
    assert matches.hit[[0, -1]].tolist() == [[True, True, False], [True, False, False]]
    assert matches.spared[[0, -1]].tolist() == [[False, False, True], [False, True, False]]


def test_a_size_that_is_not_scored_is_neither_right_nor_wrong():
    small, large = (0, 0, 32, 32), (50, 50, 97, 97)
    truth = ground_truth([entry(A, small), entry(A, large)])
    results = [entry(A, small, score=0.9), entry(A, large, score=0.8), entry(A, (0, 100, 5, 5), score=0.7)]
    overlaps = overlap(complete(truth), results, kind="box")
    hits = {area: match_area(overlaps, area).hit[0].tolist() for area in AREAS}
    spared = {area: match_area(overlaps, area).spared[0].tolist() for area in AREAS}
    assert hits["small"] == hits["medium"] == [True, False, False]  # 32 x 32 is both, as in COCO's evaluation
    assert hits["large"] == [False, True, False]
    assert hits["all"] == [True, True, False]
    assert spared["small"] == [False, True, False]
    assert spared["medium"] == [False, True, True]
    assert spared["large"] == [True, False, True]


def test_results_of_an_unknown_image_are_refused():
    with pytest.raises(KeyError, match="5"):
        score(ground_truth([entry(A, (0, 0, 10, 10))]), [entry(A, (0, 0, 10, 10), image=5, score=0.5)])


def test_scoring_takes_little_memory():
    images, each = 100, 100
    rng = np.random.default_rng(0)
    places = [tuple(box) for box in rng.integers(1, 90, (images * each, 4)).tolist()]
    results = [
        entry(i % 2 + 1, place, image=1 + i // each, score=float(rng.random())) for i, place in enumerate(places)
    ]
    annotations = [entry(i % 2 + 1, place, image=1 + i // 7) for i, place in enumerate(places[: 7 * images])]
    truth = ground_truth(annotations, images=images)
    score(truth, results[:100])
    tracemalloc.start()
    try:
        score(truth, results)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 600 * len(results)  # bytes; with a copy of each result it would be more

"""VOC's average precision, by hand, and against a plain transcription of its rule on random data."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from maskrcnn.evaluation.voc import KINDS, has_void, voc_ap50, voc_scores

SIZE = (60, 80)
A, B, C, ELSEWHERE = (0, 0, 20, 20), (30, 0, 50, 20), (0, 30, 20, 50), (50, 40, 70, 60)
HALF_OF_A = (0, 0, 20, 10)  # IoU 0.5
LESS_OF_A = (0, 0, 20, 9)


def pixels(box):
    mask = np.zeros(SIZE, np.uint8, order="F")
    x1, y1, x2, y2 = box
    mask[y1:y2, x1:x2] = 1
    return mask


def encode(mask):
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def entry(box, *, image=1, category=1, **fields):
    """An annotation, or with a score a result, that fills a box x1, y1, x2, y2."""
    x1, y1, x2, y2 = box
    region = {"bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": encode(pixels(box))}
    return {"image_id": image, "category_id": category} | region | fields


def truth(*annotations, void=None):
    images = [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in (1, 2, 3)]
    if void is not None:
        images[0]["void"] = encode(void)
    categories = [{"id": i, "name": f"class {i}"} for i in (1, 2, 7)]
    return {"images": images, "annotations": list(annotations), "categories": categories}


def ranked(*boxes, **fields):
    """Results in falling order of score."""
    return [entry(box, score=0.9 - 0.01 * rank, **fields) for rank, box in enumerate(boxes)]


DIFFICULT = {"ignore": 1}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("annotations", "boxes", "area", "eleven_points"),
    [
        ([A], [A], 1, 1),
        ([A], [], 0, 0),
        ([A], [ELSEWHERE], 0, 0),
        ([A], [HALF_OF_A], 1, 1),
        ([A], [LESS_OF_A], 0, 0),
        ([A], [ELSEWHERE, A], 1 / 2, 1 / 2),
        ([A, B], [A], 1 / 2, 6 / 11),  # recalls 0, 0.1, ... 0.5
        ([A, B], [A, A, B], 1 / 2 + 2 / 3 / 2, (6 + 5 * 2 / 3) / 11),  # the second A is wrong
        ([A, B], [ELSEWHERE, A, B], 2 / 3, 2 / 3),  # precision 1/2, then 2/3: the envelope is flat
        ([A, B, C], [A, ELSEWHERE, B, ELSEWHERE, C], (1 + 2 / 3 + 3 / 5) / 3, (4 + 3 * 2 / 3 + 4 * 3 / 5) / 11),
    ],
)
def test_average_precision_by_hand(annotations, boxes, area, eleven_points, kind):
    ground_truth = truth(*map(entry, annotations))
    assert voc_ap50(ground_truth, ranked(*boxes), kind=kind) == {
        "ap50": pytest.approx(area),
        "per_class": {1: pytest.approx(area)},
    }
    assert voc_ap50(ground_truth, ranked(*boxes), kind=kind, use_07_metric=True)["ap50"] == pytest.approx(eleven_points)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("difficult", [{"ignore": 1}, {"iscrowd": 1}])
@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([A], 1),
        ([B, A], 1),
        ([B, B, B, A], 1),  # any number of them
        ([B], 0),
        ([ELSEWHERE, A], 1 / 2),
    ],
)
def test_difficult_annotation_is_neither_right_nor_wrong(boxes, expected, difficult, kind):
    ground_truth = truth(entry(A), entry(B, **difficult))
    assert voc_ap50(ground_truth, ranked(*boxes), kind=kind)["ap50"] == pytest.approx(expected)


def test_a_result_belongs_to_the_annotation_it_overlaps_most():
    near_a = (0, 0, 20, 19)
    inner = (0, 0, 20, 17)  # overlaps both by more than half; the first result takes A, the second is A's too
    ground_truth = truth(entry(A), entry((0, 0, 20, 11)))
    found = ranked(near_a, inner)
    assert voc_ap50(ground_truth, found, kind="box")["ap50"] == pytest.approx(1 / 2)
    ious = coco_mask.iou([result["bbox"] for result in found], [a["bbox"] for a in ground_truth["annotations"]], [0, 0])
    assert (ious > 0.5).all()


@pytest.mark.parametrize("kind", KINDS)
def test_classes_and_images_are_kept_apart(kind):
    ground_truth = truth(entry(A), entry(A, category=2), entry(B, image=2), entry(C, category=7, ignore=1))
    found = [
        *ranked(A, A, category=2),
        *ranked(B),  # of image 2
        *ranked(A, image=2),
        *ranked(C, category=7),
        *ranked(C, category=9),
    ]
    assert voc_ap50(ground_truth, found, kind=kind) == {"ap50": 0.5, "per_class": {1: 0.0, 2: 1.0}}
    only_first = voc_ap50(ground_truth, [*found, *ranked(A)], kind=kind, image_ids=iter([1]))
    assert only_first["per_class"] == {1: pytest.approx(0.5), 2: 1.0}
    assert voc_ap50(ground_truth, found, kind=kind, image_ids=[3]) == {"ap50": -1.0, "per_class": {}}


def test_results_of_one_score_keep_their_order():
    first, second = entry(ELSEWHERE, score=0.5), entry(A, score=0.5)
    ground_truth = truth(entry(A))
    assert voc_ap50(ground_truth, [first, second], kind="box")["ap50"] == pytest.approx(0.5)
    assert voc_ap50(ground_truth, [second, first], kind="box")["ap50"] == pytest.approx(1.0)


def test_void_pixels_of_a_mask_do_not_count():
    wide = (0, 0, 30, 30)  # IoU 400 / 900
    void = pixels(wide) - pixels(A)
    found = ranked(wide)
    assert voc_ap50(truth(entry(A)), found, kind="mask")["ap50"] == 0.0
    with_void = truth(entry(A), void=void)
    before = copy.deepcopy((with_void, found))
    assert voc_ap50(with_void, found, kind="mask")["ap50"] == 1.0
    assert voc_scores(with_void, found, image_ids=[1]) == {"box_ap50": 0.0, "mask_ap50": 1.0}
    assert (with_void, found) == before
    assert has_void(with_void)
    assert not has_void(truth(entry(A)))


def test_annotation_without_a_mask_is_difficult_to_masks_alone():
    ground_truth = truth(entry(A), entry(B, segmentation=[]))
    assert voc_scores(ground_truth, ranked(B, A)) == {"box_ap50": 1.0, "mask_ap50": 1.0}
    assert voc_scores(ground_truth, ranked(A), image_ids=iter([1, 2])) == {"box_ap50": 0.5, "mask_ap50": 1.0}


def test_polygons_and_run_lengths_are_masks():
    polygon = [[0, 0, 20, 0, 20, 20, 0, 20]]
    runs = np.diff(np.flatnonzero(np.diff(pixels(B).ravel("F"), prepend=0, append=2)), prepend=0).tolist()
    ground_truth = truth(entry(A, segmentation=polygon), entry(B, segmentation={"size": SIZE, "counts": runs}))
    assert voc_ap50(ground_truth, ranked(B, A), kind="mask")["ap50"] == 1.0


def test_unknown_kind():
    with pytest.raises(ValueError, match="kind is 'bbox', should be one of box, mask"):
        voc_ap50(truth(), [], kind="bbox")


def development_kit(ground_truth, results, category, use_07_metric):
    """VOCevaldet.m and VOCap, step by step, on boxes."""
    annotations = [a for a in ground_truth["annotations"] if a["category_id"] == category]
    npos = sum(not a.get("ignore") for a in annotations)
    detected = set()
    tp, fp = [], []
    for result in sorted((r for r in results if r["category_id"] == category), key=lambda r: -r["score"]):
        ovmax, jmax = -np.inf, None
        x, y, w, h = result["bbox"]
        for j, annotation in enumerate(annotations):
            gx, gy, gw, gh = annotation["bbox"]
            iw, ih = min(x + w, gx + gw) - max(x, gx), min(y + h, gy + gh) - max(y, gy)
            if annotation["image_id"] == result["image_id"] and iw > 0 and ih > 0:
                overlap = iw * ih / (w * h + gw * gh - iw * ih)
                if overlap > ovmax:
                    ovmax, jmax = overlap, j
        tp.append(0)
        fp.append(0)
        if ovmax < 0.5:
            fp[-1] = 1
        elif not annotations[jmax].get("ignore"):
            tp[-1], fp[-1] = (0, 1) if jmax in detected else (1, 0)
            detected.add(jmax)
    tp, fp = np.cumsum(tp), np.cumsum(fp)
    rec, prec = tp / npos, tp / np.maximum(tp + fp, 1)
    if use_07_metric:
        return sum(max(prec[rec >= t], default=0) for t in np.arange(11) / 10) / 11
    mrec, mpre = [0, *rec, 1], [0, *prec, 0]
    for i in range(len(mpre) - 2, -1, -1):
        mpre[i] = max(mpre[i], mpre[i + 1])
    return sum((mrec[i] - mrec[i - 1]) * mpre[i] for i in range(1, len(mrec)))


boxes = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 9), st.integers(1, 9)).map(
    lambda b: (b[0] * 4, b[1] * 3, b[0] * 4 + b[2] * 4, b[1] * 3 + b[3] * 3)
)
annotation_lists = st.lists(
    st.builds(
        lambda box, image, category, ignore: entry(box, image=image, category=category, ignore=int(ignore)),
        boxes,
        st.sampled_from([1, 2]),
        st.sampled_from([1, 2]),
        st.sampled_from([False, False, True]),
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(annotations=annotation_lists, seed=st.integers(0, 1000), use_07_metric=st.booleans())
def test_same_as_the_development_kit(annotations, seed, use_07_metric):
    rng = np.random.default_rng(seed)
    ground_truth = truth(*annotations)
    results = []
    for _ in range(len(annotations) * 2):
        source = annotations[rng.integers(len(annotations))]
        box = (np.array(source["bbox"]) + rng.integers(-3, 4, 4)).clip((0, 0, 1, 1)).tolist()
        results.append(source | {"bbox": box, "score": float(rng.integers(0, 6)) / 5})
    found = voc_ap50(ground_truth, results, kind="box", use_07_metric=use_07_metric)
    counted = sorted({a["category_id"] for a in annotations if not a["ignore"]})
    expected = [development_kit(ground_truth, results, category, use_07_metric) for category in counted]
    assert found["per_class"] == pytest.approx(dict(zip(counted, expected, strict=True)))
    assert found["ap50"] == pytest.approx(np.mean(expected) if counted else -1.0)


@settings(max_examples=40, deadline=None)
@given(annotations=annotation_lists, use_07_metric=st.booleans())
def test_perfect_results_score_one(annotations, use_07_metric):
    apart = {(a["image_id"], a["category_id"], *a["bbox"]): a for a in annotations}.values()
    results = [annotation | {"score": 0.5} for annotation in apart]
    expected = 1.0 if any(not annotation["ignore"] for annotation in apart) else -1.0
    for kind in KINDS:
        found = voc_ap50(truth(*apart), results, kind=kind, use_07_metric=use_07_metric)
        assert found["ap50"] == pytest.approx(expected)

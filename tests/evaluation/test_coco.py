"""The numbers are compared with pycocotools' on random data of every kind that COCO knows."""

import contextlib
import copy
import io
import json
import logging

import numpy as np
import pycocotools.mask as mask_utils
import pytest
import torch.distributed as dist
from faster_coco_eval.core.mask import decode
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn.errors import UserError
from maskrcnn.evaluation.coco import KINDS, METRICS, CocoMetric, _merge, format_table, score, score_classes
from maskrcnn.evaluation.results import read_results

HEIGHT, WIDTH = 160, 200
CATEGORIES = [1, 2, 3, 5, 9]
CROWDED, EMPTY = 101, 130  # an image with more than 100 detections of a class, one with none


def encode(box, holes=None):
    """Compressed RLE of the pixels in box (x1, y1, x2, y2), less the bool mask holes."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    x1, y1, x2, y2 = box
    mask[y1:y2, x1:x2] = 1
    if holes is not None:
        mask[holes] = 0
    rle = mask_utils.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def uncompress(rle):
    """The RLE with its runs as a list of counts, as crowds have it in COCO's files."""
    mask = decode(rle).ravel("F")
    runs = np.diff(np.flatnonzero(np.diff(mask, prepend=0, append=2)), prepend=0)
    return {"size": rle["size"], "counts": runs.tolist()}


def random_box(rng):
    side = rng.choice([12, 50, 150])
    width, height = np.minimum(rng.integers(side // 3, side, 2) + 2, (WIDTH - 1, HEIGHT - 1))
    x, y = rng.integers(0, WIDTH - width), rng.integers(0, HEIGHT - height)
    return [int(value) for value in (x, y, x + width, y + height)]


def truth_annotation(rng, box):
    x1, y1, x2, y2 = box
    annotation = {"bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": int(rng.choice(CATEGORIES[:-1]))}
    if rng.random() < 0.15:
        rle = encode(box, rng.random((HEIGHT, WIDTH)) < 0.2)
        return annotation | {"segmentation": uncompress(rle), "iscrowd": 1, "area": int(mask_utils.area(rle))}
    corner = float(rng.uniform(0.2, 0.8))
    polygon = [x1, y1, x2, y1, x2, y2, x1 + corner * (x2 - x1), y2, x1, y1 + corner * (y2 - y1)]
    area = float(mask_utils.area(mask_utils.merge(mask_utils.frPyObjects([polygon], HEIGHT, WIDTH))))
    return annotation | {"segmentation": [polygon], "iscrowd": 0, "area": area}


def detection(rng, image_id, category, box):
    x1, y1, x2, y2 = box
    return {
        "image_id": image_id,
        "category_id": category,
        "bbox": [x1 + float(rng.uniform(-1, 1)), float(y1), float(x2 - x1), float(y2 - y1)],
        "score": int(rng.integers(0, 20)) / 20,  # many ties
        "segmentation": encode(box, rng.random((HEIGHT, WIDTH)) < rng.choice([0.0, 0.3])),
    }


def shifted(rng, box):
    offset = np.tile(rng.integers(-3, 4, 2), 2)
    x1, y1, x2, y2 = np.clip(np.array(box) + offset, 0, (WIDTH, HEIGHT) * 2).tolist()
    return [x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)]


@pytest.fixture(scope="module")
def data():
    """Ground truth and results of 30 images."""
    rng = np.random.default_rng(7)
    image_ids = list(range(101, 131))
    annotations, results = [], []
    for image_id in image_ids:
        for _ in range(rng.integers(0, 7)):
            box = random_box(rng)
            annotation = truth_annotation(rng, box) | {"image_id": image_id, "id": len(annotations) + 1}
            annotations.append(annotation)
            if image_id == EMPTY:
                continue
            for _ in range(rng.integers(0, 4)):
                category = annotation["category_id"] if rng.random() < 0.8 else int(rng.choice(CATEGORIES))
                results.append(detection(rng, image_id, category, shifted(rng, box)))
    for _ in range(130):
        results.append(detection(rng, CROWDED, CATEGORIES[0], random_box(rng)))
    truth = {
        "images": [{"id": i, "height": HEIGHT, "width": WIDTH} for i in image_ids],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"class {i}"} for i in CATEGORIES],
    }
    return truth, [results[i] for i in rng.permutation(len(results))]


def reference(truth, results, kind, image_ids=None):
    """The numbers and the printed table of pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = copy.deepcopy(truth)
        gt.createIndex()
        if results:
            dt = gt.loadRes(copy.deepcopy(results))
        else:
            dt = COCO()
            dt.dataset = {"images": truth["images"], "categories": truth["categories"], "annotations": []}
            dt.createIndex()
        evaluation = COCOeval(gt, dt, KINDS[kind])
        if image_ids is not None:
            evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        evaluation.summarize()
    return dict(zip(METRICS, evaluation.stats.tolist(), strict=True)), printed.getvalue()


def assert_same_as_pycocotools(numbers, truth, results, image_ids=None):
    for kind, found in numbers.items():
        expected, _ = reference(truth, results, kind, image_ids)
        assert found == pytest.approx(expected, abs=1e-6), kind


def test_data_covers_what_it_should(data):
    truth, results = data
    assert any(annotation["iscrowd"] for annotation in truth["annotations"])
    assert any(annotation["image_id"] == EMPTY for annotation in truth["annotations"])
    for kind in KINDS:
        numbers, _ = reference(truth, results, kind)
        assert all(0 < number < 1 for number in numbers.values()), kind
        assert numbers["ar1"] < numbers["ar10"] < numbers["ar100"]


def test_score_equals_pycocotools(data):
    truth, results = data
    numbers = score(truth, results)
    assert list(numbers) == ["box", "mask"]
    assert tuple(numbers["box"]) == METRICS
    assert_same_as_pycocotools(numbers, truth, results)


def test_score_some_images(data):
    image_ids = [125, 101, 110, 130]
    numbers = score(data[0], data[1], image_ids=iter(image_ids), kinds=("mask",))
    assert list(numbers) == ["mask"]
    assert_same_as_pycocotools(numbers, *data, image_ids)


def test_score_with_bytes_counts(data):
    truth, results = data
    as_bytes = copy.deepcopy(results)
    for result in as_bytes:
        result["segmentation"]["counts"] = result["segmentation"]["counts"].encode()
    assert score(truth, as_bytes) == score(truth, results)


@pytest.mark.parametrize(("field", "kind"), [("segmentation", "box"), ("bbox", "mask")])
def test_score_without_the_other_field(data, field, kind):
    truth, results = data
    lacking = [{key: value for key, value in result.items() if key != field} for result in results]
    numbers = score(truth, lacking, kinds=(kind,))
    assert_same_as_pycocotools(numbers, truth, lacking)


def test_mask_is_sized_by_its_box(data):
    """An unmatched detection counts for the size of its box, as after pycocotools' loadRes."""
    truth, results = data
    huge = [result | {"bbox": [0, 0, WIDTH, HEIGHT]} for result in results]
    numbers = score(truth, huge, kinds=("mask",))
    assert_same_as_pycocotools(numbers, truth, huge)
    before = score(truth, results, kinds=("mask",))
    assert numbers["mask"]["ap"] == before["mask"]["ap"]
    assert numbers["mask"]["ap_small"] > before["mask"]["ap_small"]


@pytest.mark.parametrize("unknown", [False, True])
def test_score_no_results(data, unknown):
    truth, results = data
    results = [result | {"category_id": 77} for result in results[:5]] if unknown else []
    numbers = score(truth, results)
    assert_same_as_pycocotools(numbers, truth, results)
    assert set(numbers["mask"].values()) == {0.0}


def test_score_undefined_without_ground_truth(data):
    truth, results = data
    small = [a | {"area": 100.0} for a in truth["annotations"]]
    numbers = score(truth | {"annotations": small}, [])["box"]
    assert (numbers["ap"], numbers["ap_small"]) == (0.0, 0.0)
    assert (numbers["ap_medium"], numbers["ap_large"], numbers["ar_large"]) == (-1.0, -1.0, -1.0)
    assert set(score(truth | {"annotations": []}, results)["mask"].values()) == {-1.0}
    assert set(score(truth, results, image_ids=[])["box"].values()) == {-1.0}


@pytest.mark.parametrize("ids", ["missing", "from 0", "all 3"])
def test_score_completes_annotations(data, ids):
    truth, results = data
    bare = copy.deepcopy(truth)
    for index, annotation in enumerate(bare["annotations"]):
        del annotation["area"], annotation["id"]
        if not annotation["iscrowd"]:
            del annotation["iscrowd"]
        if ids != "missing":
            annotation["id"] = index if ids == "from 0" else 3
    assert score(bare, results) == score(truth, results)


def test_score_area_of_each_kind_of_segmentation(data):
    truth, _ = data
    box = [10, 10, 60, 60]
    for segmentation in (encode(box), [[10, 10, 60, 10, 60, 60, 10, 60]], None, []):
        annotation = {"image_id": 101, "category_id": 1, "bbox": [10, 10, 50, 50]}
        if segmentation is not None:
            annotation["segmentation"] = segmentation
        given = truth | {"annotations": [annotation]}
        numbers = score(given, [annotation | {"score": 1.0}], kinds=("box",))["box"]
        assert (numbers["ap_small"], numbers["ap_medium"], numbers["ap_large"]) == (
            -1.0,
            pytest.approx(1),
            -1.0,
        )


def one_class(annotations, **image):
    """Ground truth of one image; each annotation is given by its box x1, y1, x2, y2 and further fields."""
    entries = []
    for (x1, y1, x2, y2), fields in annotations:
        entry = {"image_id": 1, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
        entries.append(entry | {"segmentation": encode((x1, y1, x2, y2))} | fields)
    image = {"id": 1, "height": HEIGHT, "width": WIDTH} | image
    return {"images": [image], "categories": [{"id": 1, "name": "a"}], "annotations": entries}


def found(*boxes):
    """A result for each box, in falling order of score."""
    return [
        {
            "image_id": 1,
            "category_id": 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": 0.9 - 0.1 * rank,
            "segmentation": encode((x1, y1, x2, y2)),
        }
        for rank, (x1, y1, x2, y2) in enumerate(boxes)
    ]


A, B, ELSEWHERE = (10, 10, 50, 50), (60, 60, 100, 100), (120, 20, 160, 60)
WITHIN_B = (62, 62, 82, 82)  # a quarter of it


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([A], 1.0),  # B is not missed
        ([B, A], 1.0),  # and finding it is not wrong
        ([B], 0.0),  # nor right
        ([ELSEWHERE, A], 0.5),
        ([WITHIN_B, A], 0.5),  # not a crowd, of which any part would do
        ([B, B, A], 0.5),  # the second one has nothing left to match
    ],
)
def test_ignored_annotation_is_neither_right_nor_wrong(boxes, expected, kind):
    truth = one_class([(A, {}), (B, {"ignore": 1})])
    before = copy.deepcopy(truth)
    for _ in range(2):
        assert score(truth, found(*boxes))[kind]["ap50"] == pytest.approx(expected)
    assert truth == before


class WithIgnored(COCOeval):
    """The reference, told to ignore what COCO's files can't say."""

    def _prepare(self):
        super()._prepare()
        for annotations in self._gts.values():
            for annotation in annotations:
                annotation["ignore"] = annotation["iscrowd"] or annotation["difficult"]


def test_ignored_annotations_score_as_in_pycocotools(data, monkeypatch):
    truth, results = data
    rng = np.random.default_rng(3)
    annotations = [a | {"difficult": int(rng.random() < 0.3)} for a in truth["annotations"]]
    truth = truth | {"annotations": [a | {"ignore": a["difficult"]} for a in annotations]}
    numbers = score(truth, results)
    assert numbers["mask"]["ap"] != score(data[0], results)["mask"]["ap"]
    monkeypatch.setitem(globals(), "COCOeval", WithIgnored)
    assert_same_as_pycocotools(numbers, truth, results)


def test_ignore_0_changes_nothing(data):
    truth, results = data
    written_out = [annotation | {"ignore": 0} for annotation in truth["annotations"]]
    assert score(truth | {"annotations": written_out}, results) == score(truth, results)


def test_void_pixels_of_a_mask_do_not_count():
    x1, y1, x2, y2 = A
    wide = (x1 - 5, y1 - 5, x2 + 5, y2 + 5)
    hole = np.zeros((HEIGHT, WIDTH), bool)
    hole[y1:y2, x1:x2] = True
    results = found(wide)  # IoU 1600 / 2500
    assert score(one_class([(A, {})]), results)["mask"]["ap75"] == 0.0
    truth = one_class([(A, {})], void=encode(wide, hole))
    before = copy.deepcopy((truth, results))
    numbers = score(truth, results)
    assert numbers["mask"]["ap"] == pytest.approx(1.0)
    assert numbers["box"]["ap50"] == pytest.approx(1.0)
    assert numbers["box"]["ap75"] == 0.0  # boxes stay as they are
    assert (truth, results) == before
    assert score(truth, results, kinds=("mask",))["mask"] == numbers["mask"]


def test_void_is_taken_out_before_the_iou(data):
    truth, results = data
    rng = np.random.default_rng(4)
    void_of = {image["id"]: rng.random((HEIGHT, WIDTH)) < 0.3 for image in truth["images"][::2]}
    cut = []
    for result in results:
        mask = decode(result["segmentation"])
        mask[void_of.get(result["image_id"], np.zeros_like(mask, bool))] = 0
        rle = mask_utils.encode(np.asfortranarray(mask))
        cut.append(result | {"segmentation": {"size": rle["size"], "counts": rle["counts"].decode()}})
    whole = (0, 0, WIDTH, HEIGHT)
    images = [
        image | ({"void": encode(whole, ~void_of[image["id"]])} if image["id"] in void_of else {})
        for image in truth["images"]
    ]
    numbers = score(truth | {"images": images}, results)
    assert numbers["box"] == score(truth, results)["box"]
    assert numbers["mask"] == score(truth, cut)["mask"] != score(truth, results)["mask"]


@pytest.mark.parametrize("lacking", [{"segmentation": []}, {"segmentation": None}])
def test_annotation_without_a_mask_is_left_out_of_mask_numbers(lacking):
    truth = one_class([(A, {}), (B, lacking)])
    for boxes, box, mask in [
        ([A, B], 1.0, 1.0),
        ([A], 51 / 101, 1.0),  # of 101 recall levels, those up to a half
        ([B], 51 / 101, 0.0),
        ([WITHIN_B, A], 51 / 101 / 2, 1.0),  # there may be anything in the box
        ([ELSEWHERE, A, B], 2 / 3, 0.5),
    ]:
        numbers = score(truth, found(*boxes))
        assert numbers["box"]["ap50"] == pytest.approx(box), boxes
        assert numbers["mask"]["ap50"] == pytest.approx(mask), boxes


def test_without_any_mask_there_are_no_mask_numbers():
    truth = one_class([(A, {"segmentation": []}), (B, {"segmentation": []}), (ELSEWHERE, {"iscrowd": 1})])
    numbers = score(truth, found(A, B))
    assert numbers["box"]["ap"] == pytest.approx(1.0)
    assert numbers["mask"] == dict.fromkeys(METRICS, -1.0)


def test_score_changes_nothing_and_prints_nothing(data, capsys):
    truth, results = data
    before = copy.deepcopy(data)
    handler = logging.StreamHandler(stream := io.StringIO())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        score(truth, results)
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    assert data == before
    assert capsys.readouterr() == ("", "")
    assert stream.getvalue() == ""


@pytest.mark.parametrize("kind", list(KINDS))
def test_format_table_is_what_pycocotools_prints(data, kind):
    truth, results = data
    for given in (truth, truth | {"annotations": []}):
        numbers, printed = reference(given, results, kind)
        assert format_table(numbers, kind) + "\n" == printed


def test_format_table_unknown_kind():
    with pytest.raises(ValueError, match="box, mask"):
        format_table(dict.fromkeys(METRICS, 0.0), "bbox")


def batches(data, size=4):
    truth, results = data
    image_ids = [image["id"] for image in truth["images"]]
    for start in range(0, len(image_ids), size):
        batch = image_ids[start : start + size]
        yield batch, [result for result in results if result["image_id"] in batch]


def test_metric_equals_score_of_its_results(data):
    truth, results = data
    metric = CocoMetric(truth)
    for batch in batches(data):
        metric.update(*batch)
    numbers = metric.compute()
    assert numbers == score(truth, metric.results)
    assert_same_as_pycocotools(numbers, truth, json.loads(json.dumps(metric.results)))
    assert metric.image_ids == list(range(101, 131))
    assert len(metric.results) == len(results)
    order = [(result["image_id"], -result["score"]) for result in metric.results]
    assert order == sorted(order)


def test_metric_counts_an_image_once(data):
    metric = CocoMetric(data[0])
    first, second, *_ = batches(data)
    for batch in (first, second, first):
        metric(*batch)
    numbers = metric.compute()
    assert metric.image_ids == first[0] + second[0]
    assert numbers == score(data[0], metric.results, image_ids=metric.image_ids)
    assert len(metric.results) == len(first[1]) + len(second[1])


def test_metric_goes_on_after_compute_and_resets(data):
    metric = CocoMetric(data[0])
    first, second, *_ = batches(data)
    metric.update(*first)
    early = metric.compute()
    assert early == metric.compute() == score(data[0], first[1], image_ids=first[0])
    metric.update(*second)
    late = metric.compute()
    assert late == score(data[0], first[1] + second[1], image_ids=first[0] + second[0])
    assert late != early
    metric.reset()
    assert (metric.image_ids, metric.results) == ([], [])
    metric.update(*first)
    assert metric.compute() == early


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_metric_without_updates(data):
    metric = CocoMetric(data[0])
    assert metric.compute() == {kind: dict.fromkeys(METRICS, -1.0) for kind in KINDS}
    assert (metric.image_ids, metric.results) == ([], [])


def test_metric_image_without_detections(data):
    metric = CocoMetric(data[0])
    metric.update([EMPTY], [])
    assert metric.compute()["box"]["ap"] == 0.0
    assert metric.image_ids == [EMPTY]


def test_metric_rejects_result_of_another_image(data):
    metric = CocoMetric(data[0])
    with pytest.raises(KeyError, match="102"):
        metric.update([101], [{"image_id": 102, "score": 1.0}])


def test_merge_takes_an_image_from_the_first_rank_that_has_it():
    ranks = [
        {3: [{"score": 0.5}], 1: []},
        {},
        {3: [{"score": 0.4}], 2: [{"score": 0.3}], 1: [{"score": 0.2}]},
    ]
    before = copy.deepcopy(ranks)
    assert _merge(ranks) == {3: [{"score": 0.5}], 1: [], 2: [{"score": 0.3}]}
    assert ranks == before


@pytest.mark.parametrize("rank", [0, 1])
def test_metric_gathers_from_all_ranks(data, monkeypatch, rank):
    """Two ranks that share an image; the process group is replaced by one that knows the other's part."""
    truth, results = data
    parts = []
    for image_ids in (range(101, 116), range(115, 131)):
        parts.append({i: [result for result in results if result["image_id"] == i] for i in image_ids})

    def gather(objects, mine):
        assert mine == parts[rank]
        objects[:] = parts

    def broadcast(objects, src):
        assert (src, bool(objects[0][0])) == (0, rank == 0)  # scored on rank 0 only
        if rank > 0:
            objects[0] = "from rank 0", "its classes"

    for name, value in {
        "is_initialized": lambda: True,
        "get_world_size": lambda: 2,
        "get_rank": lambda: rank,
        "all_gather_object": gather,
        "broadcast_object_list": broadcast,
    }.items():
        monkeypatch.setattr(dist, name, value)
    metric = CocoMetric(truth)
    metric.update(list(parts[rank]), [result for found in parts[rank].values() for result in found])
    numbers = metric.compute()
    assert len(metric.results) == len(results)
    assert metric.image_ids == list(range(101, 131))
    expected = score_classes(truth, metric.results) if rank == 0 else ("from rank 0", "its classes")
    assert (numbers, metric.classes) == expected


def test_scores_of_a_class_are_those_of_pycocotools_for_it_alone(data):
    truth, results = data
    images = list(range(101, 121))
    for image_ids in (None, images):
        numbers, classes = score_classes(truth, results, image_ids=image_ids)
        assert numbers == score(truth, results, image_ids=image_ids)
        assert [one.name for one in classes] == [category["name"] for category in truth["categories"]]
        for category, one in zip(CATEGORIES, classes, strict=True):
            alone = truth | {
                "categories": [entry for entry in truth["categories"] if entry["id"] == category],
                "annotations": [entry for entry in truth["annotations"] if entry["category_id"] == category],
            }
            found = [result for result in results if result["category_id"] == category]
            for kind in KINDS:
                expected, _ = reference(alone, found, kind, image_ids)
                assert one.ap[kind] == pytest.approx((expected["ap"], expected["ap50"]), abs=1e-9)
            counted = [entry for entry in alone["annotations"] if not entry["iscrowd"]]
            assert one.instances == sum(entry["image_id"] in (image_ids or range(200)) for entry in counted)
        assert classes[-1].ap == {"box": (-1, -1), "mask": (-1, -1)}  # has results, but nothing to find
        assert classes[0].ap["box"] != classes[0].ap["mask"]
        means = [np.mean([one.ap["mask"][i] for one in classes if one.instances]) for i in (0, 1)]
        assert means == pytest.approx([numbers["mask"]["ap"], numbers["mask"]["ap50"]])


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "results.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def test_read_results(data, write):
    truth, results = data
    boxes = [{key: value for key, value in result.items() if key != "segmentation"} for result in results]
    masks = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
    assert read_results(write(results), truth) == (results, ("box", "mask"))
    assert read_results(write(boxes), truth) == (boxes, ("box",))
    assert read_results(write(masks), truth) == (masks, ("mask",))
    assert read_results(write([]), truth) == ([], ("box", "mask"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("number", "should be a COCO result"),
        ({"image_id": ...}, "no 'image_id'"),
        ({"category_id": ...}, "no 'category_id'"),
        ({"score": ...}, "no 'score'"),
        ({"image_id": 999}, "unknown image_id.* 999"),
        ({"image_id": [101]}, "unknown image_id"),
        ({"category_id": 4}, "unknown category_id.* 4"),
        ({"category_id": "cat"}, "unknown category_id.* 'cat'"),
        ({"bbox": ..., "segmentation": ...}, "neither 'bbox' nor 'segmentation'"),
        ({"segmentation": ...}, "not the same"),
        ({"score": float("nan")}, "score .* nan"),
        ({"score": "0.5"}, "score .* '0.5'"),
        ({"score": True}, "score .* True"),
        ({"bbox": [1, 2, 3]}, "bbox"),
        ({"bbox": 5}, "bbox"),
        ({"bbox": [1, 2, float("inf"), 4]}, "bbox"),
        ({"bbox": [1, 2, "3", 4]}, "bbox"),
        ({"segmentation": [[1, 1, 5, 1, 5, 5]]}, "not a compressed RLE"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}}, "not a compressed RLE"),
        ({"segmentation": {"counts": "55"}}, "not a compressed RLE"),
        ({"segmentation": encode([1, 1, 5, 5]) | {"size": [WIDTH, HEIGHT]}}, r"size \[200, 160\]"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "hello"}}, "malformed RLE"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "OOO"}}, "malformed RLE"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "55"}}, "malformed RLE .10 pixels"),
    ],
)
def test_read_results_names_the_bad_entry(data, write, change, message):
    truth, results = data
    entry = 5
    if isinstance(change, dict):
        entry = {key: value for key, value in (results[1] | change).items() if value is not ...}
    path = write([results[0], entry])
    with pytest.raises(UserError, match=message) as caught:
        read_results(path, truth)
    assert str(caught.value).startswith(f"{path}: entry 1 ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not JSON"), ('{"annotations": []}', "should be a list"), ("\x00", "not JSON")],
)
def test_read_results_names_the_bad_file(data, write, content, message):
    path = write(content)
    with pytest.raises(UserError, match=message) as caught:
        read_results(path, data[0])
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_read_results_missing_file(data, tmp_path):
    with pytest.raises(UserError, match=r"absent\.json: can't be read"):
        read_results(tmp_path / "absent.json", data[0])

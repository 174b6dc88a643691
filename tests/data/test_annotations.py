"""Entries become arrays and come back as they were; what is saved is opened, shared and verified."""

import contextlib
import copy
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn.data.annotations import Annotations, index_annotations
from maskrcnn.errors import UserError


def index(content, source="f.json"):
    annotations, problems = index_annotations(source=Path(source), **content)
    assert problems == []
    return annotations


def arrays(annotations):
    return {name: value for name, value in vars(annotations).items() if isinstance(value, np.ndarray)}


def assert_same(first, second):
    assert (first.categories, first.notes, first.annotated) == (second.categories, second.notes, second.annotated)
    for name, values in arrays(first).items():
        other = getattr(second, name)
        assert (values.dtype, values.shape) == (other.dtype, other.shape), name
        assert np.array_equal(values, other), name


def truth(content):
    """pycocotools' index of a parsed file."""
    reference = COCO()
    reference.dataset = copy.deepcopy(content)
    with contextlib.redirect_stdout(io.StringIO()):
        reference.createIndex()
    return reference


def scores(content, results, kind):
    reference = truth(content)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(reference, reference.loadRes(copy.deepcopy(results)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def test_entries_may_be_lazy(content):
    lazy = {section: iter(entries) for section, entries in content.items()}
    assert_same(index(lazy), index(content))


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_ground_truth_scores_as_the_file(content, kind):
    rng = np.random.default_rng(0)
    shaken = copy.deepcopy(content)
    results = []
    for annotation in shaken["annotations"]:
        annotation["bbox"] = (annotation["bbox"] + rng.uniform(-3, 3, 4)).tolist()
        if isinstance(annotation["segmentation"], list):
            shift = rng.uniform(-3, 3)
            annotation["segmentation"] = [[v + shift for v in ring] for ring in annotation["segmentation"]]
        result = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
        rle = truth(shaken).annToRLE(annotation)
        results.append(result | {"score": float(rng.random()), "segmentation": rle})
    content["annotations"][4]["iscrowd"] = 1
    expected = scores(content, results, kind)
    found = scores(index(content).ground_truth(range(4)), results, kind)
    assert 0 < expected.stats[0] < 1
    assert found.stats.tolist() == expected.stats.tolist()
    assert np.array_equal(found.eval["precision"], expected.eval["precision"])


def test_ground_truth_has_the_numbers_of_the_file(content):
    found = index(content).ground_truth(range(4))
    assert found["images"] == content["images"]
    assert found["categories"] == sorted(content["categories"], key=lambda category: category["id"])
    by_id = {annotation["id"]: annotation for annotation in found["annotations"]}
    reference = truth(content)
    for annotation in content["annotations"]:
        entry = by_id.pop(annotation["id"])
        segmentation = entry.pop("segmentation")
        if isinstance(segmentation, list):
            assert segmentation == annotation["segmentation"]
        else:
            assert isinstance(segmentation["counts"], str)
            assert np.array_equal(coco_mask.decode(segmentation), reference.annToMask(annotation))
        assert entry == {key: value for key, value in annotation.items() if key != "segmentation"}
    assert by_id == {}


def test_ground_truth_of_some_images_and_categories(content):
    found = index(content).ground_truth(np.array([3, 0]), categories=iter([5]))
    assert [image["id"] for image in found["images"]] == [30, 12]
    assert [annotation["id"] for annotation in found["annotations"]] == [40, 41, 17]
    assert found["categories"] == [{"id": 5, "name": "boat"}]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(6)))
def test_instances_are_sorted_by_image_and_keep_their_order_there(content, order):
    entries = [content["annotations"][i] for i in order]
    annotations = index(content | {"annotations": entries})
    expected = [entry["id"] for image in content["images"] for entry in entries if entry["image_id"] == image["id"]]
    assert annotations.annotation_ids.tolist() == expected
    by_id = {entry["id"]: entry for entry in entries}
    for instance, id in enumerate(expected):
        assert annotations.boxes[instance].tolist() == by_id[id]["bbox"]
        if isinstance(by_id[id]["segmentation"], list):
            assert annotations.segmentation(instance) == by_id[id]["segmentation"]
        else:
            mask = coco_mask.decode(annotations.segmentation(instance))
            assert np.array_equal(mask, truth(content).annToMask(by_id[id]))


def test_difficult_annotations(content):
    content["annotations"][1]["difficult"] = 1
    annotations = index(content)
    assert annotations.difficult.tolist() == [False, True, False, False, False, False]
    ignored = [annotation.get("ignore") for annotation in annotations.ground_truth(range(4))["annotations"]]
    assert ignored == [None, 1, None, None, None, None]


def test_void_of_an_image(content):
    mask = np.zeros((48, 64), np.uint8, order="F")
    mask[:5] = 1
    rle = coco_mask.encode(mask)
    content["images"][0]["void"] = rle | {"counts": rle["counts"].decode()}
    content["images"][2]["void"] = rle
    images = index(content).ground_truth(range(4))["images"]
    assert ["void" in image for image in images] == [True, False, True, False]
    for image in (images[0], images[2]):
        assert np.array_equal(coco_mask.decode(image["void"]), mask)


@pytest.mark.parametrize(
    ("void", "message"),
    [
        ({"size": [64, 48], "counts": [3072]}, "f.json: image 12 has a void mask of size [64, 48], it has [48, 64]"),
        ({"size": [48, 64], "counts": [7]}, "f.json: image 12 has run lengths that add up to 7, not to 48 x 64"),
        ([1, 2], "f.json: image 12 has a run-length mask of size None"),
    ],
)
def test_malformed_void(content, void, message):
    content["images"][0]["void"] = void
    _, problems = index_annotations(source=Path("f.json"), **content)
    assert len(problems) == 1
    assert problems[0].message.startswith(message)


def test_annotations_without_an_id_are_numbered(content):
    for entry, id in zip(content["annotations"], (None, "x1", 2.5, 2**70), strict=False):
        entry["id"] = id
    del content["annotations"][4]["id"]
    assert index(content).annotation_ids.tolist() == [1, 2, 3, 4, 5, 41]
    del content["annotations"][2]["id"]
    content["annotations"][2]["image_id"] = 99
    _, (problem,) = index_annotations(source=Path("f.json"), **content)
    assert problem.message.startswith("f.json: annotation number 2 has image_id 99")


def test_no_category_is_an_error(content):
    with pytest.raises(UserError, match=r"f\.json: categories is empty"):
        index(content | {"categories": [], "annotations": []})


def test_no_image_is_an_empty_split(content):
    annotations = index(content | {"images": [], "annotations": []})
    assert annotations.first_instance.tolist() == [0]
    assert annotations.ground_truth([])["images"] == []


def test_annotations_are_kept_in_arrays_that_nobody_changes(content):
    annotations = index(content)
    assert [name for name, value in vars(annotations).items() if isinstance(value, list)] == ["categories"]
    for values in arrays(annotations).values():
        with pytest.raises(ValueError, match="read-only"):
            values[:1] = 0


@pytest.mark.parametrize("empty", [False, True])
def test_saved_annotations_are_the_same(tmp_path, content, empty):
    if empty:
        content = content | {"annotations": None}
    content["annotations"] and content["annotations"][0].pop("area")
    annotations = index(content)
    annotations.save(tmp_path / "a" / "b")
    opened = Annotations.open(tmp_path / "a" / "b")
    assert_same(opened, annotations)
    assert opened.source == annotations.source
    assert opened.ground_truth(range(4)) == annotations.ground_truth(range(4))
    assert len(opened.notes) == (0 if empty else 1)


def test_saved_arrays_are_mapped_and_read_only(tmp_path, content):
    index(content).save(tmp_path / "a")
    annotations = Annotations.open(tmp_path / "a")
    assert isinstance(annotations.points.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        annotations.points[0] = 0


def test_pickle_of_saved_annotations_holds_no_data(tmp_path, content):
    content["annotations"] *= 100
    annotations = index(content)
    annotations.save(tmp_path / "a")
    opened = Annotations.open(tmp_path / "a")
    assert len(pickle.dumps(opened)) < 500
    assert len(pickle.dumps(annotations)) > 10_000
    for original in (opened, annotations):
        assert_same(pickle.loads(pickle.dumps(original)), original)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_to_any_file_is_noticed(tmp_path, content, damage):
    index(content).save(tmp_path / "a")
    files = sorted((tmp_path / "a").iterdir())
    assert len(files) == len(arrays(index(content))) + 2
    for path in files:
        data = path.read_bytes()
        path.unlink()
        if damage == "flip":
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        elif damage == "cut":
            path.write_bytes(data[:-1])
        with pytest.raises((OSError, ValueError)):
            Annotations.open(tmp_path / "a")
        path.write_bytes(data)
    Annotations.open(tmp_path / "a")

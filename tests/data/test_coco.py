"""The reader is compared with pycocotools; every malformed file is one error that names the culprit."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from maskrcnn.data.coco import CocoDataset, index_instances, read_instances
from maskrcnn.errors import UserError

NAN = float("nan")


def load(path, *, use_crowd=False):
    annotations = index_instances(path, read_instances(path), use_crowd=use_crowd)
    folder = path.parents[1] / path.stem.removeprefix("instances_")
    return CocoDataset(annotations=annotations, images=folder, indices=np.arange(len(annotations.image_ids)))


def masks(sample):
    return [coco_mask.decode(outline.rle(sample.size)) for outline in sample.outlines]


@pytest.fixture
def path(tmp_path, write):
    return write(tmp_path)


def test_outlines_are_pycocotools_masks(path):
    dataset, reference = load(path, use_crowd=True), COCO(path)
    for index in range(len(dataset)):
        sample = dataset[index]
        annotations = reference.loadAnns(reference.getAnnIds(imgIds=sample.image_id))
        expected = [reference.annToMask(annotation) for annotation in annotations]
        assert len(sample.outlines) == len(expected)
        assert all(map(np.array_equal, masks(sample), expected))


def test_labels_follow_the_category_ids(path):
    dataset = load(path)
    assert dataset.annotations.categories == [
        {"id": 5, "name": "boat"},
        {"id": 44, "name": "cup"},
        {"id": 90, "name": "kite"},
    ]
    labels = {sample.image_id: sample.labels.tolist() for sample in (dataset[i] for i in range(4))}
    assert labels == {12: [3, 1], 7: [], 4: [3, 2], 30: [1]}


def test_pictures_come_as_rgb_with_their_ids(path):
    dataset = load(path)
    assert dataset.annotations.image_ids.tolist() == [12, 7, 4, 30]
    image, image_id = dataset.image(0)
    assert image_id == 12
    assert np.array_equal(image, np.asarray(Image.open(path.parents[1] / "train2017" / "a.png")))


def test_image_without_annotations(path):
    sample = load(path)[1]
    assert sample.outlines == []
    assert sample.labels.shape == (0,)
    assert sample.labels.dtype == np.int64


def test_crowds_are_left_out_unless_asked_for(path):
    assert len(load(path)[3].outlines) == 1
    crowd = load(path, use_crowd=True)[3]
    assert len(crowd.outlines) == 2
    assert masks(crowd)[0].all()


def test_file_without_any_annotation(tmp_path, write, content):
    content["annotations"] = []
    dataset = load(write(tmp_path, content))
    assert [len(dataset[i].outlines) for i in range(4)] == [0, 0, 0, 0]


def test_annotations_are_kept_in_arrays(path):
    lists = [name for name, value in vars(load(path).annotations).items() if isinstance(value, list)]
    assert lists == ["categories"]


@pytest.mark.parametrize(
    "box",
    [[10, 10, 0, 5], [10, 10, 5, 0.0], [10, 10, -5, 5], [64, 10, 5, 5], [10, 480, 5, 5], [-9, 10, 9, 5]],
)
def test_boxes_without_area_and_boxes_outside_are_left_out(tmp_path, write, content, caplog, box):
    for index in (0, 1):
        content["annotations"][index]["bbox"] = box
    content["annotations"][0] |= {"segmentation": []}
    del content["annotations"][1]["segmentation"]
    path = write(tmp_path, content)
    with caplog.at_level(logging.WARNING):
        dataset = load(path)
    assert len(dataset[0].outlines) == 0
    assert len(dataset[2].outlines) == 2
    (record,) = caplog.records
    reason = "has no area" if min(box[2:]) <= 0 else "lies outside of the picture"
    expected = f"{path}: 2 annotations left out, their box {reason} (first: annotation 3)"
    assert record.getMessage() == expected


def test_nothing_is_reported_of_a_good_file(path, caplog):
    with caplog.at_level(logging.INFO):
        load(path)
    assert not caplog.records


def test_boxes_partly_outside_are_clipped(tmp_path, write, content, caplog):
    content["annotations"][0] |= {
        "bbox": [-5, -5, 25, 25],
        "segmentation": [[-5, -5, 20, -5, 20, 20, -5, 20]],
    }
    dataset = load(write(tmp_path, content))
    sample = dataset[0]
    assert sample.outlines[0].box(sample.size).tolist() == [0, 0, 20, 20]
    assert not caplog.records


def change(section, index, **values):
    def apply(content):
        content[section][index] |= values

    return apply


def drop(section, index, key):
    def apply(content):
        del content[section][index][key]

    return apply


def outline(segmentation, index=0):
    return change("annotations", index, segmentation=segmentation)


MALFORMED = {
    "no images": (lambda c: c.pop("images"), "it has no list images"),
    "no annotations": (lambda c: c.pop("annotations"), "it has no list annotations"),
    "no categories": (lambda c: c.pop("categories"), "it has no list categories"),
    "images not a list": (lambda c: c.update(images={}), "it has no list images"),
    "empty categories": (lambda c: c.update(categories=[], annotations=[]), "categories is empty"),
    "image is no object": (lambda c: c["images"].append(5), "image number 4 is not an object but 5"),
    "image without id": (drop("images", 2, "id"), "image number 2 has no id"),
    "image without file_name": (drop("images", 0, "file_name"), "image 12 has no file_name"),
    "image without height": (drop("images", 0, "height"), "image 12 has no height"),
    "image of another type": (change("images", 0, width="64"), "image 12 has width '64', not an integer"),
    "image without size": (change("images", 0, width=0), "image 12 is 0 x 48 pixels"),
    "image id a string": (change("images", 0, id="12"), "image 12 has id '12', not an integer"),
    "category without name": (drop("categories", 1, "name"), "category 5 has no name"),
    "category id a list": (change("categories", 1, id=[]), "has id [], not an integer"),
    "image id twice": (change("images", 1, id=12), "images holds id 12 2 times"),
    "category id twice": (change("categories", 1, id=90), "categories holds id 90 2 times"),
    "annotation without image_id": (drop("annotations", 1, "image_id"), "annotation 17 has no image_id"),
    "annotation without bbox": (drop("annotations", 1, "bbox"), "annotation 17 has no bbox"),
    "annotation without id": (lambda c: c["annotations"][1].clear(), "annotation number 1 has no image_id"),
    "unknown image": (change("annotations", 1, image_id=99), "annotation 17 has image_id 99"),
    "unknown category": (change("annotations", 1, category_id=1), "annotation 17 has category_id 1"),
    "image_id a list": (change("annotations", 1, image_id=[12]), "annotation 17 has image_id [12]"),
    "three numbers": (change("annotations", 1, bbox=[1, 2, 3]), "annotation 17 has bbox [1, 2, 3]"),
    "words in a box": (change("annotations", 1, bbox=["a", 2, 3, 4]), "annotation 17 has bbox"),
    "box not a number": (change("annotations", 1, bbox=[NAN, 2, 3, 4]), "annotation 17 has bbox"),
    "null in a box": (change("annotations", 1, bbox=[None, 2, 3, 4]), "annotation 17 has bbox"),
    "no segmentation": (drop("annotations", 1, "segmentation"), "annotation 17 (image id 12) has no segm"),
    "empty segmentation": (outline([]), "annotation 3 (image id 12) has no segmentation"),
    "null segmentation": (outline(None), "annotation 3 (image id 12) has no segmentation"),
    "segmentation a string": (outline("abc"), "annotation 3 (image id 12) has segmentation 'abc'"),
    "polygon of two points": (outline([[1, 2, 3, 4]]), "annotation 3 (image id 12) has a polygon"),
    "polygon of an odd length": (
        outline([[1, 2, 3, 4, 5, 6, 7]]),
        "annotation 3 (image id 12) has a polygon",
    ),
    "polygon not a list": (outline([1, 2, 3, 4, 5, 6]), "annotation 3 (image id 12) has a polygon"),
    "polygon of words": (outline([["a"] * 6]), "annotation 3 (image id 12) has a polygon"),
    "polygon not a number": (outline([[0, 0, 1, 0, NAN, 3]]), "annotation 3 (image id 12) has a polygon"),
    "polygon far away": (outline([[0, 0, 1e9, 0, 1e9, 3]]), "annotation 3 (image id 12) has a polygon"),
    "run lengths of another size": (
        outline({"size": [48, 65], "counts": [3120]}, 2),
        "annotation 18 (image id 4) has a run-length mask of size [48, 65], its picture has [48, 64]",
    ),
    "run lengths without size": (
        outline({"counts": [3072]}, 2),
        "annotation 18 (image id 4) has a run-length",
    ),
    "run lengths without counts": (
        outline({"size": [48, 64]}, 2),
        "annotation 18 (image id 4) has a malformed",
    ),
    "run lengths too short": (
        outline({"size": [48, 64], "counts": [10, 5]}, 2),
        "annotation 18 (image id 4) has run lengths that add up to 15, not to 48 x 64",
    ),
    "negative run lengths": (
        outline({"size": [48, 64], "counts": [-1, 3073]}, 2),
        "annotation 18 (image id 4)",
    ),
    "run lengths of words": (outline({"size": [48, 64], "counts": ["a"]}, 2), "annotation 18 (image id 4)"),
    "compressed too short": (
        outline({"size": [48, 64], "counts": "0"}, 2),
        "annotation 18 (image id 4) has run",
    ),
    "compressed garbage": (
        outline({"size": [48, 64], "counts": "PPPPPP"}, 2),
        "annotation 18 (image id 4) has a mal",
    ),
    "compressed beyond ASCII": (
        outline({"size": [48, 64], "counts": "é"}, 2),
        "annotation 18 (image id 4) has a",
    ),
    "malformed crowd": (outline({"size": [40, 40], "counts": "0"}, 4), "annotation 40 (image id 30) has run"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_file_is_one_error_that_names_the_culprit(tmp_path, write, content, case):
    path = write(tmp_path)
    spoil, message = MALFORMED[case]
    spoil(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(counts=st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=12))
def test_any_compressed_text_is_a_mask_or_an_error(content, counts):
    annotation = content["annotations"][2] | {"segmentation": {"size": [48, 64], "counts": counts}}
    try:
        annotations = index_instances(Path("f"), content | {"annotations": [annotation]}, use_crowd=False)
    except UserError:
        return
    assert annotations.outline(0, (48, 64)).bitmap.max() <= 1


def test_crowd_without_segmentation_is_left_out(tmp_path, write, content):
    del content["annotations"][4]["segmentation"]
    assert len(load(write(tmp_path, content))[3].outlines) == 1


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "not json", "\xff\xfe\x00", "null", "[" * 100_000])
def test_file_that_is_not_an_instances_file(tmp_path, text):
    path = tmp_path / "instances.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"instances\.json: (not JSON|not a COCO instances file)"):
        read_instances(path)


def test_missing_file_is_named(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError, match=f"{path}: no such annotation file"):
            read_instances(path)


def test_picture_of_another_size_is_named(path):
    Image.new("RGB", (10, 10)).save(path.parents[1] / "train2017" / "a.png")
    with pytest.raises(UserError, match=r"a\.png \(image id 12\) is 10 x 10 pixels, but .* says 64 x 48"):
        load(path)[0]


@pytest.mark.skipif("MASKRCNN_REAL_DATA" not in os.environ, reason="MASKRCNN_REAL_DATA names a COCO folder")
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_real_data_is_read_as_pycocotools_reads_it(split):
    path = Path(os.environ["MASKRCNN_REAL_DATA"]) / "annotations" / f"instances_{split}.json"
    dataset, reference = load(path, use_crowd=True), COCO(path)
    overlaps = []
    for index in range(len(dataset)):
        sample = dataset[index]
        annotations = reference.loadAnns(reference.getAnnIds(imgIds=sample.image_id))
        assert len(annotations) == len(sample.outlines)
        for mask, annotation in zip(masks(sample), annotations, strict=True):
            expected = reference.annToMask(annotation)
            if isinstance(annotation["segmentation"], dict):
                assert np.array_equal(mask, expected)
            overlaps.append((mask & expected).sum() / max((mask | expected).sum(), 1))
    assert np.mean(overlaps) > 0.97
    assert len(overlaps) == len(reference.anns)

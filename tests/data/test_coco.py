"""The reader is compared with pycocotools; every malformed file is one error that names the culprit."""

import json
import logging
import os
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from maskrcnn.data.annotations import index_annotations
from maskrcnn.data.coco import CocoDataset
from maskrcnn.errors import UserError

NAN = float("nan")
INFINITY = float("inf")


def dataset(path):
    return CocoDataset(annotations=path, images=path.parents[1] / path.stem.removeprefix("instances_"))


def load(path):
    return dataset(path).annotations


def masks(annotations, position):
    size = annotations.sizes[position].tolist()
    instances = range(*annotations.first_instance[position : position + 2])
    return [coco_mask.decode(annotations.outline(i).rle(size)) for i in instances]


def of_images(annotations, values):
    """Values by image id."""
    starts = annotations.first_instance.tolist()
    return {
        image_id: values[first:last].tolist()
        for image_id, first, last in zip(annotations.image_ids.tolist(), starts, starts[1:], strict=False)
    }


@pytest.fixture
def path(tmp_path, write):
    return write(tmp_path)


def test_outlines_are_pycocotools_masks(path):
    annotations, reference = load(path), COCO(path)
    for position, image_id in enumerate(annotations.image_ids.tolist()):
        expected = [reference.annToMask(a) for a in reference.loadAnns(reference.getAnnIds(imgIds=image_id))]
        found = masks(annotations, position)
        assert len(found) == len(expected)
        assert all(map(np.array_equal, found, expected))


def test_labels_follow_the_category_ids(path):
    annotations = load(path)
    assert annotations.categories == [
        {"id": 5, "name": "boat"},
        {"id": 44, "name": "cup"},
        {"id": 90, "name": "kite"},
    ]
    assert of_images(annotations, annotations.labels) == {12: [3, 1], 7: [], 4: [3, 2], 30: [1, 1]}


def test_images_keep_their_order_names_and_sizes(path):
    annotations = load(path)
    assert annotations.image_ids.tolist() == [12, 7, 4, 30]
    assert [annotations.file_name(i) for i in range(4)] == ["a.png", "blank.png", "b.jpg", "c.png"]
    assert annotations.sizes.tolist() == [[48, 64], [32, 32], [48, 64], [40, 40]]


def test_what_the_file_says_of_each_annotation(path):
    annotations = load(path)
    assert of_images(annotations, annotations.annotation_ids) == {12: [3, 17], 7: [], 4: [18, 19], 30: [40, 41]}
    assert of_images(annotations, annotations.crowd)[30] == [True, False]
    assert of_images(annotations, annotations.boxes)[12] == [[10, 10, 21, 31], [5, 5, 35, 20]]
    assert of_images(annotations, annotations.areas)[12] == [300, 700]
    assert annotations.usable.all()
    assert not annotations.difficult.any()


def test_pictures_come_as_rgb(path):
    expected = np.asarray(Image.open(path.parents[1] / "train2017" / "a.png"))
    assert np.array_equal(dataset(path).read_image(0), expected)


def test_file_without_any_annotation(tmp_path, write, content):
    content["annotations"] = []
    annotations = load(write(tmp_path, content))
    assert annotations.annotated
    assert annotations.first_instance.tolist() == [0, 0, 0, 0, 0]
    assert annotations.points.shape == (0, 2)


@pytest.mark.parametrize("spoil", [lambda c: c.pop("annotations"), lambda c: c.update(annotations=None)])
def test_file_of_a_test_split(tmp_path, write, content, spoil):
    path = write(tmp_path, content)
    spoil(content)
    path.write_text(json.dumps(content))
    annotations = load(path)
    assert not annotations.annotated
    assert annotations.image_ids.tolist() == [12, 7, 4, 30]
    assert len(annotations.categories) == 3
    assert annotations.labels.shape == (0,)


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("seed", range(4))
def test_order_of_sections_and_entries_does_not_matter(tmp_path, write, content, seed, indent):
    expected = load(write(tmp_path / "a", content)).ground_truth(range(4))
    sections = list((content | {"info": {"year": [2017, {}]}, "licenses": [], 'a "key"': "]},{["}).items())
    random.Random(seed).shuffle(sections)
    path = write(tmp_path / "b", content)
    path.write_text(json.dumps(dict(sections), indent=indent))
    assert load(path).ground_truth(range(4)) == expected


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_names_beyond_ascii(tmp_path, write, content, encoding):
    path = write(tmp_path)
    content["images"][0]["file_name"] = "bilder/\u00e4 \u4f60\U0001f600.png"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding=encoding)
    assert load(path).file_name(0) == "bilder/\u00e4 \u4f60\U0001f600.png"
    assert load(path).file_name(1) == "blank.png"


def test_file_name_that_is_no_text(tmp_path, write, content):
    name = os.fsdecode(b"\xff.png")
    path = write(tmp_path)
    content["images"][0]["file_name"] = name
    path.write_text(json.dumps(content))
    assert load(path).file_name(0) == name


@pytest.mark.parametrize(
    "box",
    [[10, 10, 0, 5], [10, 10, 5, 0.0], [10, 10, -5, 5], [64, 10, 5, 5], [10, 480, 5, 5], [-9, 10, 9, 5]],
)
def test_boxes_without_area_and_boxes_outside_are_not_usable(tmp_path, write, content, box):
    for index in (0, 1):
        content["annotations"][index]["bbox"] = box
    annotations = load(write(tmp_path, content))
    assert of_images(annotations, annotations.usable) == {12: [False, False], 7: [], 4: [True] * 2, 30: [True] * 2}
    reason = "has no area" if min(box[2:]) <= 0 else "lies outside of the picture"
    assert annotations.notes == (f"2 annotations left out, their box {reason} (first: annotation 3)",)
    assert [a["id"] for a in annotations.ground_truth([0])["annotations"]] == [3, 17]


def test_malformed_outline_of_what_is_not_usable_is_no_problem(tmp_path, write, content):
    content["annotations"][0] |= {"segmentation": [[1, 2, 1, 2]], "bbox": [1, 2, 0, 0]}
    annotations = load(write(tmp_path, content))
    assert annotations.segmentation(0) == []
    assert not annotations.usable[0]


def test_nothing_is_reported_of_a_good_file(path, caplog):
    with caplog.at_level(logging.INFO):
        assert load(path).notes == ()
    assert not caplog.records


def test_boxes_partly_outside_are_fine(tmp_path, write, content):
    outline = [[-5, -5, 20, -5, 20, 20, -5, 20]]
    content["annotations"][0] |= {"bbox": [-5, -5, 25, 25], "segmentation": outline, "area": 625}
    annotations = load(write(tmp_path, content))
    assert annotations.notes == ()
    assert annotations.usable.all()
    assert annotations.segmentation(0) == outline


@pytest.mark.parametrize("segmentation", [[], None, {}, "", [[]]])
def test_annotation_of_a_box_alone(tmp_path, write, content, segmentation):
    content["annotations"][0]["segmentation"] = segmentation
    del content["annotations"][1]["segmentation"]
    annotations = load(write(tmp_path, content))
    assert annotations.has_outline.tolist() == [False, False, True, True, True, True]
    assert annotations.segmentation(0) == annotations.segmentation(1) == []
    outline = annotations.outline(0)
    assert outline.box_only
    assert outline.box.tolist() == [10, 10, 31, 41]


def test_names_that_come_twice_are_kept_apart(tmp_path, write, content):
    content["categories"] = [{"id": i, "name": "cat"} for i in (90, 5, 44)] + [{"id": 91, "name": "cat (id 44)"}]
    annotations = load(write(tmp_path, content))
    names = ["cat", "cat (id 44)", "cat (id 90)", "cat (id 44) (id 91)"]
    assert [category["name"] for category in annotations.categories] == names
    assert annotations.notes == ("3 categories have the name of another (first: cat (id 44))",)


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
    "no images and categories": (
        lambda c: (c.pop("images"), c.pop("categories")),
        "it has no list images and no list categories",
    ),
    "annotations not a list": (lambda c: c.update(annotations={}), "it has no list annotations"),
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
    "image id beyond 64 bits": (change("images", 0, id=2**64), "not an integer of 64 bits"),
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
    "infinity in a box": (change("annotations", 1, bbox=[1, 2, INFINITY, 4]), "annotation 17 has bbox"),
    "box far away": (change("annotations", 1, bbox=[1, 2, 1e300, 4]), "annotation 17 has bbox [1, 2, 1e+300"),
    "box of huge integers": (change("annotations", 1, bbox=[1, 2, 10**400, 4]), "annotation 17 has bbox"),
    "null in a box": (change("annotations", 1, bbox=[None, 2, 3, 4]), "annotation 17 has bbox"),
    "segmentation a string": (outline("abc"), "annotation 3 (image id 12) has segmentation 'abc'"),
    "polygon of two points": (outline([[1, 2, 3, 4]]), "annotation 3 (image id 12) has a polygon"),
    "polygon of an odd length": (
        outline([[1, 2, 3, 4, 5, 6, 7]]),
        "annotation 3 (image id 12) has a polygon",
    ),
    "polygon not a list": (outline([1, 2, 3, 4, 5, 6]), "annotation 3 (image id 12) has a polygon"),
    "polygon of words": (outline([["a"] * 6]), "annotation 3 (image id 12) has a polygon"),
    "polygon not a number": (outline([[0, 0, 1, 0, NAN, 3]]), "annotation 3 (image id 12) has a polygon"),
    "polygon with infinity": (outline([[0, 0, 1, 0, INFINITY, 3]]), "annotation 3 (image id 12) has a polygon"),
    "second polygon": (outline([[0, 0, 1, 0, 1, 3], [1, 2]]), "annotation 3 (image id 12) has a polygon"),
    "polygon of null": (outline([[0, 0, 1, 0, None, 3]]), "annotation 3 (image id 12) has a polygon"),
    "polygon far away": (outline([[0, 0, 1e9, 0, 1e9, 3]]), "annotation 3 (image id 12) has a polygon"),
    "run lengths of another size": (
        outline({"size": [48, 65], "counts": [3120]}, 2),
        "annotation 18 (image id 4) has a run-length mask of size [48, 65], its picture has [48, 64]",
    ),
    "run lengths without size": (
        outline({"counts": [3072]}, 2),
        "annotation 18 (image id 4) has a run-length",
    ),
    "run lengths of a negative size": (outline({"size": [-48, -64], "counts": [3072]}, 2), "mask of size [-48, -64]"),
    "run lengths of a huge size": (outline({"size": [10**9, 10**9], "counts": []}, 2), "mask of size"),
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
    assert "\n" not in str(caught.value)


def test_every_problem_is_collected(tmp_path, write, content):
    path = write(tmp_path)
    del content["images"][1]["height"]
    content["categories"].append({"id": 7})
    content["annotations"][0]["image_id"] = 99
    content["annotations"][1]["segmentation"] = [[1, 2, 3, 4]]
    content["annotations"][2]["segmentation"]["size"] = [64, 48]
    content["annotations"][5]["bbox"] = None
    path.write_text(json.dumps(content))
    annotations, problems = dataset(path).read_annotations()
    expected = [
        "image 7 has no height",
        "annotation 41 has bbox None",
        "category 7 has no name",
        "annotation 3 has image_id 99",
        "annotation 18 (image id 4) has a run-length mask of size [64, 48]",
        "annotation 17 (image id 12) has a polygon",
    ]
    assert len(problems) == len(expected)
    for problem, start in zip(problems, expected, strict=True):
        assert problem.message.startswith(f"{path}: {start}")
    assert annotations.annotation_ids.tolist() == [19, 40]
    with pytest.raises(UserError, match=r"image 7 .* \(and 5 more problems; python -m maskrcnn\.check_data lists them"):
        load(path)


def test_annotations_of_a_refused_image_are_no_further_problems(tmp_path, write, content):
    path = write(tmp_path)
    content["images"][0]["width"] = 0
    del content["categories"][0]["name"]
    path.write_text(json.dumps(content))
    assert len(dataset(path).problems) == 2


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(counts=st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=12))
def test_any_compressed_text_is_a_mask_or_a_problem(content, counts):
    annotation = content["annotations"][2] | {"segmentation": {"size": [48, 64], "counts": counts}}
    annotations, problems = index_annotations(source=Path("f"), **content | {"annotations": [annotation]})
    if problems:
        assert len(annotations.labels) == 0
    else:
        mask = coco_mask.decode(annotations.outline(0).rle((48, 64)))
        assert np.array_equal(mask, coco_mask.decode({"size": [48, 64], "counts": counts}))


def test_crowd_without_segmentation_is_its_box(tmp_path, write, content):
    del content["annotations"][4]["segmentation"]
    annotations = load(write(tmp_path, content))
    assert of_images(annotations, annotations.has_outline)[30] == [False, True]


TEXTS = ["", "{", "[1, 2]", "not json", "\xff\xfe\x00", "null", "[" * 100_000, '{"images": ' + "[" * 100_000]


@pytest.mark.parametrize("text", TEXTS)
def test_file_that_is_not_an_instances_file(tmp_path, text):
    path = tmp_path / "instances.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"instances\.json: (not JSON|not a COCO instances file)") as caught:
        load(path)
    assert "\n" not in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_text_with_a_change_is_read_as_json_is(tmp_path, content, data):
    """Wherever something is cut out, put in or cut off, the file is refused as JSON if json refuses it."""
    text = json.dumps({key: content[key][:1] for key in ("images", "annotations", "categories")}, indent=1)
    first = data.draw(st.integers(0, len(text)))
    last = data.draw(st.integers(first, min(first + 2, len(text))) | st.just(len(text)))
    text = text[:first] + data.draw(st.sampled_from(["", *'{}[]:,"0 '])) + text[last:]
    path = tmp_path / "f.json"
    path.write_text(text)
    try:
        json.loads(text)
    except ValueError:
        with pytest.raises(UserError, match=r"not JSON|has two sections"):
            dataset(path).read_annotations()
    else:
        try:
            dataset(path).read_annotations()
        except UserError as error:
            assert "not JSON" not in str(error)


def test_section_that_comes_twice(tmp_path, content):
    path = tmp_path / "f.json"
    path.write_text(json.dumps(content)[:-1] + ', "images": []}')
    with pytest.raises(UserError, match="has two sections images"):
        load(path)


def test_missing_file_is_named(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError, match=f"{path}: no such annotation file"):
            load(path)


def test_picture_of_another_size_is_named(path):
    Image.new("RGB", (10, 10)).save(path.parents[1] / "train2017" / "a.png")
    with pytest.raises(UserError, match=r"a\.png \(image id 12\) is 10 x 10 pixels, but .* 64 x 48"):
        dataset(path).read_image(0)


@pytest.mark.skipif("MASKRCNN_REAL_DATA" not in os.environ, reason="MASKRCNN_REAL_DATA names the folder of coco_tiny")
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_real_data_is_read_as_pycocotools_reads_it(split):
    path = Path(os.environ["MASKRCNN_REAL_DATA"]) / "coco_tiny" / "annotations" / f"instances_{split}.json"
    annotations, reference = load(path), COCO(path)
    assert len(annotations.labels) == len(reference.anns)
    assert annotations.notes == ()
    assert annotations.areas.tolist() == [reference.anns[i]["area"] for i in annotations.annotation_ids.tolist()]
    for position, image_id in enumerate(annotations.image_ids.tolist()):
        expected = [reference.annToMask(a) for a in reference.loadAnns(reference.getAnnIds(imgIds=image_id))]
        assert all(map(np.array_equal, masks(annotations, position), expected))

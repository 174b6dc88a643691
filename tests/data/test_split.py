"""Which pictures and instances take part, and with which labels."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from maskrcnn.data.coco import CocoDataset
from maskrcnn.data.images import read_image
from maskrcnn.data.split import Split
from maskrcnn.errors import UserError


@pytest.fixture
def make(tmp_path, write, content):
    """A split of the set by hand, whose pictures are 12 (kite, boat), 7 (none), 4 (kite, cup), 30 (crowd, boat)."""

    def split(positions=range(4), **settings):
        path = write(tmp_path, content)
        dataset = CocoDataset(annotations=path, images=tmp_path / "train2017")
        return Split(dataset, positions=np.array(positions), **settings)

    return split


def labels(split):
    return [split.instances(index)[1].tolist() for index in range(len(split))]


def annotation_ids(truth):
    return [annotation["id"] for annotation in truth["annotations"]]


def test_everything_takes_part_by_default(make, content):
    split = make()
    assert split.image_ids == [12, 7, 4, 30]
    assert split.sizes.tolist() == [[48, 64], [32, 32], [48, 64], [40, 40]]
    assert [category["name"] for category in split.categories] == ["boat", "cup", "kite"]
    assert labels(split) == [[3, 1], [], [3, 2], [1]]
    truth = split.ground_truth()
    assert sorted(annotation_ids(truth)) == sorted(annotation_ids(content))
    assert truth["categories"] == sorted(content["categories"], key=lambda category: category["id"])


def test_a_sample_is_the_file_with_its_instances(make, tmp_path):
    sample = make()[2]
    assert sample.image_id == 4
    assert sample.labels.tolist() == [3, 2]
    assert np.array_equal(sample.image, read_image(tmp_path / "train2017" / "b.jpg"))
    found = [coco_mask.toBbox(outline.rle(sample.size)).tolist() for outline in sample.outlines]
    assert found == [[8, 6, 12, 24], [30, 10, 20, 20]]


def test_positions_are_the_pictures(make):
    split = make([3, 1, 0])
    assert len(split) == 3
    assert split.image_ids == [30, 7, 12]
    assert [split.image_id(index) for index in range(3)] == [30, 7, 12]
    assert [split.size(index) for index in range(3)] == [(40, 40), (32, 32), (48, 64)]
    assert split.instances_per_image.tolist() == [1, 0, 2]
    assert split.labels.tolist() == [1, 3, 1]
    assert annotation_ids(split.ground_truth()) == [40, 41, 3, 17]
    assert split.read(1).shape == (32, 32, 3)


def test_counts_and_labels_are_those_of_the_instances(make):
    for settings in ({}, {"use_crowd": True}, {"classes": ["boat"]}, {"classes": ["cup", "kite"]}):
        split = make([2, 3, 0, 1], **settings)
        assert split.instances_per_image.tolist() == list(map(len, labels(split)))
        assert split.labels.tolist() == [label for one in labels(split) for label in one]


def test_subset(make):
    split = make()
    assert split.subset(slice(2)).image_ids == [12, 7]
    assert split.subset(slice(None)).image_ids == split.image_ids
    assert split.subset(split.instances_per_image > 0).subset(slice(1, None)).image_ids == [4, 30]
    assert split.image_ids == [12, 7, 4, 30]


@pytest.mark.parametrize(
    ("classes", "names", "expected", "truth"),
    [
        (["kite"], ["kite"], [[1], [], [1], []], [3, 18]),
        (["kite", "boat"], ["boat", "kite"], [[2, 1], [], [2], [1]], [3, 17, 18, 40, 41]),  # in the order of the ids
        (["cup", "kite", "cup"], ["cup", "kite"], [[2], [], [2, 1], []], [3, 18, 19]),
    ],
)
def test_chosen_classes_alone_take_part(make, classes, names, expected, truth):
    split = make(classes=classes)
    assert [category["name"] for category in split.categories] == names
    assert labels(split) == expected
    assert annotation_ids(split.ground_truth()) == truth
    assert split.ground_truth()["categories"] == split.categories
    assert len(split.ground_truth()["images"]) == 4


@pytest.mark.parametrize(
    ("name", "hint"), [("boats", r"did you mean boat\?"), ("zebra", "it has boat, cup, kite"), ("Cup", "cup")]
)
def test_unknown_class_gets_a_suggestion(make, name, hint):
    with pytest.raises(UserError, match=rf"^data\.classes: .*train2017\.json has no category {name}; .*{hint}"):
        make(classes=["kite", name])


def test_a_name_that_comes_twice_is_chosen_with_its_id(make, content):
    content["categories"][2]["name"] = "boat"
    assert [category["name"] for category in make().categories] == ["boat", "boat (id 44)", "kite"]
    split = make(classes=["boat (id 44)"])
    assert split.categories == [{"id": 44, "name": "boat (id 44)"}]
    assert labels(split) == [[], [], [1], []]


def test_crowds_count_on_demand(make):
    assert labels(make(use_crowd=True))[3] == [1, 1]
    assert make(use_crowd=True).instances_per_image.tolist() == [2, 0, 2, 2]
    assert annotation_ids(make(use_crowd=True).ground_truth()) == annotation_ids(make().ground_truth())


def test_difficult_instances_are_scored_as_ignored_and_not_trained_on(make, content):
    content["annotations"][1]["difficult"] = 1
    split = make()
    assert labels(split)[0] == [3]
    (ignored,) = [annotation["id"] for annotation in split.ground_truth()["annotations"] if annotation.get("ignore")]
    assert ignored == 17


@pytest.mark.parametrize("box", [[10, 10, 0, 31], [10, 10, 21, -1], [64, 10, 5, 5], [-9, 10, 9, 5]])
def test_instances_without_a_box_in_the_picture_are_not_trained_on(make, content, box):
    content["annotations"][0]["bbox"] = box
    split = make()
    assert labels(split)[0] == [1]
    assert split.instances_per_image.tolist() == [1, 0, 2, 1]
    assert 3 in annotation_ids(split.ground_truth())


def test_outlines_end_at_the_border(make, content):
    content["annotations"][0] |= {"bbox": [50, -5, 30, 20], "segmentation": [[50, -5, 80, -5, 80, 15, 50, 15]]}
    outline = make().instances(0)[0][0]
    assert outline.box.tolist() == [50, 0, 64, 15]
    assert outline.area == pytest.approx(14 * 15)


def test_a_file_without_annotations_has_no_ground_truth(make, tmp_path, content):
    split = make()
    (tmp_path / "test.json").write_text(json.dumps({key: content[key] for key in ("images", "categories")}))
    dataset = CocoDataset(annotations=tmp_path / "test.json", images=tmp_path / "train2017")
    test = Split(dataset, positions=np.arange(4))
    assert test.ground_truth() is None
    assert test.categories == split.categories
    assert labels(test) == [[], [], [], []]
    assert test.labels.tolist() == []
    assert test[3].outlines == []

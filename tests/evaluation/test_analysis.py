"""The table of classes."""

import numpy as np
import pytest

from maskrcnn.evaluation.analysis import COLUMNS, ClassScore, class_ap, class_rows, class_scores, format_class_table

CLASSES = [
    ClassScore("cat", 12, {"box": (0.5, 0.75), "mask": (0.25, 0.0)}),
    ClassScore("dog", 0, {"box": (-1.0, -1.0), "mask": (-1.0, -1.0)}),
    ClassScore("a dragon with a name that no terminal is wide enough for", 3, {"box": (1.0, 1.0)}),
]


def test_cells():
    assert class_rows(CLASSES) == [
        ["cat", "12", "0.500", "0.750", "0.250", "0.000"],
        ["dog", "0", "-", "-", "-", "-"],
        [CLASSES[2].name, "3", "1.000", "1.000", "-", "-"],
    ]
    assert all(len(row) == len(COLUMNS) for row in class_rows(CLASSES))


def test_table_fits_a_terminal():
    head, cat, dog, dragon = format_class_table(CLASSES).splitlines()
    assert len(head) == len(cat) == len(dog) == len(dragon) <= 80
    assert head.split() == ["class", "instances", "box", "AP", "box", "AP50", "mask", "AP", "mask", "AP50"]
    assert cat.split() == ["cat", "12", "0.500", "0.750", "0.250", "0.000"]
    assert dragon.startswith("a dragon with a name t...  ")
    for title, cell in (("instances", "12"), ("box AP", "0.500"), ("mask AP50", "0.000")):
        assert head.index(title) + len(title) == cat.index(cell) + len(cell)


def test_mean_of_what_there_is_to_find():
    precision = np.full((2, 3, 2), -1.0)  # thresholds, recalls, categories
    precision[:, :, 0] = [[0.6, 0.3, 0.0], [0.3, 0.0, 0.0]]
    assert class_ap(precision, [7, 3]) == {7: pytest.approx((0.2, 0.3)), 3: (-1.0, -1.0)}


def test_instances_are_those_to_be_found_in_the_scored_images():
    annotations = [
        {"image_id": 1, "category_id": 5},
        {"image_id": 1, "category_id": 5, "iscrowd": 1},
        {"image_id": 1, "category_id": 5, "ignore": 1},
        {"image_id": 2, "category_id": 5},
        {"image_id": 3, "category_id": 5},
        {"image_id": 2, "category_id": 4},
    ]
    truth = {"annotations": annotations, "categories": [{"id": 5, "name": "cat"}, {"id": 4, "name": "dog"}]}
    assert class_scores(truth, [1, 2], {"box": {5: (0.5, 0.6)}}) == [
        ClassScore("cat", 2, {"box": (0.5, 0.6)}),
        ClassScore("dog", 1, {"box": (-1.0, -1.0)}),
    ]

import json

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from maskrcnn.errors import UserError
from maskrcnn.evaluation.results import match_categories, remarks, to_results

COCO = [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}, {"id": 18, "name": "dog"}]


def detections():
    return {
        "boxes": torch.tensor([[10.0, 20.0, 40.0, 50.0], [0.0, 0.0, 8.0, 16.0]]),
        "labels": torch.tensor([3, 1]),
        "scores": torch.tensor([0.75, 0.5]),
        "mask_probs": torch.ones(2, 28, 28),
    }


def convert(found=None, *, category_ids=(1, 3, 18), paste="torchvision"):
    return to_results(found or detections(), image_id=42, size=(60, 80), category_ids=category_ids, paste=paste)


@pytest.mark.parametrize("paste", ["torchvision", "detectron2"])
def test_results_are_cocos(paste):
    first, second = convert(paste=paste)
    assert first["image_id"] == second["image_id"] == 42
    assert (first["category_id"], second["category_id"]) == (18, 1)
    assert first["bbox"] == [10.0, 20.0, 30.0, 30.0]
    assert (first["score"], second["score"]) == (0.75, 0.5)
    mask = coco_mask.decode(first["segmentation"])
    assert mask.shape == (60, 80)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    assert np.abs(np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) - (10, 20, 40, 50)).max() <= 1


def test_results_go_into_json():
    results = convert()
    assert json.loads(json.dumps(results)) == results


def test_detections_without_a_category_are_dropped():
    (left,) = convert(category_ids=(5, None, None))
    assert left["category_id"] == 5
    assert left["bbox"] == [0.0, 0.0, 8.0, 16.0]


def test_no_detections_no_results():
    nothing = {name: value[:0] for name, value in detections().items()}
    assert convert(nothing) == []


def test_categories_are_matched_by_name():
    wanted = [{"id": 7, "name": "dog"}, {"id": 9, "name": "person"}]
    assert match_categories(COCO, wanted, source="x") == [9, None, 7]
    assert match_categories(COCO, COCO, source="x") == [1, 3, 18]


def test_a_model_without_names_fits_as_many_classes():
    numbered = [{"id": label, "name": str(label)} for label in (1, 2, 3)]
    assert match_categories(numbered, COCO, source="x") == [1, 3, 18]
    with pytest.raises(UserError, match="the data set has 2"):
        match_categories(numbered, COCO[:2], source="x")


def test_two_categories_of_one_name_are_kept_apart():
    twins = [{"id": 0, "name": "cell"}, {"id": 1, "name": "cell"}]
    assert match_categories(twins, twins, source="x") == [0, 1]


def test_unknown_categories_are_named():
    wanted = [*COCO, {"id": 20, "name": "sheep"}]
    with pytest.raises(UserError) as caught:
        match_categories(COCO, wanted, source="ckpt=a.ckpt")
    message = str(caught.value)
    assert message.startswith("ckpt=a.ckpt knows 3 classes (person, car, dog)")
    assert "1 are unknown to it (sheep)" in message
    assert "\n" not in message


# --- what is odd about results


def remarks_on(results, annotations=((1, {}), (2, {}))):
    truth = {"annotations": [{"image_id": image_id, "category_id": 1, **more} for image_id, more in annotations]}
    return remarks([{"image_id": i, "category_id": k} for i, k in results], truth, [1, 2, 3])


def test_results_of_all_images_need_no_remark():
    assert remarks_on([(1, 1), (2, 1), (3, 1)]) == []


def test_images_without_results_are_remarked():
    assert remarks_on([(1, 1), (1, 2)]) == ["no detections in 1 of 2 images with instances, so these are missed"]
    assert remarks_on([(1, 1), (2, 1)]) == []  # there is nothing to find in the third


def test_no_results_are_remarked():
    assert remarks_on([]) == ["no detections at all, so every instance is missed"]


def test_more_results_than_count_are_remarked():
    found = [(i, k) for i in (1, 2, 3) for k in (1, 2) for _ in range(100)]
    assert remarks_on(found) == []
    assert remarks_on([*found, (2, 1)]) == ["more than 100 detections of a class in 1 image: the best 100 count"]


@pytest.mark.parametrize("annotations", [(), ((4, {}),), ((1, {"iscrowd": 1}), (2, {"ignore": 1}))])
def test_nothing_to_find_is_remarked(annotations):
    for results in ([(1, 1), (2, 1), (3, 1)], []):
        assert remarks_on(results, annotations) == ["no image has an instance to find, so every AP is -1"]

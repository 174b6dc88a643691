from typing import Any

from maskrcnn.models.weights import differing_settings


def model(**changes: Any) -> dict[str, Any]:
    """A `model` node with some of the keys that it has."""
    node = {
        "num_classes": 3,
        "score_thresh": 0.05,
        "input": {"_target_": "maskrcnn.models.input.ModelInput", "min_size": 640, "channel_order": "rgb"},
        "backbone": {"name": "resnet50", "norm": "bn", "frozen_stages": 0},
        "rpn": {"coder_weights": [1.0, 1.0, 1.0, 1.0], "pre_nms_top_n_test": 1000},
        "roi": {"stages": [{"coder_weights": [10.0, 10.0, 5.0, 5.0]}]},
    }
    return node | changes


def test_equal_settings_differ_in_nothing() -> None:
    assert differing_settings(model(), model()) == {}
    assert differing_settings({}, model()) == {}


def test_only_what_changes_the_computation_counts() -> None:
    there = model(
        num_classes=90,
        score_thresh=0.5,
        backbone={"name": "resnet101", "norm": "frozen_bn", "frozen_stages": 2},
        input={"_target_": "mine.Input", "min_size": 800, "channel_order": "bgr"},
        rpn={"coder_weights": [1, 1, 1, 1], "pre_nms_top_n_test": 500},
    )
    assert differing_settings(there, model()) == {
        "input.min_size": (800, 640),
        "input.channel_order": ("bgr", "rgb"),
        "backbone.norm": ("frozen_bn", "bn"),
    }


def test_a_list_of_stages_is_compared_one_by_one() -> None:
    cascade = {"stages": [{"coder_weights": [20.0, 20.0, 10.0, 10.0]}, {"coder_weights": [30.0, 30.0, 15.0, 15.0]}]}
    assert differing_settings(model(roi=cascade), model()) == {
        "roi.stages.0.coder_weights": ([20.0, 20.0, 10.0, 10.0], [10.0, 10.0, 5.0, 5.0])
    }

"""The models suite: every network gets the same work, its figures add up, and one that fails holds up no other."""

import gc
import json
import mmap
import os

import numpy as np
import pytest
import torch
from torch import nn

from maskrcnn.benchmark import models
from maskrcnn.benchmark.meter import Meter, gigaflops
from maskrcnn.benchmark.process import in_own_process
from maskrcnn.errors import UserError
from tests.cli_tools import TINY_MODEL, run

DETECTIONS = 5
SMALL = (
    *(setting for setting in TINY_MODEL if "backbone" not in setting and "score_thresh" not in setting),
    "suite=models",
    "model.num_classes=3",
    f"model.detections_per_image={DETECTIONS}",
    "data.batch_size=2",
    "instances=3",
    "rounds=2",
    "device=cpu",
)
BROKEN = "+combinations.broken=['model/roi=cascade','model.box_head.class_agnostic=false']"
SOUND = ("mobilenet_v3_small", "mobilenet_v3_small-panet-cascade", "torchvision")


def measure(folder, monkeypatch, *arguments):
    """The outcome of the suite, each network measured in this process."""
    monkeypatch.setattr(models, "in_own_process", lambda function, *args: function(*args))
    return run("maskrcnn.benchmark", *SMALL, f"hydra.run.dir={folder}", *arguments)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "computes_bfloat16", lambda device: False)
        outcome = measure(
            folder,
            patch,
            "models=[broken,mobilenet_v3_small]",
            BROKEN,
            "grid.backbone=[mobilenet_v3_small]",
            "grid.neck=[panet]",
            "grid.roi=[cascade]",
            "precisions=[fp32,bf16]",
        )
    assert outcome.code == 0, outcome.err
    return json.loads((folder / "benchmark.json").read_text())["models"], outcome.out


def test_all_networks_do_the_same_work(measured):
    assert {name: measured[0][name]["fp32"]["detections"] for name in SOUND} == dict.fromkeys(SOUND, DETECTIONS)


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("kind", ["train", "inference"])
def test_the_median_lies_in_its_range(measured, name, kind):
    cost = measured[0][name]["fp32"][kind]
    low, high = cost["seconds_range"]
    assert 0 < low <= cost["seconds"] == pytest.approx((low + high) / 2)  # of two rounds
    assert cost["peak_memory_mb"] >= 0  # a small network may fit into what was free before


def test_parameters_are_those_of_the_network(measured, make_model):
    small = [setting for setting in SMALL if setting.startswith("model.")]
    for name, chosen in zip(SOUND, ([], ["model/neck=panet", "model/roi=cascade"]), strict=False):
        model = make_model("model/backbone=mobilenet_v3_small", *chosen, *small)
        assert measured[0][name]["parameters"] == sum(p.numel() for p in model.parameters())
    assert 43e6 < measured[0]["torchvision"]["parameters"] < 45e6  # 44.4 million with COCO's classes
    assert 0 < measured[0][SOUND[0]]["gflops"] < measured[0][SOUND[1]]["gflops"] < measured[0]["torchvision"]["gflops"]


def test_a_network_that_fails_says_why(measured):
    values, printed = measured
    assert "box_head.class_agnostic must be true" in values["broken"]["fp32"]["failed"]
    assert "parameters" not in values["broken"]
    (line,) = [line for line in printed.splitlines() if line.startswith("broken")]
    assert "failed: model: box_head.class_agnostic must be true" in line


def test_the_table_has_a_line_for_each_and_fits(measured):
    table = measured[1].partition("\nmodels: ")[2].partition("\n\nwritten")[0].splitlines()
    assert table[0].startswith("64 x 64 pixels, 3 classes; cpu, threads: 1; rounds: 2")
    assert [line.split()[0] for line in table[-4:]] == ["broken", *(name[:26] for name in SOUND)]
    assert max(map(len, table)) <= 100
    reason = "this device does not compute in bfloat16 by itself, it has no avx512_bf16"
    assert f"bf16: not measured, {reason}" in table
    assert measured[0]["setup"]["absent"] == {"bf16": reason}
    assert "bf16" not in measured[0]["torchvision"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["models=resnet19"], "models: no combination resnet19; known are resnet18, "),
        (["models=[]", "grid.backbone=[resnet19]"], "model/backbone=resnet19 model/neck=fpn model/roi=standard: "),
        (
            ["models=mine", "+combinations.mine=['model.nck=1']"],
            "model.nck=1: model.nck: unknown key; did you mean model.neck?",
        ),
        (["precisions=fp8"], "precisions: no precision fp8; known are fp32, bf16"),
        (["device=tpu9"], "device=tpu9: cannot be used"),
        (["instances=0"], "instances=0: must be a whole number, at least 1"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, arguments, problem):
    outcome = measure(tmp_path / "out", monkeypatch, *arguments)
    assert outcome.code == 1
    (line,) = outcome.err.splitlines()
    assert line.startswith(f"error: {problem}")
    assert not (tmp_path / "out").exists()


class TestProcess:
    def test_is_another_one(self):
        assert in_own_process(os.getpid) != os.getpid()

    def test_hands_errors_on(self):
        with pytest.raises(ValueError, match="invalid literal"):
            in_own_process(int, "none")

    def test_may_be_ended_by_the_system(self):
        with pytest.raises(UserError, match="its process was ended"):
            in_own_process(os._exit, 9)


def occupy(size):
    # From the system: the C library may still have some that others have freed.
    np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8).fill(1)


class TestMeter:
    def test_peak_is_that_of_the_work_and_is_forgotten(self):
        gc.collect()  # what other tests left must not go meanwhile
        meter = Meter(torch.device("cpu"), rounds=1)
        large = meter.measure(lambda: occupy(80_000_000)).peak_memory_mb
        small = meter.measure(lambda: occupy(1000)).peak_memory_mb
        assert 75 < large < 100
        assert small < large - 50

    def test_the_first_round_is_not_clocked(self):
        calls = []
        cost = Meter(torch.device("cpu"), rounds=3).measure(lambda: calls.append(1))
        assert len(calls) == 4
        assert len(cost.seconds.rounds) == 3

    def test_operations_are_counted_by_hand(self):
        net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))
        picture = torch.zeros(1, 3, 8, 8)
        conv, linear = 8 * 16 * 3 * 9, 8 * 16 * 5  # 4 x 4 outputs
        found, output = gigaflops(lambda: net(picture))
        assert found * 1e9 == pytest.approx(2 * (conv + linear))
        assert output.shape == (1, 5)


@pytest.mark.slow
def test_every_combination_is_measured_in_a_process_of_its_own(tmp_path):
    folder = tmp_path / "out"
    outcome = run("maskrcnn.benchmark", *SMALL, f"hydra.run.dir={folder}", "rounds=1")
    assert outcome.code == 0, outcome.err
    values = json.loads((folder / "benchmark.json").read_text())["models"]
    assert {name for name in values if name != "setup" and "failed" in values[name]["fp32"]} == set()
    assert len(values) >= 20
    for name, network in values.items():
        if name != "setup":
            assert network["fp32"]["train"]["peak_memory_mb"] * 1e6 > 4 * network["parameters"]

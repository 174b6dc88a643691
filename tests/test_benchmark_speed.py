"""The suites speed and growth: both sides do the same work, the figures agree with each other and with sums by hand."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from torch import nn

from maskrcnn.benchmark import models, scoring, speed
from maskrcnn.benchmark.agreement import compare
from maskrcnn.benchmark.epochs import torchvision_loader
from maskrcnn.benchmark.growth import summary
from maskrcnn.benchmark.host_syncs import host_syncs
from maskrcnn.benchmark.laps import Laps
from maskrcnn.benchmark.models import make_work
from maskrcnn.benchmark.networks import our_model, settle
from maskrcnn.benchmark.our_side import OurSide
from maskrcnn.benchmark.process import Resident
from maskrcnn.benchmark.speed import row
from maskrcnn.benchmark.speed_side import INFERENCE_STAGES, TRAIN_STAGES, Job, Sample
from maskrcnn.config import config_folder, plain
from maskrcnn.data.shapes import CLASSES, draw_shapes
from tests.cli_tools import TINY_MODEL, files, run

DETECTIONS = 15
HEIGHT, WIDTH = 64, 96
SMALL = (
    "suite=speed",
    f"model.input.min_size={HEIGHT}",
    f"model.input.max_size={WIDTH}",
    "model.num_classes=5",
    f"model.detections_per_image={DETECTIONS}",
    "model.rpn.pre_nms_top_n_test=100",
    "model.rpn.post_nms_top_n_test=64",
    "model.rpn.pre_nms_top_n_train=100",
    "model.rpn.post_nms_top_n_train=64",
    "model.roi.sampler.batch_size_per_image=16",
    "data.batch_size=2",
    "data.num_workers=0",
    f"data.min_sizes=[{HEIGHT}]",
    f"data.max_size={HEIGHT}",
    "inference_batches=[2]",
    "instances=3",
    "pictures=2",
    "scoring.images=3",
    "scoring.detections=10",
    "rounds=1",
    "device=cpu",
)
GROWING = (
    *(setting for setting in TINY_MODEL if "score_thresh" not in setting),
    "suite=growth",
    "model.num_classes=3",
    "growth.batch=[1,2]",
    "growth.area=[1,4]",
    "growth.instances=[1,9]",
    "growth.classes=[1,8]",
    "rounds=1",
    "device=cpu",
)


class Here:
    """A `Resident` of this process."""

    def __init__(self, make, *args):
        self.resident = make(*args)

    def call(self, method, *args):
        return getattr(self.resident, method)(*args)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        del self.resident


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A small drawn set in COCO layout, whose category ids have gaps."""
    root = tmp_path_factory.mktemp("shapes") / "set"
    draw_shapes(root, train_images=4, val_images=1, image_size=HEIGHT)
    return root


@pytest.fixture(scope="module")
def measured(shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "Resident", Here)
        patch.setattr(models, "computes_bfloat16", lambda device: False)
        outcome = run("maskrcnn.benchmark", *SMALL, f"data.root={shapes}", f"hydra.run.dir={folder}")
    assert outcome.code == 0, outcome.err
    return json.loads((folder / "benchmark.json").read_text())["speed"], outcome.out


def settings(*overrides):
    """The plain settings of the command."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return plain(compose("benchmark", overrides=["output=out", *overrides]))


class TestSpeed:
    def test_both_sides_detect_the_same(self, measured):
        found = measured[0]["agreement"]
        assert found["detections"] == found["peer_detections"] == 2 * DETECTIONS
        assert found["matched"] == 1
        assert found["max_box_difference"] < 0.01
        assert found["max_score_difference"] < 1e-4

    @pytest.mark.parametrize("part", ["train", "inference", "scoring"])
    def test_ratios_are_those_of_the_seconds(self, measured, part):
        found = {"train": lambda v: v["train"]["fp32"], "inference": lambda v: v["inference"]["b2"]["fp32"]}
        cost = found.get(part, lambda v: v["scoring"])(measured[0])
        assert cost["ratio"] == pytest.approx(cost["peer_seconds"] / cost["seconds"])
        for name in ("seconds", "peer_seconds"):
            assert cost[name] == cost[f"{name}_range"][0] == cost[f"{name}_range"][1] > 0  # of one round

    @pytest.mark.parametrize(
        ("part", "prefix", "names"),
        [
            ("train", "", TRAIN_STAGES),
            ("train", "peer_", TRAIN_STAGES),
            ("inference", "", INFERENCE_STAGES[:-1]),
            ("inference", "peer_", INFERENCE_STAGES),
        ],
    )
    def test_stages_add_up(self, measured, part, prefix, names):
        values = measured[0]["train"]["fp32"] if part == "train" else measured[0]["inference"]["b2"]["fp32"]
        stages = values[f"{prefix}stages"]
        assert tuple(stages) == names
        assert min(stages.values()) > 0
        assert 0.9 * values[f"{prefix}seconds"] < sum(stages.values()) <= values[f"{prefix}seconds"]

    def test_pasting_is_a_part_of_the_peers_inference(self, measured):
        cost = measured[0]["inference"]["b2"]["fp32"]
        assert cost["peer_pasted_seconds"] == pytest.approx(cost["peer_seconds"] - cost["peer_stages"]["encode"])
        assert cost["ratio_to_pasted"] == pytest.approx(cost["peer_pasted_seconds"] / cost["seconds"])

    def test_both_have_as_much_to_paste(self, measured):
        cost = measured[0]["inference"]["b2"]["fp32"]
        assert 2 < cost["detections"] == cost["peer_detections"]

    def test_both_score_alike(self, measured):
        assert measured[0]["scoring"]["largest_difference"] < 1e-9

    def test_both_go_through_an_epoch(self, measured):
        epoch = measured[0]["epoch"]
        assert epoch["peer_absent"] is None
        speeds = epoch["fp32"]["images_per_second"], epoch["fp32"]["peer_images_per_second"]
        assert min(speeds) > 0
        assert epoch["fp32"]["ratio"] == pytest.approx(speeds[0] / speeds[1])

    def test_says_what_was_not_measured(self, measured):
        values, printed = measured
        reason = "this device does not compute in bfloat16 by itself, it has no avx512_bf16"
        assert values["setup"]["absent"] == {"bf16": reason}
        assert f"bf16: not measured, {reason}" in printed
        assert "host syncs of a training step: not counted, that needs device=cuda" in printed

    def test_the_table_fits_and_has_all_parts(self, measured):
        table = measured[1].partition("\nspeed: ")[2].partition("\n\nwritten")[0].splitlines()
        assert table[0].startswith("64 x 96 pixels, 3 instances each in training, 5 classes; cpu, threads: 1; ")
        assert max(len(table[0]) + len("speed: "), *map(len, table)) <= 100
        starts = [line[:22].rstrip() for line in table]
        for name in ("inference 2 fp32", "  its masks pasted", "train step fp32", "scoring", "epoch of 2 pictures"):
            assert name in starts

    @pytest.mark.parametrize(
        ("argument", "problem"),
        [
            ("parts=fast", "parts: no part fast; known are inference, train, epoch, scoring"),
            ("inference_batches=[1,0]", "inference_batches=[1, 0]: must be a list of whole numbers, each at least 1"),
            ("scoring.images=0", "scoring.images=0: must be a whole number, at least 1"),
            ("epochs=few", "epochs=few: must be a whole number, at least 1"),
            ("precisions=fp8", "precisions: no precision fp8; known are fp32, bf16"),
        ],
    )
    def test_mistakes_are_one_line(self, tmp_path, argument, problem):
        outcome = run("maskrcnn.benchmark", *SMALL, f"hydra.run.dir={tmp_path / 'out'}", argument)
        assert outcome.code == 1
        assert outcome.err == f"error: {problem}\n"
        assert not (tmp_path / "out").exists()

    def test_classes_of_the_data_set_must_have_room(self, shapes, tmp_path):
        outcome = run(
            "maskrcnn.benchmark",
            *SMALL,
            "model.num_classes=4",
            f"data.root={shapes}",
            f"hydra.run.dir={tmp_path / 'out'}",
        )
        assert outcome.code == 1
        assert outcome.err == "error: model.num_classes=4: the data set has 5 classes; set it to that\n"

    def test_a_row_is_of_all_rounds_but_the_first(self):
        ours = [Sample(9.0, 7.0, {"a": 9.0}), Sample(1.0, 5.0, {"a": 1.0}), Sample(3.0, 6.0, {"a": 2.0})]
        peer = [Sample(9.0, None, {"encode": 1.0}, 5)] + [Sample(4.0, None, {"encode": 1.0}, 5)] * 2
        found = row(ours, peer)
        assert (found["seconds"], found["seconds_range"], found["peak_memory_mb"]) == (2.0, [1.0, 3.0], 7.0)
        assert (found["peer_seconds"], found["peer_peak_memory_mb"]) == (4.0, None)
        assert found["stages"] == {"a": 1.5}
        assert (found["detections"], found["peer_detections"]) == (0, 5)
        assert (found["ratio"], found["peer_pasted_seconds"], found["ratio_to_pasted"]) == (2.0, 3.0, 1.5)


class TestSide:
    @pytest.mark.parametrize("head", ["standard", "cascade"])
    def test_a_settled_network_makes_boxes_larger_by_a_factor(self, head):
        chosen = settings(*GROWING, f"model/roi={head}", "model.nms_thresh=1", "model.detections_per_image=500")
        work = make_work(chosen["model"], chosen, torch.device("cpu"))
        model = our_model(chosen["model"], work, trust=[]).eval()
        sides = []
        for factor in (1.0, 1.5):
            settle(model, enlarge=factor)
            boxes = model.predict(work.pictures(1))[0]["boxes"]
            inside = ((boxes > 0) & (boxes < 64)).all(dim=1)
            sides.append((boxes[inside, 2] - boxes[inside, 0]).min())
        assert sides[1] == pytest.approx(1.5 * sides[0].item(), rel=1e-3)

    def test_a_training_step_changes_no_weight(self):
        chosen = settings(*GROWING)
        side = OurSide(Job(chosen["model"], make_work(chosen["model"], chosen, torch.device("cpu")), None, chosen))
        before = [parameter.detach().clone() for parameter in side.module.parameters()]
        side.step(side.batch, "fp32")
        momenta = [state["momentum_buffer"].abs().max() for state in side.optimizer.state.values()]
        assert max(momenta) > 0
        for old, parameter in zip(before, side.module.parameters(), strict=True):
            assert torch.equal(old, parameter)
            assert parameter.grad is None

    def test_torchvision_gets_labels_in_place_of_category_ids(self, shapes):
        loader, label_of, absent = torchvision_loader(settings(*SMALL, f"data.root={shapes}"))
        assert absent is None
        seen = [int(label) for _, targets in loader for target in targets for label in target["labels"]]
        ids = list(CLASSES)
        assert ids != sorted(range(1, len(ids) + 1))
        assert seen
        assert [int(label_of[category_id]) for category_id in seen] == [1 + ids.index(each) for each in seen]


class TestAgreement:
    def detections(self, *boxes):
        boxes = np.array(boxes, np.float32).reshape(-1, 6)
        return [{"boxes": boxes[:, :4], "labels": boxes[:, 4], "scores": boxes[:, 5]}]

    def test_each_is_matched_once_and_by_class(self):
        ours = self.detections((0, 0, 100, 100, 1, 0.9), (0, 0, 100, 101, 1, 0.8), (0, 0, 50, 50, 2, 0.7))
        theirs = self.detections((0, 0, 100, 103, 1, 0.6), (0, 0, 50, 50, 3, 0.7))
        found = compare(ours, theirs)
        assert (found["detections"], found["peer_detections"]) == (3, 2)
        assert found["matched"] == pytest.approx(1 / 3)
        assert found["max_box_difference"] == pytest.approx(2)
        assert found["max_score_difference"] == pytest.approx(0.2)

    def test_nothing_agrees_with_nothing(self):
        found = compare(self.detections(), self.detections((0, 0, 9, 9, 1, 0.5)))
        assert (found["matched"], found["max_box_difference"]) == (0, None)


class TestLaps:
    def test_stages_end_where_their_modules_do(self):
        laps = Laps(torch.device("cpu"))
        first, second = nn.Identity(), nn.Linear(300, 300)
        laps.watch(first, features=first, rpn=second)
        laps.start()
        second(first(torch.zeros(300, 300)))
        laps.mark("rest")
        laps.mark("features")
        found = laps.seconds()
        assert list(found) == ["input", "features", "rpn", "rest"]
        assert found["rpn"] > found["features"] > 0


class TestHostSyncs:
    def wait(self):
        warnings.warn("called a synchronizing CUDA operation (triggered at ...)", stacklevel=1)

    def test_counts_lines_and_resets_the_mode(self, monkeypatch):
        modes = []
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

        def work():
            warnings.warn("something else", stacklevel=1)
            for _ in range(3):
                self.wait()
            self.wait()

        found = host_syncs(work, root=Path(__file__).parent)
        assert modes == ["warn", "default"]
        (place,) = found  # the line of `wait`, whoever calls it
        assert place.startswith("tests/test_benchmark_speed.py:")
        assert found[place] == 4

    def test_names_the_line_that_waits_where_no_other_is_known(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
        (place,) = host_syncs(self.wait, root=Path("/no/such/folder"))
        assert place.startswith("test_benchmark_speed.py:")


class TestScoring:
    def test_ours_has_the_numbers_of_pycocotools_each_time(self):
        content = scoring.drawn(6, 4, 12, 0)
        truth, results = content
        assert (len(truth["annotations"]), len(results)) == (24, 72)
        theirs = [scoring.pycocotools(*content) for _ in range(2)]
        assert theirs[0] == theirs[1]
        ours = scoring.ours(*content)
        assert 0 < ours["mask"]["ap50"] < 1
        assert scoring.largest_difference(ours, theirs[0]) < 1e-9
        changed = {"box": ours["box"], "mask": ours["mask"] | {"ar10": 2.0}}
        assert scoring.largest_difference(ours, changed) == pytest.approx(2.0 - ours["mask"]["ar10"])


class TestGrowth:
    @pytest.mark.parametrize(
        ("seconds", "sizes", "batch", "steep"),
        [
            ([1.0, 10.0, 30.0], [1, 10, 30], False, []),
            ([1.0, 2.0, 4.3], [1, 2, 3], False, [2]),
            ([1.0, 0.9, 0.98], [1, 2, 4], True, []),
            ([1.0, 0.8, 0.98], [1, 2, 4], True, [2]),
        ],
    )
    def test_every_step_may_take_as_much_more_time_as_it_is_more_work(self, seconds, sizes, batch, steep):
        found = summary(seconds, sizes, batch=batch)
        assert found["too_steep"] == steep
        assert found["ratios"] == seconds

    def test_the_command_measures_plots_and_prints(self, tmp_path):
        folder = tmp_path / "out"
        outcome = run("maskrcnn.benchmark", *GROWING, "precisions=fp32", f"hydra.run.dir={folder}")
        assert outcome.code == 0, outcome.err
        values = json.loads((folder / "benchmark.json").read_text())["growth"]["fp32"]
        sizes = {axis: found["sizes"] for axis, found in values.items()}
        area = 64 * 64 / 1e6
        assert sizes == {"batch": [1, 2], "area": [area, 4 * area], "instances": [1, 9], "classes": [1, 8]}
        for found in values.values():
            for kind in ("train", "inference"):
                first, last = found[kind]["seconds"]
                assert min(first, last) > 0
                assert found[kind]["ratios"] == [1, pytest.approx(last / first)]
        with Image.open(folder / "growth.png") as plot:
            assert plot.size == (990, 660)
        assert {"benchmark.json", "growth.png"} <= files(folder)
        table = outcome.out.partition("\ngrowth: ")[2].partition("\nplot: ")[0].splitlines()
        assert max(len(table[0]) + len("growth: "), *map(len, table)) <= 100
        assert [line.split()[0] for line in table if line.startswith(("batch", "mega", "inst", "class"))] == [
            name for name in ("batch", "megapixels", "instances", "classes") for _ in range(2)
        ]

    @pytest.mark.parametrize("sizes", ["[2,1]", "[]", "[0,1]", "[1,1]", "3", "[1.5]"])
    def test_sizes_must_grow(self, tmp_path, sizes):
        outcome = run("maskrcnn.benchmark", *GROWING, f"growth.batch={sizes}", f"hydra.run.dir={tmp_path / 'out'}")
        assert outcome.code == 1
        assert outcome.err.startswith("error: growth.batch=")
        assert "must be a list of numbers above 0 that grow" in outcome.err


@pytest.mark.slow
class TestProcesses:
    def test_a_resident_keeps_its_object_and_hands_errors_on(self):
        with Resident(list, [3, 1]) as resident:
            assert resident.call("append", 2) is None
            assert resident.call("pop") == 2
            assert resident.call("pop") == 1
            with pytest.raises(ValueError, match="not in list"):
                resident.call("remove", 9)

    def test_one_that_cannot_be_made_ends(self):
        with pytest.raises(ZeroDivisionError):
            Resident(divmod, 1, 0)

    def test_both_sides_in_their_processes_with_workers(self, shapes, tmp_path):
        folder = tmp_path / "out"
        outcome = run(
            "maskrcnn.benchmark",
            *SMALL,
            "parts=[train,epoch]",
            f"data.root={shapes}",
            "data.num_workers=1",
            f"hydra.run.dir={folder}",
        )
        assert outcome.code == 0, outcome.err
        values = json.loads((folder / "benchmark.json").read_text())["speed"]
        assert set(values) == {"agreement", "train", "host_syncs", "epoch", "setup"}
        assert values["epoch"]["fp32"]["ratio"] > 0
        assert values["train"]["fp32"]["peak_memory_mb"] > 150  # the weights alone

    def test_weights_that_do_not_fit_are_one_line(self, tmp_path):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(speed, "Resident", Here)
            outcome = run(
                "maskrcnn.benchmark", *SMALL, "model.neck.out_channels=64", f"hydra.run.dir={tmp_path / 'out'}"
            )
        assert outcome.code == 1
        assert "does not fit this model" in outcome.err
        assert len(outcome.err.splitlines()) == 1

"""The benchmark command: what it writes, that its figures agree with each other and with sums by hand."""

import json
from time import perf_counter

import numpy as np
import pytest
import torch

from maskrcnn.benchmark.data import tensor_bytes
from maskrcnn.benchmark.peer import peer_loader, why_absent
from maskrcnn.benchmark.side import STAGES
from maskrcnn.benchmark.stopwatch import Stopwatch, cost_of_a_call
from maskrcnn.data.datamodule import DetectionDataModule
from maskrcnn.data.dataset import InstanceDataset
from maskrcnn.data.outline import Outline
from maskrcnn.data.shapes import draw_shapes
from tests.cli_tools import files, run

SIDE = 64
SMALL = (f"data.min_sizes=[{SIDE}]", f"data.max_size={SIDE}", "pictures=4", "rounds=2")
MASK = 112 * 112
INSTANCE = 4 * 4 + 8 + MASK + 1  # box, label, mask, has_mask


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A small drawn set in COCO layout."""
    root = tmp_path_factory.mktemp("shapes") / "set"
    draw_shapes(root, train_images=8, val_images=1, image_size=SIDE)
    return root


@pytest.fixture(scope="module")
def measured(shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "out"
    outcome = run(
        "maskrcnn.benchmark",
        "suite=data",
        f"data.root={shapes}",
        f"hydra.run.dir={folder}",
        "presets=[light,lsj]",
        *SMALL,
    )
    assert outcome.code == 0, outcome.err
    return json.loads((folder / "benchmark.json").read_text()), outcome, folder


@pytest.mark.parametrize("preset", ["light", "lsj"])
def test_speeds_agree_with_each_other(measured, preset):
    row = measured[0]["data"][preset]
    assert row["ratio"] == pytest.approx(row["images_per_second"] / row["peer_images_per_second"])
    for name in ("images_per_second", "peer_images_per_second"):
        low, high = row[f"{name}_range"]
        assert 0 < low <= row[name] <= high


@pytest.mark.parametrize("preset", ["light", "lsj"])
def test_stages_add_up_to_the_time_through_the_loader(measured, preset):
    row = measured[0]["data"][preset]
    stages = row["stages"]
    assert tuple(stages) == STAGES
    assert min(stages[name] for name in STAGES if name not in ("transfer", "mixing")) > 0
    assert stages["mixing"] == 0  # neither preset mixes
    low, high = row["images_per_second_range"]
    per_picture = 1e3 * np.mean([1 / low, 1 / high])  # of two rounds, the median is the mean
    assert sum(stages.values()) == pytest.approx(per_picture)
    assert 0 < row["timing_overhead"] < 1


def test_a_batch_weighs_what_its_shapes_say(measured, shapes):
    row = measured[0]["data"]["lsj"]
    content = json.loads((shapes / "annotations/instances_train2017.json").read_text())
    instances = row["mb_per_batch"]["instances"]  # of the one batch in an epoch
    assert 0 < instances <= len(content["annotations"])
    assert row["mb_per_batch"]["pixels"] * 1e6 == pytest.approx(4 * 3 * SIDE**2)
    assert row["mb_per_batch"]["targets"] * 1e6 == pytest.approx(instances * INSTANCE + 4 * 8)  # and 4 image ids
    peer = row["peer_mb_per_batch"]
    assert peer["pixels"] == row["mb_per_batch"]["pixels"]
    assert peer["targets"] * 1e6 == pytest.approx(peer["instances"] * (4 * 4 + 8 + SIDE**2))


def test_a_batch_of_mosaics_weighs_what_its_shapes_say(measured):
    mosaics = measured[0]["data"]["batch_of_mosaics"]
    rest = 4 * 3 * SIDE**2 + 4 * 8
    assert mosaics["instances"] == 150
    assert mosaics["mb"] * 1e6 == pytest.approx(rest + 150 * INSTANCE)
    assert mosaics["dense_mb"] * 1e6 == pytest.approx(rest + 150 * (INSTANCE - MASK + 4 * SIDE**2))


def test_says_where_and_how_it_was_measured(measured):
    report, outcome, folder = measured
    assert report["machine"]["torch"] == torch.__version__
    assert report["machine"]["cores"] >= 1
    assert report["machine"]["cpu"]
    assert report["data"]["setup"] == {
        "pictures": 4,
        "rounds": 2,
        "batch_size": 4,
        "max_size": SIDE,
        "peer_absent": None,
    }
    assert "benchmark.json" in files(folder)
    table = outcome.out.split("\n\n", 1)[1].rsplit("\n\n", 1)[0]
    assert max(map(len, table.splitlines())) <= 80
    for name in ("light", "lsj", "torchvision lsj"):
        assert f"\n{name} " in table


def test_leaves_the_timed_functions_as_they_were(measured):
    assert not hasattr(Outline.clip, "__wrapped__")
    assert Outline.clip.__qualname__ == "Outline.clip"


def test_boxes_alone_have_no_peer(shapes, tmp_path):
    path = shapes / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    for entry in content["annotations"]:
        del entry["segmentation"]
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    outcome = run(
        "maskrcnn.benchmark",
        f"data.root={shapes}",
        f"data.train_annotations={tmp_path / 'boxes.json'}",
        "data.allow_boxes_only=true",
        f"hydra.run.dir={tmp_path / 'out'}",
        "presets=light",
        *SMALL,
    )
    assert outcome.code == 0, outcome.err
    report = json.loads((tmp_path / "out/benchmark.json").read_text())["data"]
    assert report["light"]["images_per_second"] > 0
    assert report["light"]["peer_images_per_second"] is None
    assert report["light"]["ratio"] is None
    assert "without an outline" in report["setup"]["peer_absent"]
    assert max(map(len, outcome.out.split("written to")[0].splitlines()[1:])) <= 80
    assert sum("torchvision lsj" in line and "without an outline" in line for line in outcome.out.splitlines()) == 1


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("suite=[data,web]", "suite=web: no such suite; known are data, models, speed, growth"),
        ("presets=[light,lsj2]", "no preset lsj2; known are none, light, mosaic_mixup, lsj, lsj_copy_paste"),
        ("presets=[]", "presets: name at least one of none, light"),
        ("rounds=0", "rounds=0: must be a whole number, at least 1"),
        ("pictures=many", "pictures=many: must be a whole number, at least 1"),
    ],
)
def test_mistakes_are_one_line(shapes, tmp_path, argument, problem):
    outcome = run("maskrcnn.benchmark", f"data.root={shapes}", f"hydra.run.dir={tmp_path / 'out'}", *SMALL, argument)
    assert outcome.code == 1
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: ")
    assert problem in line
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def split(shapes):
    data = DetectionDataModule(root=str(shapes))
    data.load(train=True, evaluate=None)
    return data.datasets["train"]


class TestPeer:
    def test_reads_no_other_format(self, shapes, split):
        class Other(InstanceDataset):
            pass

        other = split.subset(slice(None))
        other.dataset = Other(annotations=shapes, images=shapes)
        assert why_absent(other) == "it reads COCO instances files, not those of Other"

    def test_sees_the_same_pictures_and_instances(self, split):
        assert why_absent(split) is None
        twice = split.subset(np.array([3, 1, 3]))
        coco = peer_loader(twice, side=SIDE, batch_size=2, seed=0).dataset.coco
        coco.transforms = None
        rows = peer_loader(twice, side=SIDE, batch_size=2, seed=0).dataset.rows
        assert [coco._dataset.ids[row] for row in rows] == twice.image_ids
        for index, row in enumerate(rows):
            entries = coco._dataset.coco.imgToAnns[coco._dataset.ids[row]]
            labels = [entry["category_id"] for entry in entries]
            ours = [twice.categories[label - 1]["id"] for label in twice.instances(index)[1]]
            assert labels == ours

    def test_masks_lie_in_their_boxes_on_the_whole_canvas(self, split):
        torch.manual_seed(0)
        dataset = peer_loader(split, side=SIDE, batch_size=2, seed=0).dataset
        seen = 0
        for epoch in range(4):
            for index in range(len(split)):
                image, target = dataset[epoch, index]
                assert image.shape == (3, SIDE, SIDE)
                assert image.dtype == torch.uint8
                assert type(image) is torch.Tensor
                assert target["masks"].shape == (len(target["labels"]), SIDE, SIDE)
                for box, mask in zip(target["boxes"], target["masks"], strict=True):
                    y, x = mask.nonzero().unbind(1)
                    assert ((x + 2 >= box[0]) & (x <= box[2] + 1) & (y + 2 >= box[1]) & (y <= box[3] + 1)).all()
                    seen += len(x) > 0
        assert seen > 20


class TestStopwatch:
    def test_nested_calls_count_once(self):
        watch = Stopwatch()

        def spin(seconds):
            end = perf_counter() + seconds
            while perf_counter() < end:
                pass

        inner = watch.timed("inner", spin)

        def work():
            spin(0.002)
            inner(0.004)
            inner(0.004)

        start = perf_counter()
        watch.timed("outer", work)()
        total = perf_counter() - start
        assert watch.calls == 3
        assert watch.seconds["inner"] >= 0.008
        assert watch.seconds["outer"] >= 0.002
        assert sum(watch.seconds.values()) <= total

    def test_watches_for_a_while(self):
        class Thing:
            def double(self, x):
                return 2 * x

        watch = Stopwatch()
        original = Thing.double
        with pytest.raises(ZeroDivisionError), watch.watch([(Thing, "double", "stage")]):
            assert Thing().double(4) == 8
            assert watch.calls == 1
            raise ZeroDivisionError
        assert Thing.double is original

    def test_timing_costs_microseconds(self):
        assert 0 < cost_of_a_call(2000) < 1e-4


def test_bytes_of_nested_tensors():
    batch = (torch.zeros(2, 3), [{"a": torch.zeros(5, dtype=torch.uint8), "b": 3}], ((7, 8),))
    assert tensor_bytes(batch) == 2 * 3 * 4 + 5

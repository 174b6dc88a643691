"""The two commands as users type them: what they write, what they accept, what they refuse."""

import contextlib
import csv
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maskrcnn.data.datamodule import DetectionDataModule
from maskrcnn.data.shapes import draw_shapes
from maskrcnn.evaluation.coco import METRICS
from maskrcnn.models.mask_rcnn import LOSSES
from tests.cli_tools import TINY, TRIAL, files, run

ROOT = Path(__file__).parents[1]
AWKWARD = "a b=c [1], {d} ~ été 'x' #"
VAL = "annotations/instances_val2017.json"
TRAIN = "annotations/instances_train2017.json"


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """A small drawn set in COCO layout."""
    root = tmp_path_factory.mktemp("shapes") / "set"
    draw_shapes(root, train_images=24, val_images=8, image_size=64)
    return root


@pytest.fixture(scope="session")
def trained(shapes, tmp_path_factory):
    """A finished run, its data and its folder at paths that Hydra's grammar claims."""
    home = tmp_path_factory.mktemp("run") / AWKWARD
    shutil.copytree(shapes, home / "data")
    folder = home / "outputs, [1]=~"
    outcome = run(
        "train",
        "data=coco",
        f"data.root={home / 'data'}",
        f"hydra.run.dir={folder}",
        *TINY,
        "model.rpn.post_nms_top_n_test=100",
        "model.detections_per_image=500",
        "model.nms_thresh=0.9",
        "optim=sgd",
        "optim.lr=0.05",
        "trainer.gradient_clip_val=5.0",
        "trainer.max_epochs=2",
        "trainer.log_every_n_steps=1",
        "callbacks.pictures.count=3",
    )
    assert outcome.code == 0, outcome.err
    return folder, outcome


@pytest.fixture(scope="session")
def evaluated(trained, tmp_path_factory):
    """The evaluation of that run's last checkpoint."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    checkpoint = trained[0] / "checkpoints" / "last.ckpt"
    outcome = run("evaluate", f"ckpt={checkpoint}", f"hydra.run.dir={folder}", *CPU)
    assert outcome.code == 0, outcome.err
    return folder, outcome


CPU = ("trainer.accelerator=cpu", "trainer.devices=1", "data.num_workers=0")


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A working directory of its own, where the default `outputs/` would go."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def copy(shapes, work):
    """A copy of the drawn set, to be spoiled."""
    return Path(shutil.copytree(shapes, work / "set"))


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def flat(content):
    return [content[kind][name] for kind in ("box", "mask") for name in METRICS]


def refused(outcome, *culprits, work=None):
    """One error line that names the culprits, no traceback, no run folder."""
    assert outcome.code != 0
    lines = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, outcome.err
    for culprit in culprits:
        assert str(culprit) in lines[0]
    assert "Traceback" not in outcome.err + outcome.out
    if work is not None:
        assert not (work / "outputs").exists() or not list((work / "outputs").iterdir())
    return lines[0]


# --- what a run leaves behind


def test_run_folder_holds_what_is_promised(trained):
    found = files(trained[0])
    board = {name for name in found if name.startswith("tensorboard/")}
    pictures = {name for name in found if name.startswith("pictures/")}
    assert found - board - pictures == {
        ".hydra/config.yaml",
        ".hydra/hydra.yaml",
        ".hydra/overrides.yaml",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "metrics.csv",
        "metrics.json",
        "per_class.csv",
        "train.log",
    }
    assert pictures == {f"pictures/{number}.jpg" for number in (1000001, 1000002, 1000003)}
    assert any("events.out.tfevents" in name for name in board)


def promised_names():
    scores = {f"val/{kind}_{name}" for kind in ("box", "mask") for name in METRICS}
    others = {"train/loss", "train/lr", "train/grad_norm", "perf/images_per_second", "perf/data_wait"}
    return scores | {f"train/{loss}" for loss in LOSSES} | others


def test_metrics_csv_has_the_promised_columns(trained):
    with (trained[0] / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) == promised_names() | {"epoch", "step"}
    for row in rows:
        losses = [float(row[f"train/{name}"]) for name in LOSSES if row["train/loss"]]
        assert sum(losses) == pytest.approx(float(row["train/loss"] or 0), rel=1e-4)
    assert sum(bool(row["train/loss"]) for row in rows) == 12
    assert sum(bool(row["val/mask_ap"]) for row in rows) == 2


def test_tensorboard_has_the_promised_curves_and_pictures(trained):
    events = EventAccumulator(str(trained[0] / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == promised_names() | {"epoch"}
    assert set(events.Tags()["images"]) == {f"val/{number}" for number in (1000001, 1000002, 1000003)}


def test_metrics_json_is_the_last_validation(trained):
    content = metrics(trained[0])
    assert set(content) == {"box", "mask", "images"}
    assert content["images"] == 8
    assert list(content["box"]) == list(content["mask"]) == list(METRICS)
    with (trained[0] / "metrics.csv").open(newline="") as file:
        last = [row for row in csv.DictReader(file) if row["val/mask_ap"]][-1]
    for kind in ("box", "mask"):
        for name in METRICS:
            assert float(last[f"val/{kind}_{name}"]) == pytest.approx(content[kind][name], abs=1e-6)
    assert content["box"]["ap"] > 0


def test_training_ends_with_the_tables_and_where_everything_is(trained):
    folder, outcome = trained
    assert outcome.out.count("Average Precision") == outcome.out.count("Average Recall") == 12
    for place in (folder / "pictures", folder / "checkpoints", f"tensorboard --logdir {folder}"):
        assert str(place) in outcome.out
    assert "error" not in outcome.err


@pytest.mark.parametrize("name", ["best", "last"])
def test_checkpoint_holds_tensors_and_plain_types(trained, name):
    checkpoint = torch.load(trained[0] / "checkpoints" / f"{name}.ckpt", weights_only=True)
    ours = checkpoint["maskrcnn"]
    assert [category["name"] for category in ours["categories"]] == [
        "ellipse",
        "triangle",
        "star",
        "ring",
        "cross",
    ]
    assert ours["config"]["model"]["num_classes"] == 5
    assert ours["config"]["model"]["backbone"]["weights"] is None
    json.dumps(ours)


# --- evaluation


def test_evaluation_reproduces_the_last_validation(trained, evaluated):
    folder, outcome = evaluated
    assert flat(metrics(folder)) == pytest.approx(flat(metrics(trained[0])), abs=1e-9)
    assert outcome.out.count("Average Precision") == outcome.out.count("Average Recall") == 12


def test_evaluation_folder(evaluated):
    found = files(evaluated[0])
    pictures = {name for name in found if name.startswith("pictures/")}
    assert len(pictures) == 8
    assert {name for name in found - pictures if not name.startswith(".hydra/")} == {
        "evaluate.log",
        "metrics.json",
        "per_class.csv",
        "predictions.json",
        "report.html",
        "speed.json",
    }


def pycocotools_scores(shapes, results, kind):
    """The twelve numbers and the table of pycocotools."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        truth = COCO(shapes / VAL)
        evaluation = COCOeval(truth, truth.loadRes(str(results)), {"box": "bbox", "mask": "segm"}[kind])
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    table = [line for line in printed.getvalue().splitlines() if line.startswith(" Average")]
    return evaluation.stats.tolist(), "\n".join(table)


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_predictions_score_the_same_in_pycocotools(shapes, evaluated, kind):
    numbers, table = pycocotools_scores(shapes, evaluated[0] / "predictions.json", kind)
    assert numbers == pytest.approx([metrics(evaluated[0])[kind][name] for name in METRICS], abs=1e-4)
    assert max(numbers) > 0 or kind == "mask"  # so little training gives boxes, but hardly masks
    assert table in evaluated[1].out


def test_good_results_score_the_same_in_pycocotools(shapes, work):
    """Most of the truth, each mask a few pixels beside its place."""
    rng = np.random.default_rng(0)
    truth = COCO(shapes / VAL)
    results = []
    for annotation in truth.anns.values():
        mask = np.roll(truth.annToMask(annotation), rng.integers(-2, 3, 2), axis=(0, 1))
        rle = coco_mask.encode(np.asfortranarray(mask))
        results.append(
            {
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"] if rng.random() < 0.9 else 1,
                "score": rng.random(),
                "bbox": coco_mask.toBbox(rle).tolist(),
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
            }
        )
    (work / "results.json").write_text(json.dumps(results))
    outcome = run("evaluate", "predictions=results.json", f"data.root={shapes}", "hydra.run.dir=here")
    assert outcome.code == 0, outcome.err
    for kind in ("box", "mask"):
        numbers, table = pycocotools_scores(shapes, work / "results.json", kind)
        assert numbers == pytest.approx([metrics(work / "here")[kind][name] for name in METRICS], abs=1e-4)
        assert 0.2 < numbers[0] < 0.95
        assert table in outcome.out


def test_results_file_scores_the_same_without_a_model(shapes, evaluated, work):
    outcome = run(
        "evaluate",
        f"predictions={evaluated[0] / 'predictions.json'}",
        "data=coco",
        f"data.root={shapes}",
        "hydra.run.dir=here",
    )
    assert outcome.code == 0, outcome.err
    assert flat(metrics(work / "here")) == pytest.approx(flat(metrics(evaluated[0])), abs=1e-9)


def test_results_of_boxes_alone_are_scored_for_boxes(shapes, evaluated, work):
    results = json.loads((evaluated[0] / "predictions.json").read_text())
    boxes = [{key: one[key] for key in one if key != "segmentation"} for one in results]
    (work / "boxes.json").write_text(json.dumps(boxes))
    outcome = run("evaluate", "predictions=boxes.json", f"data.root={shapes}", "hydra.run.dir=here")
    assert outcome.code == 0, outcome.err
    assert set(metrics(work / "here")) == {"box", "images"}
    assert metrics(work / "here")["box"] == pytest.approx(metrics(evaluated[0])["box"], abs=1e-9)


def test_evaluation_of_other_data_and_batches(trained, shapes, work):
    outcome = run(
        "evaluate",
        f"ckpt={trained[0] / 'checkpoints' / 'best.ckpt'}",
        "data=coco",
        f"data.root={shapes}",
        "data.batch_size=3",
        "data.limit=4",
        "callbacks.pictures.count=0",
        "hydra.run.dir=here",
        *CPU,
    )
    assert outcome.code == 0, outcome.err
    assert metrics(work / "here")["images"] == 4
    assert len({one["image_id"] for one in json.loads((work / "here" / "predictions.json").read_text())}) == 4


# --- sets of one's own


SHORT = (*TINY, "trainer.max_epochs=1", "trainer.limit_train_batches=2", "callbacks.pictures.count=2")


def train(*arguments):
    """A short run into `run/`."""
    outcome = run("train", *arguments, *SHORT, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    return outcome


def evaluate(*arguments, folder="scored"):
    """The evaluation of its checkpoint."""
    settings = (f"hydra.run.dir={folder}", "report=false", *CPU, *arguments)
    outcome = run("evaluate", "ckpt=run/checkpoints/last.ckpt", *settings)
    assert outcome.code == 0, outcome.err
    return outcome


def predicted(folder="scored", key="image_id"):
    return {one[key] for one in json.loads((Path(folder) / "predictions.json").read_text())}


def warnings_about(outcome, file):
    return [line for line in outcome.out.splitlines() if "WARNING" in line and str(file) in line]


def image_ids(path):
    return {image["id"] for image in json.loads(path.read_text())["images"]}


@pytest.fixture
def roboflow(shapes, work):
    """The drawn set as Roboflow exports it, its test split that of validation."""
    for split, folder in (("train", "train"), ("val", "valid"), ("val", "test")):
        shutil.copytree(shapes / f"{split}2017", work / "set" / folder)
        annotations = shapes / "annotations" / f"instances_{split}2017.json"
        shutil.copy(annotations, work / "set" / folder / "_annotations.coco.json")
    return work / "set"


@pytest.fixture
def one_file(shapes, work):
    """The drawn training pictures as one folder and one annotation file."""
    shutil.copytree(shapes / "train2017", work / "set" / "images")
    shutil.copy(shapes / TRAIN, work / "set" / "annotations.json")
    return work / "set"


def test_roboflow_export_trains_without_naming_a_file(roboflow):
    outcome = train("data=custom", "data.root=set")
    assert "and 8 validation pictures" in outcome.out
    evaluate()
    assert flat(metrics(Path("scored"))) == pytest.approx(flat(metrics(Path("run"))), abs=1e-9)
    evaluate("split=test", folder="tested")
    assert metrics(Path("tested")) == metrics(Path("scored"))
    outcome = evaluate("split=train", "callbacks.pictures.count=0", folder="learnt")
    assert metrics(Path("learnt"))["images"] == 24
    assert predicted("learnt") <= image_ids(roboflow / "train" / "_annotations.coco.json")


def test_a_share_of_one_file_validates_in_training_and_evaluation(one_file):
    outcome = train("data=custom", "data.root=set", "data.val_fraction=0.3", "seed=3")
    assert "and 7 validation pictures" in outcome.out
    evaluate("seed=4")
    assert metrics(Path("scored"))["images"] == 7
    assert flat(metrics(Path("scored"))) == pytest.approx(flat(metrics(Path("run"))), abs=1e-9)
    evaluate("split=train", folder="learnt")
    assert metrics(Path("learnt"))["images"] == 17
    held_out, learnt = predicted(), predicted("learnt")
    assert held_out
    assert learnt
    assert not held_out & learnt


def test_one_file_says_how_to_divide_it(one_file, work):
    refused(
        run("train", "data=custom", "data.root=set", *TRIAL),
        "data.val_annotations",
        "valid/_annotations.coco.json",
        "data.val_fraction=0.1",
        work=work,
    )


def test_chosen_classes_are_trained_and_scored(shapes, work):
    outcome = train(f"data.root={shapes}", "data.classes=[ring,star]")
    assert "2 classes" in outcome.out
    evaluate()
    assert flat(metrics(Path("scored"))) == pytest.approx(flat(metrics(Path("run"))), abs=1e-9)
    assert predicted(key="category_id") == {4, 7}
    checkpoint = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["maskrcnn"]["categories"] == [{"id": 4, "name": "star"}, {"id": 7, "name": "ring"}]
    truth = json.loads((shapes / VAL).read_text())
    truth["annotations"] = [one for one in truth["annotations"] if one["category_id"] in (4, 7)]
    truth["categories"] = [one for one in truth["categories"] if one["id"] in (4, 7)]
    Path("annotations").mkdir()
    Path("annotations/instances_val2017.json").write_text(json.dumps(truth))
    numbers, _ = pycocotools_scores(work, "scored/predictions.json", "box")
    assert numbers == pytest.approx([metrics(Path("scored"))["box"][name] for name in METRICS], abs=1e-4)


def test_category_ids_may_start_from_zero(copy):
    def from_zero(content):
        new = {category["id"]: number for number, category in enumerate(content["categories"])}
        for category in content["categories"]:
            category["id"] = new[category["id"]]
        for annotation in content["annotations"]:
            annotation["category_id"] = new[annotation["category_id"]]

    for file in (TRAIN, VAL):
        spoil_json(copy / file, from_zero)
    train(f"data.root={copy}")
    evaluate()
    assert predicted(key="category_id") <= set(range(5))
    numbers, _ = pycocotools_scores(copy, "scored/predictions.json", "box")
    assert numbers == pytest.approx([metrics(Path("scored"))["box"][name] for name in METRICS], abs=1e-4)


def test_category_names_that_come_twice_train_with_one_warning(copy):
    for file in (TRAIN, VAL):
        (copy / file).write_text((copy / file).read_text().replace('"ring"', '"star"'))
    outcome = train(f"data.root={copy}")
    for file in (TRAIN, VAL):
        (line,) = warnings_about(outcome, copy / file)
        assert "star (id 7)" in line
    evaluate()
    checkpoint = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    names = [category["name"] for category in checkpoint["maskrcnn"]["categories"]]
    assert names == ["ellipse", "triangle", "star", "star (id 7)", "cross"]


@pytest.mark.parametrize("area", [90000.0, None])
def test_wrong_areas_are_corrected_with_one_warning(trained, evaluated, copy, area):
    """With areas of 300 x 300 every object would count as large."""

    def change(content):
        for annotation in content["annotations"]:
            annotation["area"] = area

    spoil_json(copy / VAL, change)
    checkpoint = trained[0] / "checkpoints" / "last.ckpt"
    data = ("data=coco", f"data.root={copy}", "data.batch_size=4")
    outcome = run("evaluate", f"ckpt={checkpoint}", *data, *CPU, "hydra.run.dir=here")
    assert outcome.code == 0, outcome.err
    (line,) = warnings_about(outcome, copy / VAL)
    assert "area" in line
    assert metrics(evaluated[0])["box"]["ap_small"] > -1
    assert flat(metrics(Path("here"))) == pytest.approx(flat(metrics(evaluated[0])), abs=1e-9)


def bare(path):
    """Take the annotations out of a file."""
    spoil_json(path, lambda content: content.pop("annotations"))


def test_a_split_without_annotations_gets_predictions_alone(roboflow):
    bare(roboflow / "test" / "_annotations.coco.json")
    train("data=custom", "data.root=set")
    outcome = evaluate("split=test")
    assert "8 images without annotations: predictions alone" in outcome.out
    assert "Average Precision" not in outcome.out
    assert not Path("scored/metrics.json").exists()
    assert predicted() <= image_ids(roboflow / "test" / "_annotations.coco.json")
    assert predicted()
    assert len(list(Path("scored/pictures").iterdir())) == 8


def test_a_split_without_annotations_scores_no_results(roboflow, work):
    bare(roboflow / "test" / "_annotations.coco.json")
    (work / "results.json").write_text("[]")
    outcome = run("evaluate", "predictions=results.json", "data=custom", "data.root=set", "split=test")
    refused(outcome, "predictions", "split=test has no annotations", work=work)


def test_a_validation_split_without_annotations_does_not_train(roboflow, work):
    bare(roboflow / "valid" / "_annotations.coco.json")
    outcome = run("train", "data=custom", "data.root=set", *SHORT)
    refused(outcome, "valid/_annotations.coco.json", "annotations", work=work)


def test_unknown_split_is_one_line(trained, work):
    outcome = run("evaluate", f"ckpt={trained[0] / 'checkpoints' / 'last.ckpt'}", "split=bogus", *CPU)
    refused(outcome, "split=bogus: must be one of train, val, test", work=work)


def test_missing_test_split_names_its_key(trained, work):
    outcome = run("evaluate", f"ckpt={trained[0] / 'checkpoints' / 'last.ckpt'}", "split=test", *CPU)
    refused(outcome, "data.test_annotations", work=work)


def test_boxes_alone_train_on_demand(copy, work):
    def change(content):
        for annotation in content["annotations"][::2]:
            del annotation["segmentation"]

    for file in (TRAIN, VAL):
        spoil_json(copy / file, change)
    count = len(json.loads((copy / TRAIN).read_text())["annotations"][::2])
    outcome = run("train", f"data.root={copy}", *TRIAL)
    refused(outcome, TRAIN, f"{count} annotations have no segmentation", "data.allow_boxes_only=true", work=work)
    train(f"data.root={copy}", "data.allow_boxes_only=true")
    evaluate()
    assert metrics(Path("scored"))["mask"]["ap"] >= 0


@pytest.mark.parametrize("kind", ["maximum", "steps"])
def test_closing_epochs_count_from_the_last(shapes, work, kind):
    end = {"maximum": ("trainer.max_epochs=-1",), "steps": ("trainer.max_epochs=null", "trainer.max_steps=2")}[kind]
    arguments = (*TINY, "augment=mosaic_mixup", "augment.close_mixing_epochs=1", *end)
    outcome = run("train", f"data.root={shapes}", *arguments)
    refused(outcome, "trainer.max_epochs", work=work)


@pytest.mark.parametrize("settings", [("data.group_by_aspect=true",), ("data.repeat_threshold=0.5",)])
def test_other_orders_train(shapes, work, settings):
    train(f"data.root={shapes}", *settings)


def test_overfitting_a_batch_is_possible(shapes, work):
    outcome = run("train", f"data.root={shapes}", *SHORT, "trainer.overfit_batches=1")
    assert outcome.code == 0, outcome.err


MY_DATASET = """
from maskrcnn.data.annotations import index_annotations
from maskrcnn.data.dataset import InstanceDataset


class MyDataset(InstanceDataset):
    def read_annotations(self):
        images, annotations = {}, []
        for line in self.source.read_text().splitlines():
            name, *numbers = line.split()
            width, height, x, y, w, h = map(int, numbers)
            image = {"id": len(images) + 1, "file_name": name, "width": width, "height": height}
            image = images.setdefault(name, image)
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(
                {"image_id": image["id"], "category_id": 1, "bbox": [x, y, w, h], "segmentation": [corners]}
            )
        categories = [{"id": 1, "name": "thing"}]
        return index_annotations(
            source=self.source, categories=categories, images=images.values(), annotations=annotations
        )


class Stranger:
    def __init__(self, annotations, images, cache):
        pass
"""


@pytest.fixture
def own_format(copy, work, monkeypatch):
    """A list of boxes, and a module that reads it; returns the arguments that name both."""
    for split, file in (("train", TRAIN), ("val", VAL)):
        truth = COCO(copy / file)
        lines = []
        for annotation in truth.anns.values():
            image = truth.imgs[annotation["image_id"]]
            box = [int(side) for side in annotation["bbox"]]
            lines.append(" ".join(map(str, (image["file_name"], image["width"], image["height"], *box))))
        (copy / f"{split}.txt").write_text("\n".join(lines))
    (work / "my_pkg_x.py").write_text(MY_DATASET)
    monkeypatch.syspath_prepend(work)
    monkeypatch.delitem(sys.modules, "my_pkg_x", raising=False)
    yield (
        "data=custom",
        f"data.root={copy}",
        *(f"data.{split}_annotations={split}.txt" for split in ("train", "val")),
        *(f"data.{split}_images={split}2017" for split in ("train", "val")),
    )
    sys.modules.pop("my_pkg_x", None)


def test_a_format_of_ones_own_trains_and_evaluates(own_format, work):
    outcome = train(*own_format, "data.dataset._target_=my_pkg_x.MyDataset", "trust=[my_pkg_x]")
    assert "1 classes" in outcome.out
    evaluate("trust=[my_pkg_x]")
    assert flat(metrics(Path("scored"))) == pytest.approx(flat(metrics(Path("run"))), abs=1e-9)
    outcome = run("evaluate", "ckpt=run/checkpoints/last.ckpt", *CPU)
    refused(outcome, "data.dataset._target_=my_pkg_x.MyDataset", "trust=", work=work)


def test_a_format_of_ones_own_needs_trust(own_format, work):
    outcome = run("train", *own_format, "data.dataset._target_=my_pkg_x.MyDataset", *TRIAL)
    refused(outcome, "data.dataset._target_=my_pkg_x.MyDataset", "trust=", work=work)


@pytest.mark.parametrize(
    ("name", "problem"),
    [("Stranger", "Stranger is not a maskrcnn.data.dataset.InstanceDataset"), ("Nothing", "Nothing")],
)
def test_another_class_is_no_format(own_format, work, name, problem):
    outcome = run("train", *own_format, f"data.dataset._target_=my_pkg_x.{name}", "trust=[my_pkg_x]", *TRIAL)
    refused(outcome, "data.dataset._target_", problem, work=work)


# --- starting from weights, sweeps, trials


def test_training_starts_from_an_own_checkpoint(trained, shapes, work):
    outcome = run("train", f"init={trained[0] / 'checkpoints' / 'best.ckpt'}", f"data.root={shapes}", *TRIAL)
    assert outcome.code == 0, outcome.err
    assert "all weights taken over" in outcome.out


def test_training_of_other_classes_starts_from_an_own_checkpoint(trained, copy):
    for path in (copy / TRAIN, copy / VAL):
        path.write_text(path.read_text().replace('"ring"', '"washer"'))
    outcome = run("train", f"init={trained[0] / 'checkpoints' / 'best.ckpt'}", f"data.root={copy}", *TRIAL)
    assert outcome.code == 0, outcome.err
    assert "\nnew      washer\nleft     ring\n" in outcome.out
    assert "\nfresh" not in outcome.out


def test_sweep_makes_a_job_of_each_value(work, shapes):
    outcome = run(
        "train",
        "-m",
        "optim.lr=1e-4,1e-3",
        "experiment=demo",
        *TRIAL,
        f"data.root={work / 'drawn'}",
        *(f"data.draw.{size}" for size in ("train_images=4", "val_images=2", "image_size=64")),
    )
    assert outcome.code == 0, outcome.err
    (sweep,) = (work / "outputs").iterdir()
    rates = [yaml.safe_load((sweep / job / ".hydra" / "config.yaml").read_text())["optim"]["lr"] for job in "01"]
    assert rates == [1e-4, 1e-3]


# --- what Hydra answers


def test_help_shows_examples(work):
    for command in ("train", "evaluate"):
        outcome = run(command, "--help")
        assert outcome.code == 0
        examples = [line for line in outcome.out.splitlines() if line.startswith(f"  python {command}.py ")]
        assert len(examples) >= 3
        for word in ("model/backbone: ", "augment: ", "data: coco, custom, shapes"):
            assert word.split(":")[0] in outcome.out
    assert files(work) == set()


def test_cfg_job_prints_the_config_and_runs_nothing(work):
    outcome = run("train", "--cfg", "job", "optim=sgd", "data.root=/nowhere/it's [here]")
    assert outcome.code == 0, outcome.err
    config = yaml.safe_load(outcome.out)
    assert config["optim"]["_target_"] == "maskrcnn.training.optimizers.sgd"
    assert config["data"]["root"] == "/nowhere/it's [here]"
    assert files(work) == set()


def test_cfg_job_of_an_evaluation_shows_what_the_checkpoint_brings(trained, work):
    outcome = run("evaluate", f"ckpt={trained[0] / 'checkpoints' / 'last.ckpt'}", "--cfg", "job")
    assert outcome.code == 0, outcome.err
    config = yaml.safe_load(outcome.out)
    assert config["model"]["neck"]["out_channels"] == 16
    assert AWKWARD in config["data"]["root"]
    assert files(work) == set()


def test_evaluation_keeps_the_precision_of_the_training(trained, work):
    checkpoint = torch.load(trained[0] / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["maskrcnn"]["config"]["trainer"]["precision"] = "bf16-mixed"
    torch.save(checkpoint, work / "half.ckpt")
    for more, expected in (((), "bf16-mixed"), (("trainer.precision=32-true",), "32-true")):
        outcome = run("evaluate", "ckpt=half.ckpt", *more, "--cfg", "job")
        assert outcome.code == 0, outcome.err
        assert yaml.safe_load(outcome.out)["trainer"]["precision"] == expected


@pytest.mark.parametrize(
    ("line", "answers"),
    [
        ("model/backbone=", {"model/backbone=resnet18", "model/backbone=resnet50"}),
        ("trainer.max_", {"trainer.max_epochs=", "trainer.max_steps=", "trainer.max_time="}),
    ],
)
def test_shell_completion_answers(work, monkeypatch, line, answers):
    monkeypatch.setenv("COMP_LINE", f"python train.py {line}")
    monkeypatch.setenv("COMP_POINT", str(len(f"python train.py {line}")))
    outcome = run("train", "-sc", "query=bash")
    assert outcome.code == 0, outcome.err
    assert answers <= set(outcome.out.split())


# --- bad input: data


def spoil_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def drop(section):
    return lambda root: spoil_json(root / TRAIN, lambda content: content.pop(section))


def first_annotation(**values):
    return lambda root: spoil_json(root / TRAIN, lambda content: content["annotations"][0].update(values))


def picture(root, split="train"):
    """The first picture of a split that holds an instance."""
    content = json.loads((root / f"annotations/instances_{split}2017.json").read_text())
    wanted = content["annotations"][0]["image_id"]
    (name,) = [image["file_name"] for image in content["images"] if image["id"] == wanted]
    return root / f"{split}2017" / name


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def shift_categories(content):
    content["categories"][0]["name"] = "egg"


BAD_DATA = {
    "annotation file missing": (lambda root: (root / TRAIN).unlink(), [TRAIN, "no such annotation file"]),
    "not JSON": (lambda root: (root / TRAIN).write_text("{'images': []}"), [TRAIN, "not JSON"]),
    "no images": (drop("images"), [TRAIN, "no list images"]),
    "no annotations": (drop("annotations"), [TRAIN, "has no annotations; training needs them"]),
    "no categories": (drop("categories"), [TRAIN, "no list categories"]),
    "unknown image": (first_annotation(image_id=77), [TRAIN, "annotation 1 has image_id 77"]),
    "unknown category": (first_annotation(category_id=77), [TRAIN, "annotation 1 has category_id 77"]),
    "not COCO": (lambda root: (root / VAL).write_text("[1]"), [VAL, "not a COCO instances file"]),
    "no polygon": (first_annotation(segmentation=[[1, 2]]), [TRAIN, "annotation 1 ", "polygon"]),
    "picture missing": (
        lambda root: picture(root).unlink(),
        ["train2017/", "image id", "no such picture file"],
    ),
    "picture truncated": (lambda root: cut(picture(root)), ["train2017/", "image id", "cannot be read"]),
    "picture empty": (lambda root: picture(root).write_bytes(b""), ["train2017/", "not a picture file"]),
    "picture a text": (
        lambda root: picture(root, "val").write_text("hello"),
        ["val2017/", "not a picture file"],
    ),
    "folder missing": (lambda root: shutil.rmtree(root / "val2017"), ["data.val_images=", "no such folder"]),
    "other categories": (
        lambda root: spoil_json(root / VAL, shift_categories),
        [TRAIN, VAL, "different categories", "1 ellipse", "1 egg"],
    ),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_one_line(copy, work, case):
    spoil, culprits = BAD_DATA[case]
    spoil(copy)
    refused(run("train", f"data.root={copy}", *TRIAL), *culprits, work=work)


def test_missing_root_is_one_line(work):
    outcome = run("train", "data=custom", "data.root=/nowhere/a b", *TRIAL)
    refused(outcome, "data.root=/nowhere/a b: no such folder", work=work)
    refused(run("train", "data=custom", *TRIAL), "data.root", work=work)


def test_missing_coco_says_what_to_download(work):
    line = refused(run("train", *TRIAL), "data.root=data/coco", work=work)
    for hint in (
        "train2017.zip",
        "val2017.zip",
        "annotations_trainval2017.zip",
        "cocodataset.org",
        "experiment=demo",
    ):
        assert hint in line


@pytest.mark.parametrize("workers", [0, 1])
def test_picture_found_bad_during_the_run_is_one_line(copy, work, workers):
    def change(content):
        for image in content["images"]:
            image["width"] += 1
        content["annotations"] = [one for one in content["annotations"] if isinstance(one["segmentation"], list)]

    spoil_json(copy / TRAIN, change)
    outcome = run("train", f"data.root={copy}", *TINY, "trainer.max_epochs=1", f"data.num_workers={workers}")
    refused(outcome, "train2017/", "image id", "correct width and height", work=work)


@pytest.mark.parametrize("split", ["train", "val"])
def test_boxes_without_area_are_reported_once(copy, work, split):
    file = copy / f"annotations/instances_{split}2017.json"

    def change(content):
        content["annotations"][0]["bbox"] = [3, 3, 0, 5]
        content["annotations"][1]["bbox"] = [3, 3, 4, -5]
        del content["annotations"][1]["segmentation"]
        content["annotations"][2]["bbox"] = [300, 3, 4, 5]

    spoil_json(file, change)
    outcome = run("train", f"data.root={copy}", *TRIAL)
    assert outcome.code == 0, outcome.err
    lines = [line for line in outcome.out.splitlines() if str(file) in line]
    assert len(lines) == 2
    assert "2 annotations left out, their box has no area (first: annotation 1)" in lines[0]
    assert "1 annotations left out, their box lies outside of the picture (first: annotation 3)" in lines[1]


# --- bad input: config


BAD_VALUES = {
    "data.remove_blank=Ture": ["data.remove_blank=Ture", "valid boolean"],
    "data.batch_size=0": ["data: batch_size must be at least 1"],
    "data.min_sizes=[64,x]": ["data.min_sizes=[64, 'x']", "valid integer"],
    "data.seed=-1": ["data: seed", "at least 0", "-1"],
    "data.val_seed=-1": ["data: ", "val_seed", "at least 0", "-1"],
    "data.val_fraction=30": ["data: val_fraction must be between 0 and 1", "30"],
    "data.classes=[]": ["data: classes must name at least one category"],
    "data.classes=[elipse]": ["data.classes: ", TRAIN, "no category elipse; did you mean ellipse?"],
    "data.classes=star": ["data.classes=star"],
    "data.repeat_threshold=-1": ["data: repeat_threshold must be between 0 and 1"],
    "data.dataset._target_=torch.load": ["data.dataset._target_=torch.load", "trust="],
    "data.dataset._target_=maskrcnn.data.augment.Augment": ["data.dataset", "annotations"],
    "augment.mosaic.p=2": ["data.augment.mosaic: p must be between 0 and 1"],
    "augment.jitter.scale=[2,1]": ["data.augment.jitter: scale must be two numbers"],
    "augment.close_mixing_epochs=-1": ["data.augment: close_mixing_epochs must be at least 0"],
    "seed=abc": ["seed=abc", "valid integer"],
    "optim.lr=fast": ["optim.lr=fast", "valid number"],
    "optim.lr=-1": ["optim: Invalid learning rate"],
    "schedule.floor=2": ["schedule: floor must be between 0 and 1"],
    "trainer.max_epochs=many": ["trainer.max_epochs=many", "valid integer"],
    "trainer.precision=17": ["trainer.precision=17", "64, 32 or 16"],
    "trainer.accelerator=abacus": ["trainer: ", "abacus"],
    "model.score_thresh=2": ["model: score_thresh must be between 0 and 1"],
    "model.rpn.matcher.low_threshold=0.9": ["model.rpn.matcher: low_threshold"],
    "model.rpn.box_loss=l2": ["model.rpn.box_loss=l2", "giou"],
    "model.backbone.norm=batch": ["model.backbone.norm=batch", "frozen_bn"],
    "model.backbone.weights=none.pth": ["model.backbone.weights=none.pth: no such file"],
    "model.neck._target_=torch.load": ["model.neck._target_=torch.load", "trust="],
    "callbacks.pictures.count=-1": ["callbacks.pictures: count must be at least 0"],
    "init=none.pth": ["init=none.pth: no such file"],
}


@pytest.mark.parametrize("argument", BAD_VALUES)
def test_bad_value_is_one_line(shapes, work, argument):
    outcome = run("train", f"data.root={shapes}", *TRIAL, argument)
    refused(outcome, *BAD_VALUES[argument], work=work)


@pytest.mark.parametrize(
    ("argument", "answer"),
    [
        ("optim=adamm", "optim=adamm: no such option; optim is one of adam, adamw, sgd\n"),
        ("model/backbone=resnet", "model/backbone=resnet: no such option; model/backbone is one of mobilenet_v2, "),
        ("model/necks=fpn", "model/necks: unknown key; did you mean model/neck?\n"),
        ("data.rot=x", "data.rot: unknown key; did you mean data.root?\n"),
        ("data.root.x=1", "data.root.x: unknown key; data.root is a single value\n"),
        ("learning_rate=1", "learning_rate: unknown key; the config has "),
        ("~learning_rate", "Could not delete from config. 'learning_rate' does not exist.\n"),
        ("optim.lr=[1", "no viable alternative at input '[1' See "),
        ("hydra.run.dir=${no}", "Interpolation key 'no' not found "),
    ],
)
def test_unknown_keys_and_options_are_one_line(work, argument, answer):
    outcome = run("train", argument)
    assert outcome.code == 1
    assert outcome.err.startswith(f"error: {answer}")
    assert outcome.err.count("\n") == 1
    assert files(work) == set()


@pytest.mark.parametrize(
    "argument", ["model.score_thresh=2", "optim.lr=-1", "schedule.floor=2", "trainer.precision=17", "init=none.pth"]
)
def test_mistakes_come_before_the_data_is_read(work, argument, monkeypatch):
    monkeypatch.setattr(DetectionDataModule, "load", lambda *_, **__: pytest.fail("the data was read"))
    outcome = run("train", argument, "model.backbone.weights=null")
    assert outcome.code == 1
    assert outcome.err.startswith("error: " + argument.partition(".")[0].partition("=")[0])


@pytest.mark.parametrize("argument", ["experiment=demo", "optim.lr=1"])
def test_evaluation_refuses_what_belongs_to_training(trained, work, argument):
    outcome = run("evaluate", f"ckpt={trained[0] / 'checkpoints' / 'last.ckpt'}", argument)
    assert outcome.code == 1
    assert argument.split("=")[0].split(".")[0] in outcome.err
    assert "Traceback" not in outcome.err
    assert files(work) == set()


# --- bad input: checkpoints and results


class Bomb:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch exploded",)


@pytest.fixture
def craft(trained, work):
    """A checkpoint without weights whose config was tampered with."""

    def make(change):
        content = torch.load(trained[0] / "checkpoints" / "last.ckpt", weights_only=True)
        content = {"state_dict": {}, "maskrcnn": content["maskrcnn"]}
        change(content["maskrcnn"])
        torch.save(content, work / "crafted.ckpt")
        return "crafted.ckpt"

    return make


def garbage(path):
    path.write_bytes(np.random.default_rng(0).bytes(5000))


NOT_CHECKPOINTS = {
    "missing": (lambda path: None, "no such file"),
    "folder": (lambda path: path.mkdir(), "no such file"),
    "empty": (lambda path: path.write_bytes(b""), "not a checkpoint"),
    "text": (lambda path: path.write_text("hello"), "not a checkpoint"),
    "garbage": (garbage, "not a checkpoint"),
    "picture": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99)), "not a checkpoint"),
    "tensor": (lambda path: torch.save(torch.ones(3), path), "no Mask R-CNN weights"),
    "other network": (
        lambda path: torch.save({"conv1.weight": torch.ones(3)}, path),
        "no Mask R-CNN weights",
    ),
    "ours but empty": (lambda path: torch.save({"maskrcnn": {}}, path), "a.ckpt"),
    "bomb": (lambda path: path.write_bytes(pickle.dumps(Bomb())), "could run code"),
    "zipped bomb": (lambda path: torch.save({"maskrcnn": {"config": Bomb()}}, path), "could run code"),
}


@pytest.mark.parametrize("case", NOT_CHECKPOINTS)
@pytest.mark.parametrize("key", ["ckpt", "init"])
def test_file_that_is_no_checkpoint_is_one_line(shapes, work, case, key):
    make, problem = NOT_CHECKPOINTS[case]
    make(work / "a.ckpt")
    if key == "ckpt":
        outcome = run("evaluate", "ckpt=a.ckpt", f"data.root={shapes}")
    else:
        outcome = run("train", "init=a.ckpt", f"data.root={shapes}", *TRIAL)
    refused(outcome, f"{key}=a.ckpt", problem, work=work)
    assert not (work / "exploded").exists()


@pytest.mark.parametrize("case", ["bomb", "zipped bomb", "text"])
def test_backbone_weights_that_are_none_are_one_line(shapes, work, case):
    make, _ = NOT_CHECKPOINTS[case]
    make(work / "a.pth")
    outcome = run("train", f"data.root={shapes}", *TRIAL, "model.backbone.weights=a.pth")
    refused(outcome, "model.backbone.weights=a.pth: not a checkpoint", work=work)
    assert not (work / "exploded").exists()


@pytest.mark.parametrize("target", ["torch.load", "torch.hub.load", "os.system"])
@pytest.mark.parametrize("place", ["model", "model.backbone", "model.roi.stages.0", "data", "data.augment"])
def test_checkpoint_that_wants_more_than_it_may_is_refused(craft, work, target, place):
    def change(ours):
        node = ours["config"]
        for part in place.split("."):
            node = node[int(part) if part.isdigit() else part]
        node |= {"_target_": target, "command": "touch exploded"}

    outcome = run("evaluate", f"ckpt={craft(change)}", *CPU)
    refused(outcome, f"{target}", work=work)
    assert not (work / "exploded").exists()


@pytest.mark.parametrize("place", ["model", "data", "neck"])
@pytest.mark.parametrize("package", ["_global_", "_global_.hydra.callbacks.evil", "_global_.hydra.job_logging"])
def test_checkpoint_cannot_reach_hydras_own_settings(craft, work, place, package):
    evil = {"_target_": "os.system", "command": "touch exploded"}

    def change(ours):
        config = ours["config"]
        node = {"model": config["model"], "data": config["data"], "neck": config["model"]["neck"]}[place]
        node["defaults"] = [{f"/data@{package}": "checkpoint"}, "_self_"]
        if place != "data":
            config["data"] = {"hydra": {"callbacks": {"evil": evil}}} if package == "_global_" else evil

    refused(run("evaluate", f"ckpt={craft(change)}", *CPU), "ckpt=crafted.ckpt", work=work)
    assert not (work / "exploded").exists()


def test_checkpoint_of_other_classes_is_refused(trained, copy, work):
    spoil_json(copy / VAL, shift_categories)
    checkpoint = trained[0] / "checkpoints" / "last.ckpt"
    outcome = run("evaluate", f"ckpt={checkpoint}", "data=coco", f"data.root={copy}", *CPU)
    refused(outcome, "last.ckpt knows 5 classes", "egg", work=work)


def test_checkpoint_whose_weights_are_of_another_class_count_is_refused(craft, shapes, work):
    outcome = run("evaluate", f"ckpt={craft(lambda ours: None)}", f"data.root={shapes}", *CPU)
    refused(outcome, "ckpt=crafted.ckpt", "does not fit this model", work=work)


def test_init_of_another_backbone_says_what_it_left(trained, shapes, work):
    checkpoint = trained[0] / "checkpoints" / "last.ckpt"
    outcome = run("train", f"init={checkpoint}", f"data.root={shapes}", *TRIAL, "model/backbone=mobilenet_v3_large")
    assert outcome.code == 0, outcome.err
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("fresh    backbone.")]
    assert " there" in line


BAD_RESULTS = {
    "missing": (None, "can't be read"),
    "not JSON": ("{", "not JSON"),
    "not a list": ("{}", "should be a list"),
    "unknown image": ('[{"image_id": 1, "category_id": 1, "score": 1, "bbox": [0, 0, 1, 1]}]', "entry 0"),
    "no score": ('[{"image_id": 1000001, "category_id": 1, "bbox": [0, 0, 1, 1]}]', "entry 0 has no 'score'"),
}


@pytest.mark.parametrize("case", BAD_RESULTS)
def test_bad_results_file_is_one_line(shapes, work, case):
    text, problem = BAD_RESULTS[case]
    if text is not None:
        (work / "results.json").write_text(text)
    outcome = run("evaluate", "predictions=results.json", f"data.root={shapes}")
    refused(outcome, "results.json", problem, work=work)


def test_evaluation_wants_one_of_checkpoint_and_results(work):
    refused(run("evaluate"), "ckpt, predictions, compare: give one of them", work=work)


# --- the real process, and real data


def test_the_process_ends_with_one_line_and_a_status(work):
    command = [sys.executable, str(ROOT / "train.py"), "data=custom", "data.root=no such set"]
    ended = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [ended.stderr.strip()]
    assert ended.stderr.startswith("error: data.root=no such set: no such folder")
    assert ended.stdout == ""
    assert files(work) == set()


@pytest.mark.skipif("MASKRCNN_REAL_DATA" not in os.environ, reason="MASKRCNN_REAL_DATA names the folder of coco_tiny")
def test_ground_truth_of_real_data_scores_full_marks_against_itself(work):
    root = Path(os.environ["MASKRCNN_REAL_DATA"]) / "coco_tiny"
    truth = COCO(root / VAL)
    results = [
        {
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "bbox": annotation["bbox"],
            "score": 1.0,
            "segmentation": (rle := truth.annToRLE(annotation)) | {"counts": rle["counts"].decode()},
        }
        for annotation in truth.anns.values()
        if not annotation["iscrowd"]
    ]
    (work / "results.json").write_text(json.dumps(results))
    outcome = run("evaluate", "predictions=results.json", f"data.root={root}", "hydra.run.dir=here")
    assert outcome.code == 0, outcome.err
    for kind in ("box", "mask"):
        assert metrics(work / "here")[kind]["ap"] == pytest.approx(1)

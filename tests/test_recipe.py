"""`python train.py` is the COCO recipe, and what it can be turned into."""

import csv
from unittest import mock

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from maskrcnn.config import config_folder
from maskrcnn.data.shapes import draw_shapes
from tests.cli_tools import TINY, run


def composed(*overrides):
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def chosen(cfg, keys):
    return {key: OmegaConf.select(cfg, key) for key in keys}


RECIPE = {
    "model.backbone.name": "resnet50",
    "model.box_head.class_agnostic": True,
    "model.rpn.box_loss": "giou",
    "model.rpn.box_loss_normalizer": "positive",
    "model.box_head.box_loss": "giou",
    "model.box_head.box_loss_normalizer": "positive",
    "model.rpn.pre_nms_top_n_train": 2000,
    "model.rpn.post_nms_top_n_train": 2000,
    "model.rpn.pre_nms_top_n_test": 1000,
    "model.rpn.post_nms_top_n_test": 1000,
    "model.input.min_size": 640,
    "model.input.max_size": 768,
    "data.min_sizes": [416, 448, 480, 512, 544, 576, 608, 640],
    "data.max_size": 768,
    "data.batch_size": 4,
    "augment.mosaic.p": 0.5,
    "optim._target_": "maskrcnn.training.optimizers.adam",
    "optim.lr": 1e-4,
    "optim.weight_decay": 1e-4,
    "optim.lr_scaling": None,
    "schedule._target_": "maskrcnn.training.schedules.cosine",
    "schedule.floor": 0.1,
    "schedule.restarts": [],
    "trainer.max_epochs": 24,
    "trainer.sync_batchnorm": True,
    "ema.decay": 0.9999,
}
LSJ = {
    "model.backbone.weights": None,
    "model.neck.norm": "bn",
    "model.box_head.num_convs": 4,
    "model.box_head.num_fcs": 1,
    "model.box_head.norm": "bn",
    "model.box_head.box_loss": "l1",
    "model.mask_head.norm": "bn",
    "data.batch_size": 8,
    "data.max_size": 1024,
    "augment.jitter.p": 1.0,
    "augment.color.p": 0.0,
    "augment.mosaic.p": 0.0,
    "optim._target_": "maskrcnn.training.optimizers.sgd",
    "optim.lr": 0.1,
    "optim.reference_batch_size": 64,
    "optim.weight_decay": 4e-5,
    "trainer.sync_batchnorm": True,
    "ema": {},
}


@pytest.mark.parametrize(
    ("experiment", "expected"),
    [
        (None, RECIPE),
        (
            "coco_r50_1x",
            {
                "model.backbone.norm": "frozen_bn",
                "model.box_head.class_agnostic": False,
                "model.rpn.box_loss": "l1",
                "model.input.min_size": 800,
                "augment.mosaic.p": 0.0,
                "optim.lr": 0.02,
                "schedule.milestones": [8, 11],
                "trainer.max_epochs": 12,
                "ema": {},
            },
        ),
        ("coco_r50_lsj_100ep", LSJ | {"trainer.max_epochs": 100, "schedule.milestones": [88.9, 96.3]}),
        ("coco_r50_lsj_400ep", LSJ | {"trainer.max_epochs": 400, "schedule.milestones": [355.6, 385.2]}),
    ],
)
def test_recipes_are_what_they_are_named_for(experiment, expected):
    cfg = composed(*([] if experiment is None else [f"experiment={experiment}"]))
    assert chosen(cfg, expected) == expected


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe") / "shapes"
    draw_shapes(folder, train_images=8, val_images=2, image_size=64)
    return folder


@pytest.fixture
def train(root, tmp_path):
    def go(*arguments):
        return run(
            "train",
            *TINY,
            "data=coco",
            f"data.root={root}",
            "trainer.log_every_n_steps=1",
            "trainer.enable_progress_bar=false",
            "logger=csv",
            f"hydra.run.dir={tmp_path}",
            *arguments,
        )

    return go


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def last_weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_whole_recipe_trains_in_its_own_precision(train, tmp_path):
    outcome = train("trainer.max_epochs=2", "trainer.precision=${native_precision:}", "schedule.warmup_epochs=0.5")
    assert outcome.code == 0, outcome.err
    content = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert any(key.startswith("current_model") for key in content)  # beside the average
    rates = [float(row["train/lr"]) for row in rows(tmp_path) if row["train/lr"]]
    assert rates == pytest.approx([1e-7, 1e-4, 7.75e-5, 3.25e-5], rel=1e-5)  # a warm-up step, then half a cosine to 0.1


def test_learning_rate_follows_the_batch_when_asked(train, tmp_path):
    scaling = ("optim.lr_scaling=linear", "optim.reference_batch_size=2", "trainer.accumulate_grad_batches=2")
    outcome = train("trainer.max_epochs=1", "schedule.floor=1.0", *scaling)
    assert outcome.code == 0, outcome.err
    assert "lr 0.0004: 0.0001 is for 2 pictures a step, 8 by the linear rule" in outcome.out
    rates = {float(row["train/lr"]) for row in rows(tmp_path) if row["train/lr"]}
    assert list(rates) == [pytest.approx(4e-4)]


def test_run_that_no_longer_improves_ends_early(train, tmp_path):
    # Never better by a whole AP: the second validation ends it.
    stopping = ("early_stopping=default", "early_stopping.patience=1", "early_stopping.min_delta=2.0")
    outcome = train("trainer.max_epochs=5", "optim.lr=1e-9", *stopping)
    assert outcome.code == 0, outcome.err
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 1
    assert "early stopping: val/mask_ap" in outcome.out


def test_run_that_has_ended_early_stays_ended(train, tmp_path):
    stopping = ("early_stopping=default", "early_stopping.patience=1", "early_stopping.min_delta=2.0")
    assert train("trainer.max_epochs=5", "optim.lr=1e-9", *stopping).code == 0
    outcome = run("train", f"resume={tmp_path / 'checkpoints' / 'last.ckpt'}")
    assert outcome.code == 0, outcome.err
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 1


def test_unknown_score_to_watch_is_one_line(train):
    outcome = train("trainer.max_epochs=1", "early_stopping=default", "early_stopping.monitor=val/foo")
    assert outcome.code == 1
    assert outcome.err.startswith("error: early_stopping.monitor=val/foo: is not logged; the scores are val/box_ap, ")


def test_gradient_checkpointing_trains_the_same_weights(train, tmp_path):
    found = []
    for value in ("false", "true"):
        folder = tmp_path / value
        settings = ("trainer.max_epochs=1", f"model.backbone.gradient_checkpointing={value}", f"hydra.run.dir={folder}")
        assert train(*settings).code == 0
        found.append(last_weights(folder))
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


@pytest.mark.parametrize(
    ("profiler", "entry"), [("simple", "training_step"), ("advanced", "training_step"), ("pytorch", "Self CPU time")]
)
def test_profile_goes_to_the_run_folder(train, profiler, entry, tmp_path):
    outcome = train("trainer.max_epochs=1", f"trainer.profiler={profiler}")
    assert outcome.code == 0, outcome.err
    assert entry in (tmp_path / "fit-profile.txt").read_text()


def test_clipping_bounds_the_step(train, tmp_path):
    settings = ("trainer.max_steps=1", "optim=sgd", "optim.momentum=0", "optim.weight_decay=0", "optim.lr=1.0")
    norms = []
    for value in ("null", "0.5"):
        folder = tmp_path / value
        before = ("ema=none", "schedule.floor=1.0", f"trainer.gradient_clip_val={value}", f"hydra.run.dir={folder}")
        assert train(*settings, *before).code == 0
        norms.append(torch.cat([v.flatten() for n, v in sorted(last_weights(folder).items()) if "neck" in n]))
    assert (norms[0] - norms[1]).norm() > 0.1


@pytest.mark.parametrize("compile", ["fast", "1"])
def test_unknown_mode_of_compilation_is_one_line(train, compile):
    outcome = train(f"compile={compile}")
    assert outcome.code == 1
    assert outcome.err.startswith(f"error: compile={compile}: must be false, true or one of default, ")


def test_machine_without_a_compiler_is_one_line(train):
    error = torch._dynamo.exc.TorchDynamoException("no C++ compiler\nand a long story")
    with mock.patch("torch.compile", return_value=mock.Mock(side_effect=error)):
        outcome = train("compile=true")
    assert outcome.code == 1
    assert outcome.err == "error: compile=True: torch cannot compile on this machine (no C++ compiler)\n"


def test_compilation_of_what_is_computed_twice_is_refused(train):
    outcome = train("compile=true", "model.backbone.gradient_checkpointing=true")
    assert outcome.code == 1
    assert outcome.err.startswith("error: compile=True: not with model.backbone.gradient_checkpointing=true")


@pytest.mark.slow
def test_compiled_model_trains_and_scores_the_same(train, tmp_path):
    found = []
    for value in ("false", "true"):
        folder = tmp_path / value
        settings = ("optim=sgd", "optim.lr=0.001", f"compile={value}", f"hydra.run.dir={folder}")
        outcome = train("trainer.max_epochs=1", *settings)
        assert outcome.code == 0, outcome.err
        found.append(last_weights(folder))
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-3, atol=1e-4)

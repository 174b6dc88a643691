"""A run that is stopped anywhere and resumed ends as if it had never been stopped."""

import csv
import inspect
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning import Callback, Trainer

from maskrcnn.data.shapes import draw_shapes
from tests.cli_tools import TINY, files, run

STEPS = 3  # per epoch
EPOCHS = 2


MIXED = ("augment=mosaic_mixup", "data.num_workers=2", "optim=sgd", "optim.lr=0.001")
TOP = Path(__file__).parent.parent


class KilledError(Exception):
    """Stands for a kill: nothing is caught, nothing is tidied up."""


class Killer(Callback):
    """Ends training behind the checkpoint of a step, or in the validation of an epoch."""

    def __init__(self, *, step=None, validation=None):
        self.step, self.validation = step, validation

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise KilledError

    def on_validation_batch_end(self, trainer, *_):
        if trainer.current_epoch == self.validation:
            raise KilledError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume") / "shapes"
    draw_shapes(folder, train_images=12, val_images=3, image_size=64)
    return folder


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """The run that nothing stops, made once for each choice of settings."""
    made = {}

    def make(*settings):
        if settings not in made:
            made[settings] = tmp_path_factory.mktemp("whole")
            assert train(root, made[settings], *settings).code == 0
        return made[settings]

    return make


def train(root, folder, *arguments):
    return run("train", *settings(root, folder), *arguments)


def settings(root, folder):
    return [
        *TINY,
        "data=coco",
        f"data.root={root}",
        f"trainer.max_epochs={EPOCHS}",
        "trainer.log_every_n_steps=1",
        "trainer.enable_progress_bar=false",
        "logger=csv",
        "checkpoint.every_n_steps=1",
        f"hydra.run.dir={folder}",
    ]


def killed(monkeypatch, killer, root, folder, *arguments):
    """Train until the killer strikes; the step's checkpoint is then the last thing that was written."""
    begin = Trainer.__init__

    def with_killer(self, *args, callbacks, **settings):
        begin(self, *args, callbacks=[*callbacks, killer], **settings)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "__init__", with_killer)
        outcome = train(root, folder, *arguments)
    assert outcome.code == 1
    assert "KilledError" in outcome.err


def die():
    """Kill this process in a step of its second epoch, in the middle of the computation."""
    import os
    import signal

    import torch

    from maskrcnn.training.module import MaskRCNNModule

    torch.set_num_threads(1)
    step = MaskRCNNModule.training_step

    def deadly(self, batch, number):
        loss = step(self, batch, number)
        if self.trainer.global_step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss

    MaskRCNNModule.training_step = deadly


def resume(folder, *arguments, checkpoint="last.ckpt"):
    return run("train", f"resume={folder / 'checkpoints' / checkpoint}", *arguments)


def load(folder, name="last.ckpt"):
    return torch.load(folder / "checkpoints" / name, weights_only=True)


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in csv.DictReader(file)]


def assert_equal(a, b, where=""):
    """Equal to the last bit, whatever is nested in what."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_equal(*pair, f"{where}.{i}")
    else:
        assert a == b, where


def assert_same_end(folder, expected):
    """Weights, optimizer, schedule, scores and curves."""
    ours, theirs = load(folder), load(expected)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert_equal(ours[key], theirs[key], key)
    assert_equal(load(folder, "best.ckpt")["state_dict"], load(expected, "best.ckpt")["state_dict"])
    assert json.loads((folder / "metrics.json").read_text()) == json.loads((expected / "metrics.json").read_text())
    assert rows(folder) == rows(expected)


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param((Killer(step=2), ()), id="first-epoch"),
        pytest.param((Killer(step=STEPS), ()), id="between-epochs"),
        pytest.param((Killer(validation=EPOCHS - 1), ()), id="last-validation"),
        pytest.param((Killer(step=STEPS + 2), MIXED), id="second-epoch-mixing-workers"),
    ],
)
def test_resumed_run_ends_the_same(stop, root, whole, tmp_path, monkeypatch):
    killer, settings = stop
    killed(monkeypatch, killer, root, tmp_path, *settings)
    outcome = resume(tmp_path, "trainer.enable_progress_bar=true")
    assert outcome.code == 0, outcome.err
    assert "not resumable" not in outcome.err
    assert_same_end(tmp_path, whole(*settings))


def test_last_weights_are_scored_where_no_validation_was_due(root, whole, tmp_path, monkeypatch):
    settings = ("trainer.check_val_every_n_epoch=3",)
    scores = json.loads((whole(*settings) / "metrics.json").read_text())
    assert scores["images"] == 3
    killed(monkeypatch, Killer(step=STEPS + 1), root, tmp_path, *settings)
    assert resume(tmp_path).code == 0
    assert json.loads((tmp_path / "metrics.json").read_text()) == scores


def test_killed_process_resumes_from_the_newest_run(root, whole, tmp_path, monkeypatch):
    """`kill -9` of a real process, which has one moment before its next checkpoint; then resume=auto.

    A worker that outlived the process would keep its output open, and the test waiting.
    """
    folder = tmp_path / "outputs" / "run"
    code = f"{inspect.getsource(die)}\ndie()\nimport train\ntrain.main()"
    arguments = [*settings(root, folder), "data.num_workers=1"]
    command = [sys.executable, "-c", code, *arguments]
    process = subprocess.run(command, cwd=TOP, capture_output=True, check=False, timeout=100)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert load(folder)["global_step"] == STEPS + 1
    monkeypatch.chdir(tmp_path)
    outcome = run("train", "resume=auto")
    assert outcome.code == 0, outcome.err
    monkeypatch.undo()
    assert_same_end(folder, whole())


def test_finished_run_scores_again_or_goes_on(root, whole, tmp_path):
    expected = whole()
    folder = shutil.copytree(expected, tmp_path / "a run = [1], it's mine")
    (folder / "metrics.json").unlink()
    assert resume(folder).code == 0
    assert json.loads((folder / "metrics.json").read_text()) == json.loads((expected / "metrics.json").read_text())
    outcome = resume(folder, f"trainer.max_epochs={EPOCHS + 1}")
    assert outcome.code == 0, outcome.err
    assert load(folder)["global_step"] == STEPS * (EPOCHS + 1)
    kept = OmegaConf.load(folder / ".hydra" / "config.yaml")
    assert kept.trainer.max_epochs == EPOCHS + 1
    assert kept.data.root == str(root)


def test_first_weights_are_not_asked_for_again(root, whole, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    start = whole() / "checkpoints" / "last.ckpt"
    gone = shutil.copy(start, tmp_path / "start.ckpt")
    killed(monkeypatch, Killer(step=2), root, folder, f"init={gone}", "trainer.max_steps=3")
    (tmp_path / "start.ckpt").unlink()
    outcome = resume(folder, "model.backbone.weights=gone.pth")
    assert outcome.code == 0, outcome.err
    assert "taken" not in outcome.out
    assert load(folder)["global_step"] == 3


@pytest.fixture
def run_folder(whole, tmp_path):
    return shutil.copytree(whole(), tmp_path / "run")


def test_damaged_checkpoint_is_refused(run_folder):
    last, best = (run_folder / "checkpoints" / name for name in ("last.ckpt", "best.ckpt"))
    last.write_bytes(last.read_bytes()[:-1000])
    outcome = resume(run_folder)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.count("\n") == 1
    assert outcome.err.startswith(f"error: resume={last}: not a checkpoint, or a damaged one (")
    assert outcome.err.endswith(f"; the newest other good checkpoint of that run is {best}\n")
    assert run("train", "resume=auto", f"hydra.run.dir={run_folder}").code == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ({"state_dict": {}}, "not a checkpoint of a training run of this project; init="),
    ],
)
def test_missing_or_foreign_checkpoint_is_refused(content, message, tmp_path):
    path = tmp_path / "checkpoints" / "other.ckpt"
    path.parent.mkdir()
    if content is not None:
        torch.save(content, path)
    outcome = run("train", f"resume={path}")
    assert outcome.code == 1
    assert outcome.err.startswith(f"error: resume={path}: {message}")
    assert "newest" not in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["augment=none"], "augment=none: a resumed run keeps its own augment; override single keys of it"),
        (["hydra.run.dir=elsewhere"], "hydra.run.dir=elsewhere: a resumed run stays in its own folder"),
        (["~ema"], "ema=: a resumed run keeps its own ema; override single keys of it"),
        (["data.batch_size=2"], "data.batch_size: a resumed run goes on with what is in the checkpoint"),
        (["optim.lr=1"], "optim.lr: a resumed run goes on with what is in the checkpoint; leave this key out"),
        (["-m"], "resume: continues one run; not with --multirun"),
    ],
)
def test_what_a_resumed_run_cannot_change_is_refused(arguments, message, run_folder):
    before = files(run_folder)
    outcome = resume(run_folder, *arguments)
    assert outcome.code == 1
    assert outcome.err.startswith(f"error: {message}")
    assert files(run_folder) == before


@pytest.mark.parametrize("argument", ["model.neck.out_channels=32", "model.backbone.norm=gn", "data.classes=[star]"])
def test_model_that_does_not_fit_the_checkpoint_is_refused(argument, run_folder):
    outcome = resume(run_folder, argument, "trainer.max_epochs=3")
    assert outcome.code == 1
    assert outcome.err.count("\n") == 1
    assert outcome.err.startswith("error: resume: ")
    assert outcome.err.endswith("leave model.* and data.classes as they are in the run, or use init=\n")


def test_auto_without_a_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("train", "resume=auto").err.startswith("error: resume=auto: no run with a checkpoint below outputs")
    outcome = run("train", "resume=auto", "hydra.run.dir=here")
    assert outcome.err.startswith("error: resume=auto: here/checkpoints holds no checkpoint")


def test_checkpoint_outside_a_run_is_refused(run_folder):
    shutil.rmtree(run_folder / ".hydra")
    outcome = resume(run_folder)
    assert outcome.code == 1
    assert "is not in the checkpoints/ of a run folder" in outcome.err

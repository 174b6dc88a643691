"""What a run does when something goes wrong in its middle: numbers, memory, disk."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback, Trainer

from maskrcnn.data.shapes import draw_shapes
from maskrcnn.models.mask_rcnn import LOSSES, MaskRCNN
from tests.cli_tools import TINY, files, run
from tests.test_resume import assert_equal

BATCH = 4
STEPS = 3  # per epoch


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guard") / "shapes"
    draw_shapes(folder, train_images=BATCH * STEPS, val_images=3, image_size=64)
    return folder


def train(root, folder, *arguments):
    return run(
        "train",
        *TINY,
        "data=coco",
        f"data.root={root}",
        "data.remove_blank=false",
        "trainer.max_epochs=1",
        "trainer.log_every_n_steps=2",
        "trainer.enable_progress_bar=false",
        "logger=csv",
        f"hydra.run.dir={folder}",
        *arguments,
    )


def error_line(outcome):
    """The only thing that a user's terminal shows of the error."""
    assert outcome.code == 1
    assert "Traceback" not in outcome.out + outcome.err
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture
def spoil(monkeypatch):
    """Make the pictures of some training batches NaN."""

    def make(*bad):
        calls, forward = iter(range(100)), MaskRCNN.forward

        def spoiled(self, batch, targets):
            if next(calls) in bad:
                batch = batch._replace(pixels=batch.pixels * torch.nan)
            return forward(self, batch, targets)

        monkeypatch.setattr(MaskRCNN, "forward", spoiled)

    return make


@pytest.fixture
def record(monkeypatch):
    """Keep model and optimizer after every step of the run that follows."""
    states = []

    class Record(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            content = {"model": pl_module.state_dict(), "optimizer": trainer.optimizers[0].state_dict()["state"]}
            states.append(torch.utils._pytree.tree_map_only(torch.Tensor, torch.clone, content))

    begin = Trainer.__init__

    def recorded(self, *args, callbacks, **settings):
        begin(self, *args, callbacks=[*callbacks, Record()], **settings)

    monkeypatch.setattr(Trainer, "__init__", recorded)
    return states


def all_finite(state):
    return all(value.isfinite().all() for value in state.values() if value.is_floating_point())


RUNS = {
    "adam": ("optim=adam", "ema=default"),
    "sgd": ("optim=sgd", "optim.lr=1e-3", "ema=none"),
    "bf16": ("optim=adamw", "ema=default", "trainer.precision=bf16-mixed", "trainer.gradient_clip_val=1.0"),
}


@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
def test_update_from_a_batch_of_nan_is_left_out(settings, root, tmp_path, spoil, record):
    spoil(1)
    outcome = train(root, tmp_path, "trainer.precision=32-true", *settings)
    assert outcome.code == 0, outcome.err
    assert re.search(r"^step 1: loss is not finite, update left out \(image ids \d+(, \d+)+\)$", outcome.out, re.M)
    first, second, third = record
    assert any(name.endswith("running_mean") for name in first["model"])
    assert_equal(second, first)
    first_weights = next(name for name in second["model"] if name.startswith("model.backbone."))
    assert not torch.equal(third["model"][first_weights], second["model"][first_weights])
    assert all_finite(third["model"])
    assert all_finite(torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])


def test_without_a_guard_the_model_is_lost(root, tmp_path, spoil, record):
    spoil(1)
    assert train(root, tmp_path, "guard=none").code == 0
    assert all_finite(record[0]["model"])
    assert not all_finite(record[1]["model"])


def test_too_many_updates_left_out_end_the_run(root, tmp_path, spoil):
    spoil(*range(100))
    outcome = train(root, tmp_path, "guard.max_skips=1", "augment=light", "schedule.warmup_epochs=0")
    line = error_line(outcome)
    report = tmp_path / "non_finite.json"
    assert line.startswith("error: guard.max_skips=1: 2 updates were left out because the loss or the gradient ")
    for part in (str(report), "optim.lr", "schedule.warmup_epochs", "trainer.gradient_clip_val", "check_data"):
        assert part in line
    content = json.loads(report.read_text())
    assert content["skips"] == 2
    truth = json.loads((root / "annotations" / "instances_train2017.json").read_text())
    known = {image["id"] for image in truth["images"]}
    seen = [image_id for step in content["steps"] for image_id in step["image_ids"]]
    assert len(seen) == len(set(seen)) == 2 * BATCH
    assert set(seen) <= known
    for number, step in enumerate(content["steps"]):
        assert step["step"] == number
        assert step["losses"].keys() == set(LOSSES)
        assert "nan" in step["losses"].values()
        assert step["grad_norm"] == "nan"
        assert 0 < step["lr"] <= 1e-4


@pytest.fixture
def exhausted(monkeypatch):
    """Let a method of the model run out of memory."""

    def make(method):
        def fail(*_):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of ...")

        monkeypatch.setattr(MaskRCNN, method, fail)

    return make


def test_out_of_memory_in_training_names_batch_and_keys(root, tmp_path, exhausted):
    exhausted("forward")
    line = error_line(train(root, tmp_path / "run", "augment=light"))
    start = (
        r"error: CUDA out of memory, in training, on 4 pictures padded to 64 x 64 with \d+ instances; lower data\.batch"
    )
    assert re.match(start, line)
    for key in (
        "data.batch_size",
        "trainer.accumulate_grad_batches",
        "data.max_size",
        "data.min_sizes",
        "trainer.precision=bf16-mixed",
        "model.backbone.gradient_checkpointing=true",
        "model.roi.sampler.batch_size_per_image",
    ):
        assert key in line


def test_out_of_memory_in_validation_and_evaluation(root, tmp_path, exhausted):
    folder = tmp_path / "run"
    assert train(root, folder, "trainer.max_steps=1").code == 0
    exhausted("predict")
    expected = "error: CUDA out of memory, in validation, on 3 pictures of up to 64 x 64; lower data.batch_size or"
    assert error_line(train(root, tmp_path / "next")).startswith(expected)
    checkpoint = folder / "checkpoints" / "last.ckpt"
    outcome = run("evaluate", f"ckpt={checkpoint}", f"hydra.run.dir={tmp_path / 'scored'}", "trainer.accelerator=cpu")
    assert error_line(outcome).startswith(expected)


def resume(folder, *arguments):
    return run("train", f"resume={folder / 'checkpoints' / 'last.ckpt'}", "trainer.max_epochs=2", *arguments)


def test_full_disk_leaves_the_checkpoint_before(root, tmp_path):
    assert train(root, tmp_path, "ema=none").code == 0
    last, best = (tmp_path / "checkpoints" / name for name in ("last.ckpt", "best.ckpt"))
    before = last.read_bytes()
    for path in (last, best):
        Path(f"{path}.part").symlink_to("/dev/full")
    line = error_line(resume(tmp_path))
    start = (
        rf"error: {tmp_path}/checkpoints/\w+\.ckpt: cannot be written: No space left on device, \d+\.\d GB are free; "
    )
    assert re.match(start, line)
    assert re.search(rf"; the checkpoint before is whole: go on with resume={tmp_path}/checkpoints/\w+\.ckpt$", line)
    assert last.read_bytes() == before
    for path in tmp_path.glob("checkpoints/*.part"):
        path.unlink()
    assert resume(tmp_path).code == 0


def test_full_disk_under_the_curves_is_one_line(root, tmp_path):
    assert train(root, tmp_path, "ema=none").code == 0
    kept = shutil.copy(tmp_path / "checkpoints" / "last.ckpt", tmp_path.parent / "kept.ckpt")
    (tmp_path / "metrics.csv").unlink()
    (tmp_path / "metrics.csv").symlink_to("/dev/full")
    line = error_line(resume(tmp_path))
    assert line.startswith(f"error: {tmp_path}: cannot be written: No space left on device, ")
    assert line.endswith(f"go on with resume={tmp_path}/checkpoints/last.ckpt")
    assert files(tmp_path) >= {"checkpoints/last.ckpt", "checkpoints/best.ckpt"}
    assert (tmp_path / "checkpoints" / "last.ckpt").read_bytes() == Path(kept).read_bytes()


def test_resumed_run_says_what_is_left_of_it(root, tmp_path, monkeypatch):
    monkeypatch.setattr("maskrcnn.training.summary._WARM_UP", 1)
    monkeypatch.setattr("maskrcnn.training.summary._MEASURED", 1)
    outcome = train(root, tmp_path, "data.batch_size=2", "trainer.accumulate_grad_batches=2")
    assert re.search(r"^data    12 pictures, 4 a step \(1 x 2 at a time, 2 times\)$", outcome.out, re.M)
    assert re.search(r"^steps   3 an epoch, 3 in all, 1 to go; lr 0.0001$", outcome.out, re.M)
    outcome = resume(tmp_path, "trainer.max_epochs=5", "trainer.max_steps=8", "trainer.limit_train_batches=4")
    assert outcome.code == 0, outcome.err
    assert re.search(r"^steps   2 an epoch, 8 in all, 3 to go; lr 0.0001$", outcome.out, re.M)

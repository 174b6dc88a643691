"""What a run says about itself, with a stand-in for the trainer and a clock that is told the time."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from maskrcnn.training import summary
from maskrcnn.training.module import MaskRCNNModule
from maskrcnn.training.summary import Summary, announce

CLASSES = [{"id": i, "name": f"class {i}"} for i in range(1, 4)]


@pytest.fixture
def trainer(tmp_path):
    return SimpleNamespace(
        datamodule=SimpleNamespace(datasets={"train": range(117266), "val": range(5000)}),
        default_root_dir=str(tmp_path),
        sanity_checking=False,
        is_global_zero=True,
        fast_dev_run=False,
        global_step=0,
        world_size=4,
        num_devices=4,
        num_nodes=1,
        accumulate_grad_batches=1,
        num_training_batches=7330,
        estimated_stepping_batches=175920,
        accelerator=SimpleNamespace(name=lambda: "cuda"),
        precision="bf16-mixed",
        optimizers=[SimpleNamespace(param_groups=[{"lr": 1e-7, "initial_lr": 1e-4}, {"lr": 1e-9}])],
        state=SimpleNamespace(fn="fit"),
    )


@pytest.fixture
def module(trainer):
    model = nn.Sequential(nn.Linear(1000, 2000, bias=False), nn.Linear(1000, 500, bias=False))
    model[1].weight.requires_grad_(False)
    module = MaskRCNNModule(model=model, categories=CLASSES, ground_truth=None, batch_size=4)
    module._trainer = trainer
    return module


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(summary.time, "perf_counter", lambda: now.seconds)
    return now


def steps(callback, trainer, module, clock, count, *, seconds):
    """Train on for some steps."""
    for _ in range(count):
        for batch in range(trainer.accumulate_grad_batches):
            clock.seconds += seconds / trainer.accumulate_grad_batches
            trainer.global_step += batch == trainer.accumulate_grad_batches - 1
            callback.on_train_batch_end(trainer, module, None, None, 0)


def test_announcement(trainer, module, capsys):
    announce(trainer, module, trainer.datamodule)
    assert capsys.readouterr().out == (
        "Mask R-CNN, 3 classes; 4 x cuda, bf16-mixed\n"
        "117266 training and 5000 validation pictures\n"
        f"run folder: {trainer.default_root_dir}\n"
    )


def test_block_after_the_first_steps(trainer, module, clock, capsys):
    callback = Summary()
    callback.on_train_start(trainer, module)
    steps(callback, trainer, module, clock, 2, seconds=60)  # the warm-up does not count
    steps(callback, trainer, module, clock, 4, seconds=0.5)
    callback.on_validation_start(trainer, module)
    clock.seconds += 1000
    callback.on_validation_end(trainer, module)
    steps(callback, trainer, module, clock, 5, seconds=0.5)
    assert capsys.readouterr().out == ""
    steps(callback, trainer, module, clock, 1, seconds=0.5)
    *lines, memory = capsys.readouterr().out.splitlines()
    assert lines == [
        "model   2.5 M parameters, 2.0 M of them trained; 3 classes",
        "data    117266 pictures, 16 a step (4 x 4 at a time)",
        "steps   7330 an epoch, 175920 in all, 175908 to go; lr 0.0001",
        "time    0.5 s a step, about 24 h 26 min to go (training alone)",
    ]
    assert memory.startswith("memory  ")
    assert 0.1 < float(memory.split()[1]) < 100
    assert max(map(len, [*lines, memory])) <= 80
    steps(callback, trainer, module, clock, 20, seconds=0.5)
    callback.on_train_end(trainer, module)
    assert capsys.readouterr().out == ""


def test_resumed_and_accumulating_run(trainer, module, clock, capsys):
    vars(trainer).update(
        global_step=100, accumulate_grad_batches=3, num_training_batches=10, estimated_stepping_batches=140
    )
    callback = Summary()
    callback.on_train_start(trainer, module)
    steps(callback, trainer, module, clock, 12, seconds=6)
    said = capsys.readouterr().out
    assert "48 a step (4 x 4 at a time, 3 times)\nsteps   4 an epoch, 140 in all, 28 to go; " in said
    assert "time    6 s a step, about 3 min to go" in said


@pytest.mark.parametrize("count", [1, 2, 5])
def test_short_run_says_at_its_end_what_there_is(trainer, module, clock, capsys, count):
    trainer.estimated_stepping_batches = count
    callback = Summary()
    callback.on_train_start(trainer, module)
    steps(callback, trainer, module, clock, count, seconds=4)
    assert capsys.readouterr().out == ""
    callback.on_train_end(trainer, module)
    assert f"{count} in all, 0 to go" in (said := capsys.readouterr().out)
    assert "time    4 s a step, about 0 s to go" in said


@pytest.mark.parametrize("change", [{"is_global_zero": False}, {"fast_dev_run": 1}])
def test_other_ranks_and_trials_are_silent(trainer, module, clock, capsys, change):
    vars(trainer).update(change)
    callback = Summary()
    callback.on_train_start(trainer, module)
    steps(callback, trainer, module, clock, 20, seconds=1)
    callback.on_train_end(trainer, module)
    if "is_global_zero" in change:
        announce(trainer, module, trainer.datamodule)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (59, "59 s"), (61, "1 min"), (3599, "1 h 0 min"), (90000, "25 h 0 min"), (200000, "2 days 7 h")],
)
def test_durations(seconds, said):
    assert summary._duration(seconds) == said


def test_memory_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 17.34e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80e9))
    assert summary._memory(torch.device("cuda")) == "17.3 of 80.0 GB of this GPU"

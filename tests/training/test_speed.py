"""What training costs, with a clock that is set by hand."""

from types import SimpleNamespace

import pytest
import torch

from maskrcnn.training import speed
from maskrcnn.training.speed import Speed

BATCH = (None, [{}, {}, {}])


class Run:
    """A stand-in for trainer and module that logs every second step."""

    def __init__(self, monkeypatch, device="cpu"):
        self.now = 100.0
        self.logged = []
        self.trainer = SimpleNamespace(world_size=4)
        self.module = SimpleNamespace(
            device=torch.device(device), log_dict=lambda values, **_: self.logged.append(values)
        )
        self.steps = 0
        self.speed = Speed()
        monkeypatch.setattr(speed.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(speed, "is_log_step", lambda trainer: self.steps % 2 == 0)

    def step(self, *, wait, work):
        self.now += wait
        self.speed.on_train_batch_start(self.trainer, self.module, BATCH, 0)
        self.now += work
        self.steps += 1
        self.speed.on_train_batch_end(self.trainer, self.module, None, BATCH, 0)


@pytest.fixture
def run(monkeypatch):
    run = Run(monkeypatch)
    run.speed.on_train_start(run.trainer, run.module)
    run.speed.on_train_epoch_start(run.trainer, run.module)
    return run


def test_pictures_of_all_devices_and_share_of_waiting(run):
    run.step(wait=3.0, work=1.0)  # for the first batch of an epoch, too
    run.step(wait=1.0, work=3.0)
    run.step(wait=0.0, work=1.0)
    run.step(wait=0.0, work=1.0)
    assert run.logged == [
        {"perf/images_per_second": 24 / 8, "perf/data_wait": 0.5},
        {"perf/images_per_second": 24 / 2, "perf/data_wait": 0.0},
    ]


def test_an_interval_may_span_epochs(run):
    run.step(wait=1.0, work=1.0)
    run.now += 1000  # validation and checkpoint
    run.speed.on_train_epoch_start(run.trainer, run.module)
    run.step(wait=1.0, work=1.0)
    assert run.logged == [{"perf/images_per_second": 24 / 4, "perf/data_wait": 0.5}]


def test_validation_in_an_epoch_does_not_count(run):
    run.step(wait=1.0, work=1.0)
    run.now += 1000
    run.speed.on_validation_end(run.trainer, run.module)
    run.step(wait=1.0, work=1.0)
    assert run.logged == [{"perf/images_per_second": 24 / 4, "perf/data_wait": 0.5}]


def test_writing_a_checkpoint_is_no_waiting(run):
    run.step(wait=1.0, work=1.0)
    run.speed.on_save_checkpoint(run.trainer, run.module, {})
    run.step(wait=1000.0, work=2.0)
    assert run.logged == [{"perf/images_per_second": 24 / 4, "perf/data_wait": 0.25}]


def test_peak_memory_of_the_gpu(monkeypatch):
    run = Run(monkeypatch, device="cuda:1")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3.5e9 * (device.index == 1))
    run.speed.on_train_start(run.trainer, run.module)
    for _ in range(4):
        run.step(wait=0.0, work=1.0)
    assert [values["perf/gpu_memory_gb"] for values in run.logged] == [3.5, 3.5]


def test_no_memory_on_a_cpu(run):
    for _ in range(2):
        run.step(wait=0.0, work=1.0)
    assert set(run.logged[0]) == {"perf/images_per_second", "perf/data_wait"}

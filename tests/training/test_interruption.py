"""A signal saves and stops, and the resumed run ends as if nothing had happened; all in this process."""

# ruff: noqa: F811

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector

from maskrcnn.data.datamodule import DetectionDataModule
from maskrcnn.launch import children, job
from maskrcnn.training.interruption import SIGNALS, Stop, stoppable
from tests.cli_tools import run
from tests.test_resume import STEPS, assert_same_end, load, resume, root, settings, whole  # noqa: F401 - fixtures

AVERAGED = ("ema=default", "ema.tau=2", "optim.lr=0.01", "checkpoint.every_n_steps=null")
EPOCHS = 2


class Signaller(Callback):
    """Sends this process a signal in the training batch after a step, or in the validation of an epoch."""

    def __init__(self, signum, *, step=None, validation=None, again=False):
        self.signum, self.step, self.validation, self.again = signum, step, validation, again

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            self.send()

    def on_validation_batch_start(self, trainer, *_):
        if trainer.current_epoch == self.validation:
            self.send()

    def send(self):
        self.step = self.validation = None
        os.kill(os.getpid(), self.signum)
        if self.again:
            os.kill(os.getpid(), self.signum)


@pytest.fixture
def signalled(monkeypatch, root, tmp_path):
    """Train with a callback more; the signals' handlers are afterwards those from before."""
    handlers = [signal.getsignal(signum) for signum in SIGNALS]
    begin = Trainer.__init__

    def go(callback, *arguments, options=()):
        def with_callback(self, *args, callbacks, **others):
            begin(self, *args, callbacks=[*callbacks, callback], **others)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "__init__", with_callback)
            outcome = run("train", *options, *settings(root, tmp_path), *arguments)
        assert [signal.getsignal(signum) for signum in SIGNALS] == handlers
        return outcome

    return go


@pytest.mark.parametrize(
    ("sent", "stop"),
    [
        pytest.param((signal.SIGTERM, {"step": 1}), ("this batch", 2), id="mid-epoch"),
        pytest.param((signal.SIGINT, {"step": STEPS - 1}), ("this epoch", STEPS), id="last-step-of-an-epoch"),
        pytest.param(
            (signal.SIGUSR1, {"validation": 0}), ("the first batch after this validation", STEPS + 1), id="validation"
        ),
    ],
)
def test_stopped_run_says_how_to_go_on_and_ends_the_same(sent, stop, signalled, whole, tmp_path):
    (signum, when), (end, stopped_at) = sent, stop
    outcome = signalled(Signaller(signum, **when), *AVERAGED)
    assert (outcome.code, outcome.err) == (128 + signum, "")
    assert load(tmp_path)["global_step"] == stopped_at
    first, last = [line for line in outcome.out.splitlines() if line.startswith(("SIG", "stopped"))]
    assert first == f"{signal.Signals(signum).name}: saving and stopping at the end of {end}; once more stops at once"
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    assert last == f"stopped at step {stopped_at}: go on with python train.py resume={checkpoint}"
    assert not (tmp_path / "metrics.json").exists()
    assert resume(tmp_path).code == 0
    assert_same_end(tmp_path, whole(*AVERAGED))


def test_raw_weights_and_average_are_saved_apart(signalled, whole, tmp_path):
    """The reference is the checkpoint of that step in a run that saves at every one."""
    every = ("ema=default", "ema.tau=2", "optim.lr=0.01")

    class Copy(Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == STEPS + 1:
                nonlocal expected
                expected = load(tmp_path)

    expected = None
    assert signalled(Copy(), *every).code == 0
    assert signalled(Signaller(signal.SIGTERM, validation=0), *AVERAGED).code == 143
    ours = load(tmp_path)
    assert ours["global_step"] == expected["global_step"] == STEPS + 1
    differing = 0
    for kind in ("state_dict", "current_model_state"):
        for name, value in expected[kind].items():
            assert torch.equal(ours[kind][name], value), name
    for name, average in ours["state_dict"].items():
        differing += not torch.equal(average, ours["current_model_state"][name])
    assert differing > 10


def test_signal_in_the_last_validation_lets_the_run_end(signalled, whole, tmp_path):
    outcome = signalled(Signaller(signal.SIGTERM, validation=EPOCHS - 1), *AVERAGED)
    assert outcome.code == 0
    assert "stopped" not in outcome.out
    assert_same_end(tmp_path, whole(*AVERAGED))


def test_other_processes_end_by_themselves():
    """Killed, they would leave semaphores and a warning about them."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"])
    with pytest.raises(Stop), job(Path()), stoppable():
        children.watch({1: other})
        raise Stop(signal.SIGINT, step=1, checkpoint=None)
    assert other.returncode == 0


def test_second_signal_ends_at_once(signalled, tmp_path):
    outcome = signalled(Signaller(signal.SIGINT, step=STEPS + 1, again=True), *AVERAGED)
    assert (outcome.code, outcome.err) == (130, "")
    assert "stopped at" not in outcome.out
    assert load(tmp_path)["global_step"] == STEPS  # the one from before


@pytest.mark.parametrize(("step", "stopped_at"), [(0, 1), (1, 2)])
def test_accumulated_gradients_are_not_lost(step, stopped_at, signalled, whole, tmp_path):
    chosen = (*AVERAGED, "trainer.accumulate_grad_batches=2", "data.batch_size=2")
    outcome = signalled(Signaller(signal.SIGTERM, step=step), *chosen)
    assert outcome.code == 143
    state = load(tmp_path)
    assert state["global_step"] == stopped_at
    assert state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] == 2 * stopped_at
    assert resume(tmp_path).code == 0
    assert_same_end(tmp_path, whole(*chosen))


def descendants(pid):
    """Its children and theirs: workers, the server that they come from, and what tracks their semaphores."""
    children = [
        int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()
    ]
    return [*children, *(further for child in children for further in descendants(child))]


@pytest.mark.slow
def test_workers_outlive_a_signal_to_all_processes(signalled, whole, tmp_path):
    class ToAll(Signaller):
        def send(self):
            self.step = None
            assert len(multiprocessing.active_children()) >= 2
            for pid in (*descendants(os.getpid()), os.getpid()):
                for signum in SIGNALS:
                    os.kill(pid, signum)

    chosen = (*AVERAGED, "data.num_workers=2")
    outcome = signalled(ToAll(signal.SIGTERM, step=1), *chosen)
    assert (outcome.code, outcome.err) == (143, "")
    assert load(tmp_path)["global_step"] == 2
    assert resume(tmp_path).code == 0
    assert_same_end(tmp_path, whole(*chosen))


def test_ctrl_c_before_the_training_says_nothing(root, tmp_path, monkeypatch):
    def load(self, *, train):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(DetectionDataModule, "load", load)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs behind it
    try:
        outcome = run("train", *settings(root, tmp_path))
    finally:
        signal.signal(signal.SIGINT, before)
    assert (outcome.code, outcome.out, outcome.err) == (130, "", "")


def test_what_is_switched_off_is_there():
    """Lightning's own handlers, and a broadcast at every step that waits for the device."""
    assert callable(_SignalConnector.register_signal_handlers)
    assert callable(_TrainingEpochLoop._broadcast_sigterm_tensor)


def test_nothing_to_save_into(signalled, tmp_path):
    outcome = signalled(Signaller(signal.SIGTERM, step=1), "trainer.enable_checkpointing=false")
    assert (outcome.code, outcome.err) == (143, "")
    assert "SIGTERM: stopping without a checkpoint at the end of this batch" in outcome.out
    assert "stopped at step 2; nothing was saved" in outcome.out


def test_a_sweep_stops_too(signalled, tmp_path):
    sweep = (f"hydra.sweep.dir={tmp_path}", "optim.lr=0.01,0.001")
    outcome = signalled(Signaller(signal.SIGINT, step=1), *sweep, options=["-m"])
    assert outcome.code == 130
    assert [path.name for path in sorted(tmp_path.glob("*/checkpoints/*.ckpt"))] == ["last.ckpt"]

import signal
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from pytorch_lightning import Trainer
from torch import nn

from maskrcnn.launch import children
from maskrcnn.training.distributed import DDP, Launcher, share_buffers


@pytest.mark.parametrize("name", ["auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true"])
def test_lightning_takes_our_strategy_for_several_devices(name):
    trainer = Trainer(accelerator="cpu", devices=2, strategy=name, logger=False, enable_checkpointing=False)
    assert type(trainer.strategy) is DDP
    assert type(trainer.strategy.launcher) is Launcher
    assert trainer.strategy._ddp_kwargs == ({"find_unused_parameters": name.endswith("true")} if "_" in name else {})


def test_killed_processes_are_not_missed():
    """Lightning kills them after Ctrl-C; that is no failure of theirs."""
    trainer = Trainer(accelerator="cpu", devices=2, logger=False, enable_checkpointing=False)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    children.watch({1: sleeper})
    trainer.strategy.launcher.kill(signal.SIGKILL)
    assert sleeper.returncode == -signal.SIGKILL
    children.wait()  # would end this process


def test_buffers_are_left_alone_on_one_device():
    norm = nn.BatchNorm2d(2)
    norm.running_mean.fill_(3.0)
    share_buffers(norm)
    assert torch.equal(norm.running_mean, torch.full((2,), 3.0))


def test_all_buffers_travel(monkeypatch):
    """Statistics and counters, from rank 0."""
    sent = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "broadcast", lambda tensor, src: sent.append((tensor.shape, src)))
    share_buffers(nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1)))
    assert sent == [((2,), 0), ((2,), 0), ((), 0)]

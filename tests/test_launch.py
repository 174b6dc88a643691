"""What the processes of a run agree on before it starts, and what is left of a job behind it."""

import os
import re
import subprocess
import sys
from datetime import datetime

import pytest
import torch.distributed as dist

from maskrcnn import launch
from maskrcnn.errors import UserError
from maskrcnn.launch import check_multirun, children, is_child, job, job_folder, run_stamp


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_", "MASKRCNN_")) or name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)


def as_torchrun(monkeypatch, port, **more):
    names = {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    names |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **more}
    for name, value in names.items():
        monkeypatch.setenv(name, value)


def at(monkeypatch, second):
    class Clock(datetime):
        @classmethod
        def now(cls):
            return datetime(2026, 1, 2, 3, 4, second)

    monkeypatch.setattr(launch, "datetime", Clock)


def test_run_is_named_by_its_time(monkeypatch):
    at(monkeypatch, 5)
    assert run_stamp() == "2026-01-02_03-04-05"


def test_processes_of_torchrun_share_the_first_ones_time(monkeypatch):
    agent = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    as_torchrun(monkeypatch, agent.port)
    stamps = []
    for second in (7, 8):
        at(monkeypatch, second)
        stamps.append(run_stamp())
    assert stamps == ["2026-01-02_03-04-07"] * 2
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # begins anew: what the first try wrote is left alone
    assert run_stamp() == "2026-01-02_03-04-08"


def test_torchrun_without_a_store_or_for_one_process(monkeypatch):
    as_torchrun(monkeypatch, 1, TORCHELASTIC_USE_AGENT_STORE="False")
    with pytest.raises(UserError, match=r"hydra\.run\.dir: .* name the run folder yourself"):
        run_stamp()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert re.fullmatch(r"\d{4}(-\d\d){2}_\d\d(-\d\d){2}", run_stamp())


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "0"}, "slurm-12-0"),
        ({"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "1", "SLURM_ARRAY_TASK_ID": "3"}, "slurm-12-3-1"),
        ({"SLURM_JOB_ID": "12"}, "2026-01-02_03-04-05"),  # inside a batch script, but not started by srun
        ({"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "0", "SLURM_PTY_PORT": "1"}, "2026-01-02_03-04-05"),
    ],
)
def test_tasks_of_a_slurm_step_share_its_name(variables, name, monkeypatch):
    at(monkeypatch, 5)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert run_stamp() == name


def test_sweep_is_started_once(monkeypatch):
    check_multirun(["-m", "a=1,2"])
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(UserError, match="--multirun: a sweep starts the processes of each job by itself"):
        check_multirun(["a=1,2", "--multirun"])
    check_multirun(["a=1"])
    as_torchrun(monkeypatch, 1, WORLD_SIZE="1")
    check_multirun(["-m", "a=1,2"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError):
        check_multirun(["-m", "a=1,2"])


def test_nothing_of_a_job_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "before")
    folder = tmp_path / "a run = [1]"
    before = dict(os.environ)
    with pytest.raises(KeyError), job(folder):
        assert job_folder() == folder
        assert not is_child()
        os.environ["LOCAL_RANK"] = "1"
        assert is_child()
        os.environ |= {"MASTER_PORT": "0", "WORLD_SIZE": "1"}
        store = dist.HashStore()
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        children.watch({1: sleeper})
        raise KeyError
    assert os.environ == before
    assert not dist.is_initialized()
    assert sleeper.returncode < 0


def test_child_that_fails_keeps_the_connection_until_it_is_gone(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKRCNN_JOB", f"{os.getpid()} {tmp_path}")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(KeyError), job(tmp_path):
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        raise KeyError
    assert dist.is_initialized()
    dist.destroy_process_group()


def test_job_waits_for_the_processes_that_it_started(tmp_path):
    with job(tmp_path):
        sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"])
        children.watch({1: sleeper})
    assert sleeper.returncode == 0

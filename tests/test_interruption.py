"""Signals to real processes, alone and under Slurm."""

# ruff: noqa: F811

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.test_resume import TOP, assert_same_end, load, root, rows, settings  # noqa: F401 - fixtures

TWO = (
    "trainer.devices=2",
    "trainer.max_epochs=4",
    "data.batch_size=2",
    "data.num_workers=1",
    "ema=default",
    "ema.tau=2",
    "checkpoint.every_n_steps=null",
)
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def start(*arguments):
    command = [sys.executable, "train.py", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=TOP, env=ENVIRONMENT, start_new_session=True, **pipes)


def wait_until(happened, *, seconds=240):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.1)


def first_child(process):
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    out, err = (process := start(*settings(root, folder), *TWO)).communicate(timeout=240)
    assert process.returncode == 0, out + err
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=["rank-1", "terminal"])
def test_two_processes_stop_at_one_step(signum, root, whole, tmp_path):
    """SIGTERM reaches one of them, and not the first; Ctrl-C reaches both, and the loaders' workers."""
    process = start(*settings(root, tmp_path), *TWO)
    wait_until(lambda: (tmp_path / "metrics.csv").exists() and rows(tmp_path))
    if signum == signal.SIGTERM:
        os.kill(first_child(process), signum)
    else:
        os.killpg(process.pid, signum)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + signum, "")
    step = load(tmp_path)["global_step"]
    assert out.count("SIG") == (signum == signal.SIGINT)
    go_on = out.splitlines()[-1].removeprefix(f"stopped at step {step}: go on with ")
    assert shlex.split(go_on)[2] == f"resume={tmp_path / 'checkpoints' / 'last.ckpt'}"
    assert not (tmp_path / "metrics.json").exists()
    out, err = (process := start(*shlex.split(go_on)[2:])).communicate(timeout=240)
    assert process.returncode == 0, out + err
    assert_same_end(tmp_path, whole)


def slurm(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture(scope="module")
def cluster():
    found = shutil.which("sbatch") and subprocess.run(["sinfo", "-h"], capture_output=True, check=False, timeout=60)
    if not found or found.returncode or not found.stdout:
        pytest.skip("no Slurm cluster answers here")


def requeue_by_signal(job, log):
    """What a time limit does; without the minutes that Slurm waits before it starts the job again."""
    slurm("scancel", "--signal=USR1", job)
    wait_until(lambda: f"Slurm starts job {job} again, which goes on from there" in log.read_text())
    wait_until(lambda: "PENDING" in slurm("scontrol", "show", "job", job))
    slurm("scontrol", "update", f"jobid={job}", "starttime=now")


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_signalled_slurm_job_is_requeued_and_ends_the_same(root, whole, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    command = shlex.join([sys.executable, "train.py", *settings(root, run), *TWO])
    script = f"#!/bin/bash\ncd {shlex.quote(str(TOP))}\nexport OMP_NUM_THREADS=1\nsrun {command}\n"
    (tmp_path / "job.sh").write_text(script)
    options = ("--ntasks-per-node=2", "--requeue", "--open-mode=append", f"--output={log}")
    job = slurm("sbatch", "--parsable", *options, str(tmp_path / "job.sh")).strip()
    wait_until(lambda: (run / "metrics.csv").exists() and rows(run))
    requeue_by_signal(job, log)
    wait_until(lambda: (run / "metrics.json").exists() and "score again" in log.read_text())
    assert f"Slurm job {job}, restart 1: goes on from {run / 'checkpoints' / 'last.ckpt'}" in log.read_text()
    assert log.read_text().count("run folder:") == 2
    assert_same_end(run, whole)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_sweep_of_slurm_jobs_waits_for_a_requeued_one(root, tmp_path):
    pytest.importorskip("submitit")
    launcher = ("hydra/launcher=slurm", "hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1")
    swept = ("-m", *settings(root, tmp_path), f"hydra.sweep.dir={tmp_path}", *launcher, "seed=0,1")
    process = start(*swept)
    second = tmp_path / "1"
    wait_until(lambda: (second / "metrics.csv").exists() and rows(second))
    (log,) = tmp_path.glob(".submitit/*_1/*_log.out")
    requeue_by_signal(log.parent.name, log)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    lines = (tmp_path / "sweep.csv").read_text().splitlines()
    assert sorted(line.split(",")[1] for line in lines[1:]) == ["0", "1"]
    assert all(",done," in line for line in lines[1:])
    alone = tmp_path / "alone"
    out, err = (process := start(*settings(root, alone), "seed=1")).communicate(timeout=240)
    assert process.returncode == 0, out + err
    assert_same_end(second, alone)

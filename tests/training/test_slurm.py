"""What the variables of Slurm say about a job; no Slurm is asked, but for a stand-in of scontrol."""

import os
import signal
import subprocess
from contextlib import nullcontext
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from maskrcnn.config import config_folder
from maskrcnn.errors import UserError
from maskrcnn.training.checkpoints import _TRAINING_STATE
from maskrcnn.training.interruption import Stop, stoppable
from maskrcnn.training.slurm import check_tasks, count_tasks, job_id, requeued_checkpoint
from tests.cli_tools import run


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch):
    for name in list(os.environ):
        if name.startswith("SLURM_"):
            monkeypatch.delenv(name)


@pytest.fixture
def slurm(monkeypatch):
    def set_variables(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(f"SLURM_{name}", value)

    return set_variables


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    path.parent.mkdir()
    torch.save(dict.fromkeys(_TRAINING_STATE, 0), path)
    return path


def test_only_a_restarted_job_goes_on_by_itself(slurm, checkpoint, tmp_path, capsys):
    assert requeued_checkpoint(tmp_path) is None
    slurm(JOB_ID="7", RESTART_COUNT="0")
    assert requeued_checkpoint(tmp_path) is None
    slurm(RESTART_COUNT="2")
    assert requeued_checkpoint(tmp_path / "fresh") is None
    assert capsys.readouterr().out == ""
    assert requeued_checkpoint(tmp_path) == str(checkpoint)
    assert capsys.readouterr().out == f"Slurm job 7, restart 2: goes on from {checkpoint}\n"


def test_damaged_checkpoint_is_not_gone_on_from(slurm, checkpoint, tmp_path):
    slurm(JOB_ID="7", RESTART_COUNT="1")
    best = checkpoint.with_name("best.ckpt")
    checkpoint.rename(best)
    checkpoint.write_bytes(best.read_bytes()[:-100])
    assert requeued_checkpoint(tmp_path) == str(best)


def test_job_of_an_array_has_its_own_name(slurm):
    assert job_id() is None
    slurm(JOB_ID="8")
    assert job_id() == "8"
    slurm(ARRAY_JOB_ID="8", ARRAY_TASK_ID="3")
    assert job_id() == "8_3"


@pytest.fixture
def scontrol(slurm, monkeypatch):
    """In a job; stands for Slurm's command, which keeps what it was asked and gives the answer set here."""
    asked = SimpleNamespace(commands=[], answer=SimpleNamespace(returncode=0, stderr=""))

    def answer(command, **_):
        asked.commands.append(command)
        return asked.answer

    slurm(JOB_ID="8")
    monkeypatch.setattr(subprocess, "run", answer)
    return asked


GO_ON = "go on with python train.py 'resume=a run/last.ckpt'\n"
STARTS_AGAIN = "stopped at step 5: Slurm starts job 8 again, which goes on from there\n"


def stop(signum):
    with pytest.raises(SystemExit) as end, stoppable():
        raise Stop(signum, step=5, checkpoint="a run/last.ckpt")
    assert end.value.code == 128 + signum


def test_sigusr1_requeues_the_job(scontrol, capsys):
    stop(signal.SIGUSR1)
    assert scontrol.commands == [["scontrol", "requeue", "8"]]
    assert capsys.readouterr() == (STARTS_AGAIN, "")


def test_other_signals_do_not(scontrol, capsys):
    stop(signal.SIGTERM)
    assert scontrol.commands == []
    assert capsys.readouterr() == (f"stopped at step 5: {GO_ON}", "")


def test_slurm_that_refuses_is_quoted(scontrol, capsys):
    scontrol.answer = SimpleNamespace(returncode=1, stderr="Job cannot be\nrequeued\n")
    stop(signal.SIGUSR1)
    assert capsys.readouterr() == (STARTS_AGAIN, f"error: scontrol requeue 8: Job cannot be requeued; {GO_ON}")


def test_tasks_are_counted_by_node(slurm, monkeypatch):
    count_tasks()
    assert "SLURM_NTASKS_PER_NODE" not in os.environ
    slurm(NTASKS="8", NNODES="2")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "0")
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    count_tasks()
    assert os.environ["SLURM_NTASKS_PER_NODE"] == "4"


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({}, None),
        ({"NTASKS": "8", "NNODES": "2", "STEP_ID": "0"}, None),
        ({"NTASKS": "4", "NNODES": "1", "JOB_NAME": "interactive"}, None),
        ({"NTASKS": "8", "NNODES": "2"}, "the 8 tasks have to be started by srun"),
        ({"NTASKS": "4", "NNODES": "1", "STEP_ID": "0"}, "4 tasks on 1 .*: set trainer.devices=4 trainer.num_nodes=1"),
        ({"NTASKS": "2", "NNODES": "2", "STEP_ID": "0"}, "2 tasks on 2 .*: set trainer.devices=1 trainer.num_nodes=2"),
    ],
)
def test_tasks_are_the_devices(variables, problem, slurm):
    slurm(**variables)
    trainer = SimpleNamespace(num_devices=4, num_nodes=2)
    with nullcontext() if problem is None else pytest.raises(UserError, match=problem):
        check_tasks(trainer)


def test_launcher_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("maskrcnn.sweep.find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    outcome = run("train", "-m", "hydra/launcher=slurm", "seed=0,1")
    needed = "submitit is not installed; pip install 'maskrcnn-lightning[slurm]'"
    assert (outcome.code, outcome.err) == (1, f"error: hydra/launcher=slurm: {needed}\n")


@pytest.mark.skipif(find_spec("submitit") is None, reason="hydra-submitit-launcher is not installed")
def test_launcher_asks_for_our_signal(tmp_path):
    """What sbatch gets from the preset."""
    from submitit.slurm.slurm import _make_sbatch_string

    choices = ["hydra/launcher=slurm", "hydra.launcher.tasks_per_node=4", "hydra.launcher.signal_delay_s=300"]
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        cfg = compose("train", choices, return_hydra_config=True)
    launcher = OmegaConf.to_container(cfg.hydra.launcher, resolve=False)
    assert launcher["tasks_per_node"] == 4
    assert cfg.hydra.launcher.gpus_per_node == 4
    assert cfg.hydra.launcher.nodes == 1
    extra = OmegaConf.to_container(cfg.hydra.launcher.additional_parameters, resolve=True)
    script = _make_sbatch_string("train", tmp_path, signal_delay_s=300, additional_parameters=extra).splitlines()
    assert "#SBATCH --signal=USR1@300" in script
    assert "#SBATCH --requeue" in script

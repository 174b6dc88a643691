"""Slurm: the tasks of a job step are the devices of a run; a job that is to go on is put back into the queue."""

import os
import subprocess
from pathlib import Path

import torch.distributed as dist
from lightning_fabric.plugins.environments import SLURMEnvironment
from pytorch_lightning import Trainer

from maskrcnn.errors import UserError
from maskrcnn.launch import own_rank
from maskrcnn.training.checkpoints import newest_checkpoint


def count_tasks() -> None:
    """Tell Lightning how many tasks a node has, where `srun -n` gave their sum; before a Trainer is built."""
    tasks = os.environ.get("SLURM_NTASKS")
    if tasks is not None and "SLURM_NTASKS_PER_NODE" not in os.environ:
        os.environ["SLURM_NTASKS_PER_NODE"] = str(int(tasks) // int(os.environ.get("SLURM_NNODES", "1")))


def check_tasks(trainer: Trainer) -> None:
    """Hold the tasks that Slurm runs against the devices of the Trainer.

    Raises:
        UserError: They differ, or the tasks were not started by srun.
    """
    if dist.is_torchelastic_launched() or not SLURMEnvironment.detect():
        return
    tasks, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ.get("SLURM_NNODES", "1"))
    devices = trainer.num_devices * trainer.num_nodes
    if (tasks, nodes) != (devices, trainer.num_nodes):
        raise UserError(
            f"trainer.devices={trainer.num_devices}, trainer.num_nodes={trainer.num_nodes}: Slurm runs {tasks} tasks "
            f"on {nodes} node(s), and a task trains on one device: set trainer.devices={tasks // nodes} "
            f"trainer.num_nodes={nodes}, or other --ntasks-per-node and --nodes"
        )
    if tasks > 1 and "SLURM_STEP_ID" not in os.environ:
        raise UserError(f"trainer.devices={trainer.num_devices}: the {tasks} tasks have to be started by srun")


def requeued_checkpoint(run: Path) -> str | None:
    """Where a job that Slurm has started again goes on; None for any other, or if nothing was saved.

    Args:
        run: The run folder.
    """
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    checkpoint = newest_checkpoint(run / "checkpoints") if restarts else None
    if checkpoint is None:
        return None
    if own_rank() == 0:
        print(f"Slurm job {job_id()}, restart {restarts}: goes on from {checkpoint}", flush=True)
    return str(checkpoint)


def job_id() -> str | None:
    """The running job; the bare number of one task of an array may stand for all of them."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def requeue(job: str) -> None:
    """Put a job back into the queue; Slurm ends its processes at once.

    Raises:
        UserError: Slurm refuses.
    """
    command = ["scontrol", "requeue", job]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise UserError(f"{' '.join(command)}: {' '.join(answer.stderr.split())}")

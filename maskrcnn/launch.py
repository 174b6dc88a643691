"""The processes of one run: the folder that they share, what they leave behind, and how they end together."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from maskrcnn.errors import UserError

POLL = 0.5  # seconds between two looks at the other processes
GRACE = 2.0  # seconds in which a run may end by itself after one of its processes has failed
PATIENCE = 10.0  # seconds in which it turns out whether an error only follows from another process's end

# Set while a job runs: its process and its folder, for the processes that it starts for its further devices.
_JOB = "MASKRCNN_JOB"


def own_rank() -> int:
    """The rank of this process; 0 before there are others."""
    return rank_zero_only.rank  # type: ignore[attr-defined]


def run_stamp() -> str:
    """The name of a new run folder, the same in all processes of the run: the time, or under Slurm the job and step.

    Raises:
        UserError: The processes cannot agree on one.
    """
    now = f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    get = os.environ.get
    if "SLURM_STEP_ID" in os.environ and "SLURM_PTY_PORT" not in os.environ:  # not in a shell that srun --pty opened
        parts = ("slurm", get("SLURM_JOB_ID"), get("SLURM_ARRAY_TASK_ID"), get("SLURM_STEP_ID"))
        return "-".join(part for part in parts if part)
    if not dist.is_torchelastic_launched() or _started_together() == 1:
        return now
    if get("TORCHELASTIC_USE_AGENT_STORE") != str(True):
        raise UserError("hydra.run.dir: this torchrun shares no store for a time stamp; name the run folder yourself")
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=timedelta(minutes=5))
    return store.compare_set(f"run_stamp/{get('TORCHELASTIC_RESTART_COUNT')}", "", now).decode()  # the first one's


def check_multirun(arguments: Sequence[str]) -> None:
    """Look whether a sweep may start.

    Raises:
        UserError: It was started several times at once.
    """
    if {"-m", "--multirun"} & set(arguments) and _started_together() > 1:
        raise UserError(
            "--multirun: a sweep starts the processes of each job by itself; leave torchrun or srun out of the command"
        )


@contextmanager
def job(folder: Path) -> Iterator[None]:
    """Run a job: the processes that it starts find its folder; in the end they and its environment are gone.

    Args:
        folder: Of the run.
    """
    before, child, failed = dict(os.environ), is_child(), False
    os.environ[_JOB] = f"{os.getpid()} {folder}"
    try:
        yield
        children.wait()
    except Exception:
        failed = True
        raise
    finally:
        children.kill()
        # The others lose the connection to a child that failed when it is gone: then it can be seen why.
        if dist.is_initialized() and not (child and failed):
            dist.destroy_process_group()
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def job_folder() -> Path | None:
    """Folder of the job that runs in this process, or that started it."""
    return Path(os.environ[_JOB].partition(" ")[2]) if _JOB in os.environ else None


def is_child() -> bool:
    """Whether a job started this process for a further device."""
    return _JOB in os.environ and os.environ.get("LOCAL_RANK", "0") != "0"


def watch_parent() -> None:
    """End this process, started by a job, when the one that started it ends."""
    parent = int(os.environ[_JOB].partition(" ")[0])

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL)
        if os.environ["LOCAL_RANK"] == "1":  # one line is enough
            _stop("rank 0 has died")
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Children:
    """The processes that a job has started: if one of them fails, all end."""

    def __init__(self) -> None:
        self._processes: dict[int, subprocess.Popen] = {}
        self._lock = threading.Lock()

    def watch(self, processes: Mapping[int, subprocess.Popen]) -> None:
        """Begin to watch them, by rank."""
        self._processes = dict(processes)
        threading.Thread(target=self._watch, daemon=True).start()

    def wait(self) -> None:
        """Wait until all have ended."""
        for process in self._processes.values():
            process.wait()
        self._check()

    def kill(self) -> None:
        """End them; nothing is said about it."""
        with self._lock:
            for process in self._processes.values():
                process.kill()
                process.wait()
            self._processes = {}

    def _watch(self) -> None:
        while self._processes:
            if any(process.poll() for process in list(self._processes.values())):
                time.sleep(GRACE)
                self._check()
            time.sleep(POLL)

    def _check(self) -> None:
        with self._lock:
            failed = [(rank, process.poll()) for rank, process in self._processes.items() if process.poll()]
            if failed:
                for process in self._processes.values():
                    process.kill()
                rank, code = failed[0]
                name = f" ({signal.Signals(-code).name})" if code and code < 0 else ""
                _stop(f"rank {rank} ended with exit code {code}{name}")


children = Children()


def _started_together() -> int:
    """How many processes torchrun or srun has started; 1 without them."""
    if dist.is_torchelastic_launched():
        return int(os.environ["WORLD_SIZE"])
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))


def _stop(problem: str) -> NoReturn:
    """End this process at once: it may hang in a collective operation, from which nothing else frees it."""
    folder = job_folder()
    last = folder / "checkpoints" / "last.ckpt" if folder else None
    hint = f"; go on with resume={last}" if last and last.is_file() else ""
    print(f"error: {problem}; the run is stopped{hint}", file=sys.__stderr__, flush=True)
    os._exit(1)

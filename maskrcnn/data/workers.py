"""Processes that load pictures: where they come from, which signals they see, and when they end."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from threading import Thread
from types import FrameType
from typing import Any

import cv2

# A terminal, Slurm and torchrun signal all processes; the one that trains still needs batches to end in order.
_LEFT_ALONE = {one for one in signal.Signals if one.name in ("SIGINT", "SIGTERM", "SIGUSR1")}

# The tracker tidies up behind a process that was killed; it need not say so beside the line that names the cause.
_UNSAID = "ignore::UserWarning:multiprocessing.resource_tracker"


def worker_context() -> BaseContext | None:
    """Start a server that does nothing but fork workers, unless it runs; None where the system has no such thing.

    A fork of the training process itself can hang: it has the threads of gloo, NCCL and CUDA, whose locks are
    copied as they stand.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return None
    # What the server has imported, its workers need not.
    forkserver.set_forkserver_preload(sorted(name for name in sys.modules if name.startswith("maskrcnn.")))
    for start in (resource_tracker.ensure_running, forkserver.ensure_running):
        with _inherited():  # one after the other: the first unblocks some of the signals
            start()
    return multiprocessing.get_context("forkserver")


@contextmanager
def _inherited() -> Iterator[None]:
    """Around the start of a process: what it, and the workers that it forks, do not see and do not say."""
    filters = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (filters, _UNSAID)))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_ALONE)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        del os.environ["PYTHONWARNINGS"]
        if filters is not None:
            os.environ["PYTHONWARNINGS"] = filters


def start_worker(_: int) -> None:
    """Set up a worker process, whose number in its loader does not matter."""
    cv2.setNumThreads(0)  # the processes share the cores already
    signal.signal(signal.SIGTERM, _ignore_once)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    parent: Any = multiprocessing.parent_process()  # torch watches the server in its place
    Thread(target=lambda: wait([parent.sentinel]) and os._exit(1), daemon=True).start()


def _ignore_once(signum: int, frame: FrameType | None) -> None:
    signal.signal(signum, signal.SIG_DFL)

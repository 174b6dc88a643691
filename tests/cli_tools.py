"""Runs a command in this process, as if it had been typed."""

import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

# A model and a run small enough for a test, for pictures of 64 pixels.
TINY_MODEL = (
    "model/backbone=mobilenet_v3_small",
    "model.backbone.weights=null",
    "model.input.min_size=64",
    "model.input.max_size=64",
    "model.neck.out_channels=16",
    "model.anchors.sizes=[8,16,24,32,48]",
    "model.rpn.pre_nms_top_n_train=100",
    "model.rpn.pre_nms_top_n_test=100",
    "model.rpn.post_nms_top_n_train=64",
    "model.rpn.post_nms_top_n_test=64",
    "model.rpn.sampler.batch_size_per_image=64",
    "model.roi.sampler.batch_size_per_image=32",
    "model.roi_align.canonical_size=56",
    "model.box_head.hidden_dim=32",
    "model.mask_head.num_convs=1",
    "model.mask_head.channels=16",
    "model.score_thresh=0.0",
)
TINY_DATA = ("data.batch_size=4", "data.min_sizes=[64]", "data.max_size=64", "data.num_workers=0")
TINY = (
    *TINY_MODEL,
    *TINY_DATA,
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.precision=32-true",
    "trainer.num_sanity_val_steps=0",
    "callbacks.pictures.count=0",
)
TRIAL = (*TINY, "trainer.fast_dev_run=true")


@dataclass(frozen=True)
class Outcome:
    """What came of a command: its exit code and what it printed."""

    code: int
    out: str
    err: str


def run(command: str, *arguments: str) -> Outcome:
    """Run `command.py arguments...`; whatever it sets up in this process is undone."""
    main: Callable[[], Any] = import_module(command).main
    out, err = io.StringIO(), io.StringIO()
    code = 0
    typed = mock.patch.object(sys, "argv", [f"{command}.py", *arguments])
    # Hydra composes a config once more just to ask it for a mode, which none of ours has; that takes a fifth of a run.
    no_mode = mock.patch.object(Hydra, "get_mode", return_value=None)
    with _undone(), typed, no_mode, redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Outcome(code, out.getvalue(), err.getvalue())


@contextmanager
def _undone() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are so small that threads only wait for each other
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with mock.patch.dict(os.environ), warnings.catch_warnings():
        try:
            yield
        finally:
            for handler in set(root.handlers) - set(handlers):
                handler.close()
            root.handlers[:], root.level = handlers, level
            _forget_checkpoints(ConfigStore.instance().repo)
            GlobalHydra.instance().clear()
            torch.set_num_threads(threads)


def _forget_checkpoints(repo: dict[str, Any]) -> None:
    repo.pop("checkpoint.yaml", None)
    for node in repo.values():
        if isinstance(node, dict):
            _forget_checkpoints(node)


def files(folder: Path) -> set[str]:
    """Relative paths of all files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

"""The Trainer of a config."""

import logging
import warnings
from collections.abc import Mapping
from typing import Any

from pytorch_lightning import Trainer

from maskrcnn.building import build
from maskrcnn.training.checkpoints import AtomicCheckpointIO
from maskrcnn.training.memory import OutOfMemory
from maskrcnn.training.slurm import check_tasks, count_tasks

# Groups that hold a callback, or with the option `none` nothing.
_OPTIONAL = ("ema", "guard", "early_stopping")

# Of libraries about each other, or about what is meant to be so.
_NO_NEWS = (
    "Grad strides do not match",  # of 1 x 1 convolutions, where any will do
    ".*isinstance\\(treespec, LeafSpec\\)",
    "Checkpoint directory .* exists and is not empty",  # a resumed run's
    ".*self.log\\('val/.*sync_dist=True",  # equal on all ranks already
    "The `srun` command is available",  # not every run needs it
)


def build_trainer(config: Mapping[str, Any]) -> Trainer:
    """The Trainer with its callbacks, checkpoints and loggers.

    Args:
        config: Plain: `trainer`, `callbacks`, `logger` and `trust`; in training also `checkpoint` and the optional
            callbacks.

    Raises:
        UserError: One of them refuses an argument.
    """
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)  # chatter, advertisements
    for message in _NO_NEWS:
        warnings.filterwarnings("ignore", message=message)
    settings, trust = config["trainer"], config["trust"]
    callbacks = build(config["callbacks"], key="callbacks", trust=trust)
    if not settings["enable_progress_bar"]:
        callbacks.pop("progress_bar", None)  # Lightning refuses a bar that it is told to leave out
    for group in _OPTIONAL:
        if config.get(group):
            callbacks[group] = build(config[group], key=group, trust=trust)
    if "checkpoint" in config and settings["enable_checkpointing"]:
        callbacks |= build(config["checkpoint"], key="checkpoint", trust=trust)
        callbacks.pop("every_n_steps", None)  # a number that the savers refer to
    loggers = build(config["logger"], key="logger", trust=trust)
    count_tasks()
    trainer: Trainer = build(
        settings,
        key="trainer",
        callbacks=[*callbacks.values(), OutOfMemory()],
        logger=list(loggers.values()),
        plugins=[AtomicCheckpointIO()],
    )
    check_tasks(trainer)
    if settings["profiler"]:
        trainer.profiler.dirpath, trainer.profiler.filename = trainer.default_root_dir, "profile"  # type: ignore[attr-defined]
    return trainer

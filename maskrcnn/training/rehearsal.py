"""Mistakes in what is trained, and how, come to light before the data is read, which may take minutes."""

from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

import torch

from maskrcnn.building import build

_STEPS_PER_EPOCH = 1000  # as good as any: what is wrong with a schedule is so for all
_EPOCHS = 100


def rehearse(config: Mapping[str, Any]) -> None:
    """Build model, optimizer and schedule without memory for any tensor, and let go of them.

    Args:
        config: Plain: `model`, `optim`, `schedule` and `trust`. Code of the user's own is spared, since it may need
            tensors that hold something.

    Raises:
        UserError: One of them refuses an argument.
    """
    if config["trust"]:
        return
    model = dict(config["model"]) | {"num_classes": 1}
    model["backbone"] = dict(model["backbone"]) | {"weights": None}
    with redirect_stdout(None), torch.device("meta"):  # what they say is said again when it counts
        optimizer = build(config["optim"], key="optim")(build(model, key="model"), batch_size=1, fused=False)
        schedule = build(config["schedule"], key="schedule")
        schedule(optimizer, total_steps=_EPOCHS * _STEPS_PER_EPOCH, steps_per_epoch=_STEPS_PER_EPOCH)

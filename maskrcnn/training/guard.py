"""Leaves out updates whose loss or gradient is not finite, and tells which pictures they came from."""

import json
import math
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor
from torch.optim import SGD, Optimizer

from maskrcnn.errors import UserError

REPORT = "non_finite.json"
_KEPT = 1000  # the newest so many left-out steps are in the report
_NAMED = 8  # image ids in a line


@dataclass
class _Step:
    """An optimizer step; tensors stay on the device until the host reads.

    Attributes:
        number: As the curves count, from 0.
        lr: Of the first parameter group.
        outcome: float [2], 1 where the update is left out, and the norm of the gradient.
        losses: Of each of its batches, by name.
        image_ids: Of each of its pictures, and of what is mixed into it.
    """

    number: int
    lr: float
    outcome: Tensor
    losses: list[dict[str, Tensor]] = field(default_factory=list)
    image_ids: list[Tensor] = field(default_factory=list)


class Guard(Callback):
    """Leaves out an update if its loss or gradient is not finite; ends the run after too many.

    Parameters, optimizer state and the buffers of the model (BatchNorm statistics) stay as they were before the
    step. This happens on the device: the host reads once in `trainer.log_every_n_steps` steps what became of them,
    warns, and writes `non_finite.json` into the run folder. An optimizer that is not fused cannot leave out an
    update by itself: there the host looks at each step.

    With `trainer.precision=16-mixed` the scaler leaves out gradients that overflow, which is how it finds its
    scale: as long as the loss is finite, these do not count.

    Logs `train/grad_norm`, before clipping.

    Args:
        max_skips: Updates that may be left out in a run, those before a resume included; null for any number.
    """

    def __init__(self, *, max_skips: int | None = 20) -> None:
        if max_skips is not None and max_skips < 0:
            raise ValueError(f"max_skips must be at least 0 or null, got {max_skips}")
        self.max_skips = max_skips
        self.skips = 0
        self._report: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        self._unread: list[_Step] = []
        self._step: _Step | None = None
        self._differentiated: list[Tensor] = []
        self._batches: list[tuple[dict[str, Tensor], list[Tensor]]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See how the optimizer leaves out an update."""
        self._file = Path(trainer.default_root_dir) / REPORT
        (optimizer,) = trainer.optimizers
        self._fused = all(group.get("fused") for group in optimizer.param_groups)
        if self._fused and isinstance(optimizer, SGD):
            _start_momentum(optimizer)
        self._buffers = _by_type(pl_module.buffers())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the buffers as they are before a step."""
        if not self._batches:
            self._before = [torch.cat(buffers) for buffers in self._buffers]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Note the loss of one batch."""
        self._differentiated.append(loss.detach())

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Mask the update, unless everything is finite on all ranks."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        pl_module.log("train/grad_norm", norm, batch_size=1)
        finite = torch.stack(self._differentiated).isfinite().all()
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            finite &= norm.isfinite()
        skip = finite.logical_not().float()
        if dist.is_initialized():
            dist.all_reduce(skip, op=dist.ReduceOp.MAX)  # the ranks share their gradients, but not their losses
        if self._fused:
            optimizer.found_inf = skip  # type: ignore[attr-defined]
        elif skip:
            optimizer.zero_grad(set_to_none=True)  # what has no gradient is not updated
        self._restore_buffers(skip.bool())
        self._differentiated = []
        self._step = _Step(trainer.global_step, optimizer.param_groups[0]["lr"], torch.stack((skip, norm)))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the batch; now and then read what became of the steps."""
        losses = {name: value for name, value in outputs.items() if name != "loss"}
        self._batches.append((losses, [target["image_ids"] for target in batch[1]]))
        if self._step is None:
            return  # gradients are accumulated
        self._step.losses = [losses for losses, _ in self._batches]
        self._step.image_ids = [ids for _, image_ids in self._batches for ids in image_ids]
        self._unread.append(self._step)
        self._step, self._batches = None, []
        if len(self._unread) >= (trainer.log_every_n_steps or 50):  # type: ignore[attr-defined]
            self._check()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read what is left."""
        self._check()

    def state_dict(self) -> dict[str, Any]:
        """The updates that were left out so far."""
        self._read()
        return {"skips": self.skips, "steps": list(self._report)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.skips = state_dict["skips"]
        self._report.extend(state_dict["steps"])

    def _restore_buffers(self, skip: Tensor) -> None:
        """Put the buffers back to where they were before the step, if it is left out."""
        for buffers, before in zip(self._buffers, self._before, strict=True):
            kept = torch.where(skip, before, torch.cat(buffers))
            torch._foreach_copy_(buffers, kept.split([buffer.numel() for buffer in buffers]))

    def _check(self) -> None:
        """Read, and end the run if too many updates were left out."""
        self._read()
        if self.max_skips is not None and self.skips > self.max_skips:
            raise UserError(
                f"guard.max_skips={self.max_skips}: {self.skips} updates were left out because the loss or the "
                f"gradient was not finite, the last at step {self._report[-1]['step']}; {self._file} has their image "
                "ids, losses and learning rates. Try a lower optim.lr, schedule.warmup_epochs=1, "
                "trainer.gradient_clip_val=10 or trainer.precision=32-true, and look at the data with "
                "python -m maskrcnn.check_data"
            )

    def _read(self) -> None:
        """What became of the steps since the last time, in one transfer; more only if updates were left out."""
        steps, self._unread = self._unread, []
        if not steps:
            return
        outcomes = torch.stack([step.outcome for step in steps]).tolist()
        found = [_described(step, norm) for step, (skip, norm) in zip(steps, outcomes, strict=True) if skip]
        if found:  # then on all ranks
            found = [_merged(parts) for parts in zip(*_of_all_ranks(found), strict=True)]
            self.skips += len(found)
            self._report.extend(found)
            _warn(found)
            _write(self._file, {"skips": self.skips, "steps": list(self._report)})


def _by_type(buffers: Iterable[Tensor]) -> list[list[Tensor]]:
    """Buffers of each type as flat views."""
    groups = defaultdict(list)
    for buffer in buffers:
        groups[buffer.dtype].append(buffer.view(-1))
    return list(groups.values())


def _start_momentum(optimizer: SGD) -> None:
    """Momentum that starts at 0: torch's fused kernel would leave it uninitialised if the first step is masked."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if group["momentum"] and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _described(step: _Step, norm: float) -> dict[str, Any]:
    """A step whose update was left out, on the host."""
    losses = {name: torch.stack([batch[name] for batch in step.losses]).mean().item() for name in step.losses[0]}
    return {
        "step": step.number,
        "image_ids": torch.cat(step.image_ids).tolist(),
        "losses": losses,
        "lr": step.lr,
        "grad_norm": norm,
    }


def _of_all_ranks(found: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    gathered: list[Any] = [found]
    if dist.is_initialized():
        gathered *= dist.get_world_size()
        dist.all_gather_object(gathered, found)
    return gathered


def _merged(parts: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """One step from what each rank knows of it: all pictures, the mean of each loss."""
    return parts[0] | {
        "image_ids": list(dict.fromkeys(image_id for part in parts for image_id in part["image_ids"])),
        "losses": {name: sum(part["losses"][name] for part in parts) / len(parts) for name in parts[0]["losses"]},
    }


@rank_zero_only
def _warn(found: list[dict[str, Any]]) -> None:
    first, ids = found[0], found[0]["image_ids"]
    culprit = "gradient" if all(map(math.isfinite, first["losses"].values())) else "loss"
    shown = ", ".join(map(str, ids[:_NAMED])) + (", ..." if len(ids) > _NAMED else "")
    more = f"; so were {len(found) - 1} more up to step {found[-1]['step']}" if len(found) > 1 else ""
    # Printed: the progress bar makes room for that, but not for a log.
    print(f"step {first['step']}: {culprit} is not finite, update left out (image ids {shown}){more}", flush=True)


@rank_zero_only
def _write(path: Path, report: dict[str, Any]) -> None:
    def plain(value: Any) -> Any:  # JSON knows neither nan nor inf
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    path.write_text(json.dumps(plain(report), indent=2), encoding="utf-8")

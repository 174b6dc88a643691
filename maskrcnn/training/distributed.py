"""Training on several devices: Lightning's DDP, so that all ranks stay one model and end together."""

import signal
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DDPStrategy, StrategyRegistry
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from torch import OutOfMemoryError, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from maskrcnn.errors import UserError
from maskrcnn.launch import PATIENCE, children, job_folder


class Launcher(_SubprocessScriptLauncher):
    """Starts a process for each further device, and watches over them."""

    def launch(self, function: Callable, *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        """Start them, unless they were started from outside, and call the function.

        Raises:
            UserError: They would not find the config of the run.
        """
        if not self.cluster_environment.creates_processes_externally:
            folder = job_folder()
            if folder and not (folder / ".hydra" / "config.yaml").is_file():
                raise UserError("hydra.output_subdir: must be .hydra on several devices; leave this key out")
            self._call_children_scripts()  # from here on the environment says "from outside", so super() starts none
            first = self.cluster_environment.node_rank() * self.num_processes + 1
            children.watch(dict(enumerate(self.procs, start=first)))
        return super().launch(function, *args, trainer=trainer, **kwargs)

    def kill(self, signum: Any) -> None:
        """Send them a signal; those that are killed are not watched any more."""
        if signum == signal.SIGKILL:
            children.kill()
        else:
            super().kill(signum)


class DDP(DDPStrategy):
    """Lightning's DDP, but for three things.

    Buffers travel before a validation (see `share_buffers`) and not with every forward pass: the ranks validate
    different numbers of batches. On CPUs, for which torch has no SyncBatchNorm, it is left out. A run whose
    other ranks have died ends with a line that says so.
    """

    def setup(self, trainer: Trainer) -> None:
        """Wrap the model."""
        if self._layer_sync and self.root_device.type == "cpu":
            self._layer_sync = None
            if self.is_global_zero and any(isinstance(module, _BatchNorm) for module in self.model.modules()):  # type: ignore[union-attr]
                print("trainer.sync_batchnorm: ignored on CPUs; each process normalises its own batch", flush=True)
        super().setup(trainer)

    def on_exception(self, exception: BaseException) -> None:
        """Wait a moment if the error may only follow from the end of another rank, which then ends this one."""
        super().on_exception(exception)
        own = isinstance(exception, OutOfMemoryError) or not isinstance(exception, RuntimeError)
        if not own and self.world_size > 1:
            time.sleep(PATIENCE)

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        wrapped = super()._setup_model(model)
        wrapped.broadcast_buffers = False
        return wrapped


# The names that Lightning chooses by itself for several devices, and that a user may type.
StrategyRegistry.register("ddp", DDP, override=True)
StrategyRegistry.register("ddp_find_unused_parameters_false", DDP, override=True, find_unused_parameters=False)
StrategyRegistry.register("ddp_find_unused_parameters_true", DDP, override=True, find_unused_parameters=True)


def share_buffers(module: nn.Module) -> None:
    """Give all ranks the buffers of rank 0: without SyncBatchNorm, each has statistics of its own batches."""
    if dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)

"""A callback that notes what a run's gradients and last detections are, for tests that train through the command."""

import json
from pathlib import Path

from pytorch_lightning import Callback

FILE = "watched.json"


class Watch(Callback):
    """Writes FILE into the run folder.

    It has the number of optimizer "steps"; the names of parameters without a gradient ("missing"), with one that is
    not finite ("infinite"), and with none but zeros ("silent") in all steps; the "results" of the last validation.
    """

    def __init__(self):
        self.steps = 0
        self.missing, self.infinite, self.reached, self.trained = set(), set(), set(), set()

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.steps += 1
        for name, parameter in pl_module.named_parameters():
            if not parameter.requires_grad:
                continue
            self.trained.add(name)
            gradient = parameter.grad
            if gradient is None:
                self.missing.add(name)
            elif not gradient.isfinite().all():
                self.infinite.add(name)
            elif gradient.any():
                self.reached.add(name)

    def on_validation_end(self, trainer, pl_module):
        found = {
            "steps": self.steps,
            "missing": sorted(self.missing),
            "infinite": sorted(self.infinite),
            "silent": sorted(self.trained - self.reached),
            "results": pl_module.metric.results,
        }
        Path(trainer.default_root_dir, FILE).write_text(json.dumps(found))

"""This package's side of suite=speed."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

import maskrcnn
from maskrcnn.benchmark import scoring
from maskrcnn.benchmark.agreement import Found, arrays
from maskrcnn.benchmark.epochs import our_loader, to_us
from maskrcnn.benchmark.networks import our_batch, our_model, settle
from maskrcnn.benchmark.speed_side import ENLARGE, FEATURES, MASKS, ROI, RPN, Job, Side
from maskrcnn.evaluation.results import to_results
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.models.weights import load_weights, read_weights
from maskrcnn.training.optimizers import sgd


class OurSide(Side):
    """This package's network of a config node `model`."""

    root = Path(maskrcnn.__file__).parent
    module: MaskRCNN

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.module = model = our_model(job.node, job.work, trust=job.settings["trust"])
        if job.weights is not None:
            load_weights(model, read_weights(job.weights), key="weights")
        self.optimizer = sgd(model, batch_size=job.work.batch_size, fused=True, lr=0.0)
        self.laps.watch(model.backbone, **{FEATURES: model.neck, RPN: model.rpn})

    @cached_property
    def batch(self) -> tuple[Any, Any]:
        """Pictures and targets with cropped masks."""
        return our_batch(self.module, self.work)

    def settle(self) -> None:
        """Settle the heads."""
        settle(self.module, enlarge=ENLARGE)

    def detections(self) -> Found:
        """Those of `predict`."""
        return arrays(self.module.eval().predict(self.agreeing()))

    def pictures(self, count: int) -> list[Tensor]:
        """uint8, as they come from their files."""
        return self.work.pictures(count)

    def predict(self, pictures: list[Tensor]) -> list[Any]:
        """Masks are run-length encoded at once, as in an evaluation."""
        found = self.module.predict(pictures)
        self.laps.mark(ROI)
        categories: Sequence[int] = range(1, self.work.num_classes + 1)
        results = [
            to_results(each, image_id=i, size=self.work.size, category_ids=categories, paste=self.module.paste)
            for i, each in enumerate(found)
        ]
        self.laps.mark(MASKS)
        return results

    @cached_property
    def loader(self) -> tuple[Any, str | None]:
        """The data module's, with large-scale jitter."""
        return our_loader(self.settings), None

    def on_device(self, batch: Any) -> tuple[Any, Any]:
        """Move it."""
        return to_us(batch, self.work.device)

    def numbers(self, content: scoring.Content) -> scoring.Numbers:
        """By this package."""
        return scoring.ours(*content)

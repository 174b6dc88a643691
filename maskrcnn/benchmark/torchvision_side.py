"""torchvision's side of suite=speed."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.optim import SGD
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN

from maskrcnn.benchmark import scoring
from maskrcnn.benchmark.agreement import Found, arrays, coarse_pictures, sharpen
from maskrcnn.benchmark.epochs import torchvision_loader
from maskrcnn.benchmark.networks import floats, settle_torchvision, torchvision_batch, torchvision_model
from maskrcnn.benchmark.speed_side import ENCODE, ENLARGE, FEATURES, MASKS, ROI, RPN, Job, Side


class TorchvisionSide(Side):
    """torchvision's maskrcnn_resnet50_fpn, with torch's plain SGD as in its reference."""

    root = Path(torchvision.__file__).parent
    module: TorchvisionMaskRCNN

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.module = model = torchvision_model(job.node, job.work)
        size, seed = job.work.size, job.work.seed
        sharpen(model, [picture.to(job.work.device) for picture in coarse_pictures(1, size, seed=seed)])
        assert job.weights is not None
        torch.save(model.state_dict(), job.weights)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = SGD(trained, lr=0.0, momentum=0.9, weight_decay=1e-4)
        self.laps.watch(model.backbone, **{FEATURES: model.backbone, RPN: model.rpn, ROI: model.roi_heads})

    @cached_property
    def batch(self) -> tuple[Any, Any]:
        """Pictures and targets with whole masks."""
        return torchvision_batch(self.work)

    def settle(self) -> None:
        """Settle the heads."""
        settle_torchvision(self.module, enlarge=ENLARGE)

    @torch.inference_mode()
    def detections(self) -> Found:
        """Those of the model."""
        return arrays(self.module.eval()(self.agreeing()))

    def pictures(self, count: int) -> list[Tensor]:
        """In 0..1."""
        return floats(self.work.pictures(count))

    def predict(self, pictures: list[Tensor]) -> list[Any]:
        """Its masks are whole pictures; then they are encoded."""
        found = self.module(pictures)
        self.laps.mark(MASKS)
        results = [_encoded(each["masks"]) for each in found]
        self.laps.mark(ENCODE)
        return results

    @cached_property
    def loader(self) -> tuple[Any, str | None]:
        """Those of torchvision's large-scale jitter."""
        loader, self.label_of, absent = torchvision_loader(self.settings)
        return loader, absent

    def on_device(self, batch: Any) -> tuple[Any, Any]:
        """Move it, pictures as floats, category ids as labels."""
        device = self.work.device
        pictures = floats(picture.to(device, non_blocking=True) for picture in batch[0])
        targets = [{**target, "labels": self.label_of[target["labels"]]} for target in batch[1]]
        return pictures, [
            {name: value.to(device, non_blocking=True) for name, value in target.items()} for target in targets
        ]

    def numbers(self, content: scoring.Content) -> scoring.Numbers:
        """By pycocotools."""
        return scoring.pycocotools(*content)


def _encoded(masks: Tensor) -> list[Any]:
    """Run lengths of mask probabilities [D, 1, H, W]."""
    return [coco_mask.encode(np.asfortranarray(mask)) for mask in (masks[:, 0] > 0.5).byte().cpu().numpy()]

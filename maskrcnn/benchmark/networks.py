"""The networks that are compared, each with the same made-up work to do.

Weights and pictures are random. What a network says of them is not, or else the number of proposals and detections,
and with it the time, would be a matter of luck: RPN and box heads leave each box as it is, and every proposal is
class 1 with a probability of one half. So the full number of detections reaches the mask head.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn, transform

from maskrcnn.config import build
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.ops.image_batch import pad_images

MASK_SIZE = 112  # data.mask_size


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a network is given, on its device.

    Attributes:
        size: (height, width) of the pictures, in pixels.
        batch_size: Pictures of a training step.
        instances: Of each of them.
        num_classes: Foreground classes.
        seed: Of weights, pictures and instances.
        device: Where all of it is.
    """

    size: tuple[int, int]
    batch_size: int
    instances: int
    num_classes: int
    seed: int
    device: torch.device

    def pictures(self) -> list[Tensor]:
        """uint8 [3, height, width] of a training batch."""
        shape = (self.batch_size, 3, *self.size)
        return list(torch.randint(0, 256, shape, generator=self._generator(), dtype=torch.uint8).to(self.device))

    def target(self) -> dict[str, Tensor]:
        """Boxes [N, 4] with sides of an eighth to a half of the picture's, and labels [N]."""
        generator = self._generator()
        limit = torch.tensor([self.size[1], self.size[0]])
        sides = limit * (1 + 3 * torch.rand(self.instances, 2, generator=generator)) / 8
        corners = (limit - sides) * torch.rand(self.instances, 2, generator=generator)
        boxes = torch.cat((corners, corners + sides), dim=1)
        labels = torch.randint(1, self.num_classes + 1, (self.instances,), generator=generator)
        return {"boxes": boxes.to(self.device), "labels": labels.to(self.device)}

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True)
class Network:
    """A network with its work.

    Attributes:
        module: Has all parameters.
        losses: Those of a training batch.
        detections: Of one picture, with masks of 28 x 28 that are not yet pasted.
    """

    module: nn.Module
    losses: Callable[[], dict[str, Tensor]]
    detections: Callable[[], dict[str, Tensor]]

    @property
    def parameters(self) -> int:
        """Their number."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    def train_step(self, autocast: torch.autocast) -> None:
        """Forward and backward pass; the gradients are dropped."""
        self.module.train()
        with autocast:
            loss = torch.stack(list(self.losses().values())).sum()
        loss.backward()
        self.module.zero_grad(set_to_none=True)

    def predict(self, autocast: torch.autocast) -> dict[str, Tensor]:
        """Detections of one picture."""
        self.module.eval()
        with torch.inference_mode(), autocast:
            return self.detections()


def ours(node: dict[str, Any], work: Work, *, trust: list[str]) -> Network:
    """The network of a config node `model`."""
    torch.manual_seed(work.seed)
    model: MaskRCNN = build(node, key="model", trust=trust).to(work.device)
    heads: list[Any] = list(model.roi_heads.box_heads)
    _settle(deltas=[model.rpn.deltas, *(head.deltas for head in heads)], scores=[head.scores for head in heads])
    pictures, target = work.pictures(), work.target()
    batch = pad_images(pictures, divisor=model.input.size_divisor)
    target["masks"] = torch.full((work.instances, MASK_SIZE, MASK_SIZE), 255, dtype=torch.uint8, device=work.device)
    target["has_mask"] = torch.ones(work.instances, dtype=torch.bool, device=work.device)
    targets = [target] * work.batch_size
    return Network(model, lambda: model(batch, targets), lambda: model.predict(pictures[:1])[0])


def torchvisions(node: dict[str, Any], work: Work) -> Network:
    """The maskrcnn_resnet50_fpn of torchvision, with as many proposals, RoIs and detections as a node `model` has.

    Its masks in training are as large as the picture.
    """
    torch.manual_seed(work.seed)
    tops = [f"{kind}_nms_top_n_{mode}" for kind in ("pre", "post") for mode in ("train", "test")]
    model = maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=work.num_classes + 1,
        min_size=min(work.size),
        max_size=max(work.size),
        box_batch_size_per_image=node["roi"]["sampler"]["batch_size_per_image"],
        box_detections_per_img=node["detections_per_image"],
        **{f"rpn_{top}": node["rpn"][top] for top in tops},
    ).to(work.device)
    predictor = model.roi_heads.box_predictor
    _settle(deltas=[model.rpn.head.bbox_pred, predictor.bbox_pred], scores=[predictor.cls_score])
    pictures, target = [picture / 255 for picture in work.pictures()], work.target()
    target["masks"] = torch.zeros((work.instances, *work.size), dtype=torch.uint8, device=work.device)
    for mask, (left, top, right, bottom) in zip(target["masks"], target["boxes"].round().int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    targets = [target] * work.batch_size

    def detections() -> dict[str, Tensor]:
        with mock.patch.object(transform, "paste_masks_in_image", lambda masks, boxes, size: masks):
            return model(pictures[:1])[0]

    return Network(model, lambda: model(pictures, targets), detections)


@torch.no_grad()
def _settle(*, deltas: Iterable[Any], scores: Iterable[Any]) -> None:
    """Let the last layers leave boxes as they are, and call each proposal class 1 as surely as all else together."""
    for layer in (*deltas, *scores):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    for layer in scores:
        layer.bias[1] = math.log(len(layer.bias) - 1)

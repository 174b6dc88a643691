"""The networks that are compared, each with the same made-up work to do.

Weights and pictures are random. What a network says of them is not, or else the number of proposals and detections,
and with it the time, would be a matter of luck: RPN and box heads leave each box as it is, and every proposal is
class 1 with a probability of one half. So the full number of detections reaches the mask head.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection import transform
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from maskrcnn.config import build
from maskrcnn.memory import keep_freed_memory
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.ops.image_batch import ImageBatch, pad_images

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

    def pictures(self, count: int | None = None) -> list[Tensor]:
        """uint8 [3, height, width] as decoders lay them out, as many as a training batch has or `count`."""
        shape = (count or self.batch_size, *self.size, 3)
        pixels = torch.randint(0, 256, shape, generator=self._generator(), dtype=torch.uint8)
        return list(pixels.to(self.device).permute(0, 3, 1, 2))

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
    model = our_model(node, work, trust=trust)
    settle(model)
    batch, pictures = our_batch(model, work), work.pictures(1)
    return Network(model, lambda: model(*batch), lambda: model.predict(pictures)[0])


def torchvisions(node: dict[str, Any], work: Work) -> Network:
    """The maskrcnn_resnet50_fpn of torchvision, see `torchvision_model`."""
    model = torchvision_model(node, work)
    settle_torchvision(model)
    batch, pictures = torchvision_batch(work), floats(work.pictures(1))

    def detections() -> dict[str, Tensor]:
        with mock.patch.object(transform, "paste_masks_in_image", lambda masks, boxes, size: masks):
            return model(pictures)[0]

    return Network(model, lambda: model(*batch), detections)


def our_model(node: dict[str, Any], work: Work, *, trust: list[str]) -> MaskRCNN:
    """What a config node `model` describes, on the device, in a process that is set up as a command's."""
    keep_freed_memory()
    torch.manual_seed(work.seed)
    return build(node, key="model", trust=trust).to(work.device)


def torchvision_model(node: dict[str, Any], work: Work) -> TorchvisionMaskRCNN:
    """The maskrcnn_resnet50_fpn of torchvision, with as many proposals, RoIs and detections as a node `model` has.

    The node also says whether BatchNorm is frozen and which stages are. In training, pictures keep the size that they
    come in, as in torchvision's reference where its jitter has given them one.
    """
    torch.manual_seed(work.seed)
    body = node["backbone"]
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50",
        weights=None,
        norm_layer=FrozenBatchNorm2d if body.get("norm") == "frozen_bn" else nn.BatchNorm2d,
        trainable_layers=5 - body.get("frozen_stages", 0),
    )
    tops = [f"{kind}_nms_top_n_{mode}" for kind in ("pre", "post") for mode in ("train", "test")]
    return TorchvisionMaskRCNN(
        backbone,
        num_classes=work.num_classes + 1,
        min_size=min(work.size),
        max_size=max(work.size),
        rpn_batch_size_per_image=node["rpn"]["sampler"]["batch_size_per_image"],
        box_batch_size_per_image=node["roi"]["sampler"]["batch_size_per_image"],
        box_score_thresh=node["score_thresh"],
        box_detections_per_img=node["detections_per_image"],
        _skip_resize=True,
        **{f"rpn_{top}": node["rpn"][top] for top in tops},
    ).to(work.device)


def our_batch(model: MaskRCNN, work: Work) -> tuple[ImageBatch, list[dict[str, Tensor]]]:
    """A training batch; masks are cropped to their boxes."""
    target = work.target()
    target["masks"] = torch.full((work.instances, MASK_SIZE, MASK_SIZE), 255, dtype=torch.uint8, device=work.device)
    target["has_mask"] = torch.ones(work.instances, dtype=torch.bool, device=work.device)
    return pad_images(work.pictures(), divisor=model.input.size_divisor), [target] * work.batch_size


def torchvision_batch(work: Work) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """The same for torchvision; masks are as large as the picture."""
    target = work.target()
    target["masks"] = torch.zeros((work.instances, *work.size), dtype=torch.uint8, device=work.device)
    for mask, (left, top, right, bottom) in zip(target["masks"], target["boxes"].round().int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    return floats(work.pictures()), [target] * work.batch_size


def floats(pictures: Iterable[Tensor]) -> list[Tensor]:
    """Pictures in 0..1, laid out as torchvision's reference does it: one channel after the other."""
    return [picture.contiguous() / 255 for picture in pictures]


def settle(model: MaskRCNN, *, enlarge: float = 1.0) -> None:
    """Let a network leave boxes as they are, and call each proposal class 1 as surely as all else together.

    Args:
        model: The network.
        enlarge: What the box head, or the last of them, makes of the sides of each box. Most proposals are anchors of
            the finest level, and what a mask costs depends on its box.
    """
    heads: list[Any] = list(model.roi_heads.box_heads)
    _settle(deltas=[model.rpn.deltas, *(head.deltas for head in heads)], scores=[head.scores for head in heads])
    _enlarge(heads[-1].deltas, enlarge, model.roi_heads.stages[-1].coder_weights)


def settle_torchvision(model: TorchvisionMaskRCNN, *, enlarge: float = 1.0) -> None:
    """The same for torchvision's."""
    predictor = model.roi_heads.box_predictor
    _settle(deltas=[model.rpn.head.bbox_pred, predictor.bbox_pred], scores=[predictor.cls_score])
    _enlarge(predictor.bbox_pred, enlarge, model.roi_heads.box_coder.weights)


@torch.no_grad()
def _settle(*, deltas: Iterable[Any], scores: Iterable[Any]) -> None:
    for layer in (*deltas, *scores):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    for layer in scores:
        layer.bias[1] = math.log(len(layer.bias) - 1)


@torch.no_grad()
def _enlarge(layer: nn.Linear, factor: float, coder_weights: Sequence[float]) -> None:
    layer.bias.view(-1, 4)[:, 2:] = math.log(factor) * torch.tensor(coder_weights[2:]).to(layer.bias)

"""Mask R-CNN (He et al. 2017).

B images, K classes
images      list of B tensors [3, h, w], as they come from their files
batch       ImageBatch: padded pixels [B, 3, H, W] at the size the network sees, with their valid sizes
targets     list of B dicts: boxes [G, 4], labels [G] in 1..K, masks uint8 [G, S, S] (each cropped to its box),
            has_mask bool [G] (False where only the box is known)
features    p2..p6, list of 5 [B, C, H / 2^i, W / 2^i]
detections  list of B dicts: boxes [D, 4], labels [D], scores [D], mask_probs [D, M, M]
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from maskrcnn.errors import UserError
from maskrcnn.models.anchors import AnchorGenerator
from maskrcnn.models.input import ModelInput
from maskrcnn.models.roi_align import RoIAlign
from maskrcnn.models.roi_heads import BoxHead, MaskHead, RoIHeads, RoISettings
from maskrcnn.models.rpn import RPN
from maskrcnn.ops.boxes import check_boxes
from maskrcnn.ops.image_batch import ImageBatch

LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask")
# Strides of p2..p6, whatever the backbone.
STRIDES = (4, 8, 16, 32, 64)


class MaskRCNN(nn.Module):
    """Backbone, neck, RPN and RoI heads.

    Args:
        num_classes: Foreground classes.
        input: The picture that the network expects.
        backbone: Pixels to c2..c5; has `out_channels`.
        neck: Makes the neck, called with in_channels; the neck has `out_channels`.
        anchors: Reference boxes of the RPN.
        rpn: Makes the RPN, called with in_channels and anchors.
        roi_align: Pooling for both heads.
        roi: Rounds of box refinement and the sampling of RoIs.
        box_head, mask_head: Make the heads, called with in_channels and num_classes.
        score_thresh: Detections with a lower score are dropped.
        nms_thresh: IoU above which the lower-scored of two boxes of one class is dropped.
        detections_per_image: The best-scored detections that are kept.
        min_box_size: Boxes with a shorter side, in pixels that the network sees, are dropped before that; what is
            left without an area is dropped after it.
        loss_weights: Factor of each loss.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        input: ModelInput,
        backbone: nn.Module,
        neck: Callable[..., nn.Module],
        anchors: AnchorGenerator,
        rpn: Callable[..., RPN],
        roi_align: RoIAlign,
        roi: RoISettings,
        box_head: Callable[..., BoxHead],
        mask_head: Callable[..., MaskHead],
        score_thresh: float = 0.05,
        nms_thresh: float = 0.5,
        detections_per_image: int = 100,
        min_box_size: float = 1e-2,
        loss_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        for name, value in (("score_thresh", score_thresh), ("nms_thresh", nms_thresh)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {value}")
        if detections_per_image < 1:
            raise ValueError(f"detections_per_image must be at least 1, got {detections_per_image}")
        if min_box_size < 0:
            raise ValueError(f"min_box_size must be at least 0, got {min_box_size}")
        unknown = sorted(set(loss_weights or ()) - set(LOSSES))
        if unknown:
            raise ValueError(f"loss_weights has no {', '.join(unknown)}; the losses are {', '.join(LOSSES)}")
        self.loss_weights = dict.fromkeys(LOSSES, 1.0) | dict(loss_weights or {})
        self.num_classes = num_classes
        self.input = input
        self.backbone = backbone
        self.neck = neck(in_channels=backbone.out_channels)
        channels: int = self.neck.out_channels  # type: ignore[assignment]
        self.rpn = rpn(in_channels=channels, anchors=anchors)
        self.roi_heads = RoIHeads(
            in_channels=channels,
            strides=STRIDES,
            num_classes=num_classes,
            roi=roi,
            roi_align=roi_align,
            box_head=box_head,
            mask_head=mask_head,
            score_thresh=score_thresh,
            nms_thresh=nms_thresh,
            detections_per_image=detections_per_image,
            min_box_size=min_box_size,
        )

    @property
    def paste(self) -> str:
        """How a mask is laid into the picture, see `ops.masks`."""
        return self.roi_heads.mask_head.paste

    def compile_features(self, mode: bool | str = True) -> None:
        """Compile backbone and neck with `torch.compile`, once for pictures of any size.

        Args:
            mode: One of torch's modes; true for its default.

        Raises:
            UserError: There is no such mode, this machine has no compiler that torch can use, or the backbone
                computes its activations twice.
        """
        modes = list(torch._inductor.list_mode_options())
        chosen = "default" if mode is True else mode
        if chosen not in modes:
            raise UserError(f"compile={mode}: must be false, true or one of {', '.join(modes)}")
        if getattr(self.backbone, "gradient_checkpointing", False):
            raise UserError(
                f"compile={mode}: not with model.backbone.gradient_checkpointing=true; leave out one of them"
            )
        try:
            torch.compile(torch.square)(torch.ones(1, device=self.input.mean.device))
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"compile={mode}: torch cannot compile on this machine ({reason})") from error
        for part in (self.backbone, self.neck):
            part.compile(mode=chosen, dynamic=True)

    def forward(self, batch: ImageBatch, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The five losses, each times its weight.

        Raises:
            ValueError: A target box has no positive width and height; on an accelerator nobody looks, see
                `check_boxes`.
        """
        check_boxes([target["boxes"] for target in targets])
        features = self.features(self.input(batch))
        proposals, losses = self.rpn(features, batch, targets)
        losses |= self.roi_heads.losses(features, proposals, targets, batch.sizes)
        return {name: loss * self.loss_weights[name] for name, loss in losses.items()}

    @torch.no_grad()
    def predict(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Detections in pixels of the given pictures, best first."""
        batch = self.input.prepare(images)
        features = self.features(batch)
        proposals, _ = self.rpn(features, batch)
        detections = self.roi_heads.detect(features, proposals, batch)
        for detection, image in zip(detections, images, strict=True):
            detection["boxes"] = self.input.restore(detection["boxes"], image)
        return detections

    def features(self, batch: ImageBatch) -> list[Tensor]:
        """p2..p6 of normalised pixels."""
        return self.neck(self.backbone(batch.pixels))

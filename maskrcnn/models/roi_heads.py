"""Box and mask heads on the proposals (Mask R-CNN, section 3).

B images, K classes, R sampled RoIs of the whole batch, D detections of an image, M mask resolution
proposals    list of B [P_i, 4]
targets      list of B dicts: boxes [G, 4], labels [G], masks uint8 [G, S, S] (each cropped to its box),
             has_mask bool [G] (False where only the box is known: no mask is learnt there)
scores       logits [R, K + 1], background first
deltas       [R, (K + 1) * 4] per class, or [R, 4] class-agnostic
mask_logits  [R, K + 1, M, M]
detections   list of B dicts: boxes [D, 4], labels [D], scores [D], mask_probs [D, M, M]
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes

from maskrcnn.models.losses import (
    BoxLossName,
    BoxLossNormalizer,
    box_regression_loss,
    check_box_loss,
    check_coder_weights,
)
from maskrcnn.models.matching import BalancedSampler, Matcher
from maskrcnn.models.roi_align import RoIAlign
from maskrcnn.ops.boxes import decode_boxes
from maskrcnn.ops.image_batch import ImageBatch
from maskrcnn.ops.masks import PASTE_RULES, sample_mask_targets


class BoxHead(nn.Module):
    """Two fully connected layers, then class scores and box deltas.

    Args:
        in_channels: Channels of the features, from the neck.
        num_classes: Foreground classes.
        resolution: Side of the pooled map.
        hidden_dim: Width of the two layers.
        class_agnostic: One box for all classes instead of one per class.
        box_loss: `smooth_l1`, `iou`, `giou`, `diou` or `ciou`.
        box_loss_normalizer: Its sum is divided by the number of all `sampled` or of the `positive` RoIs.
        smooth_l1_beta: Where smooth L1 turns from quadratic to linear.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        resolution: int = 7,
        hidden_dim: int = 1024,
        class_agnostic: bool = False,
        box_loss: BoxLossName = "smooth_l1",
        box_loss_normalizer: BoxLossNormalizer = "sampled",
        smooth_l1_beta: float = 1 / 9,
    ) -> None:
        super().__init__()
        check_box_loss(box_loss, box_loss_normalizer)
        self.resolution = resolution
        self.class_agnostic = class_agnostic
        self.box_loss = box_loss
        self.box_loss_normalizer = box_loss_normalizer
        self.smooth_l1_beta = smooth_l1_beta
        self.fc1 = nn.Linear(in_channels * resolution**2, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, hidden_dim)
        self.scores = nn.Linear(hidden_dim, num_classes + 1)
        self.deltas = nn.Linear(hidden_dim, 4 if class_agnostic else (num_classes + 1) * 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled maps [R, C, resolution, resolution] -> scores [R, K + 1], deltas [R, (K + 1) * 4 or 4]."""
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        return self.scores(x).float(), self.deltas(x).float()


class MaskHead(nn.Module):
    """Convolutions, one doubling of the resolution, and a mask per class (Mask R-CNN, figure 4, right).

    Args:
        in_channels: Channels of the features, from the neck.
        num_classes: Foreground classes.
        resolution: Side of the pooled map; the mask is twice as large.
        num_convs: 3 x 3 convolutions before the doubling.
        channels: Their width.
        paste: How a mask is laid into the picture: `torchvision` or `detectron2`, see `ops.masks`.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        resolution: int = 14,
        num_convs: int = 4,
        channels: int = 256,
        paste: str = "torchvision",
    ) -> None:
        super().__init__()
        if paste not in PASTE_RULES:
            raise ValueError(f"paste must be one of {', '.join(PASTE_RULES)}, got {paste!r}")
        self.resolution = resolution
        self.paste = paste
        widths = [in_channels] + [channels] * num_convs
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.upsample = nn.ConvTranspose2d(widths[-1], channels, 2, stride=2)
        self.logits = nn.Conv2d(channels, num_classes + 1, 1)
        for layer in (*self.convs, self.upsample, self.logits):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Pooled maps [R, C, resolution, resolution] -> mask_logits [R, K + 1, M, M], M = 2 * resolution."""
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.logits(F.relu(self.upsample(x)))


class RoIStage:
    """How one round of box refinement sees its RoIs.

    Args:
        matcher: RoIs to ground truth.
        coder_weights: Scales of dx, dy, dw, dh.
    """

    def __init__(self, *, matcher: Matcher, coder_weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0)) -> None:
        check_coder_weights(coder_weights)
        self.matcher = matcher
        self.coder_weights = tuple(coder_weights)


@dataclass(frozen=True, kw_only=True)
class RoISettings:
    """Rounds of box refinement.

    Attributes:
        stages: Each round has a box head of its own.
        sampler: RoIs that enter the losses.
    """

    stages: Sequence[RoIStage]
    sampler: BalancedSampler


class RoIHeads(nn.Module):
    """Samples RoIs in training, refines and scores them, and predicts their masks.

    Args:
        in_channels: Channels of the features, from the neck.
        strides: Strides of the features.
        num_classes: Foreground classes.
        roi: Rounds of refinement and the sampling.
        roi_align: Pooling, shared by both heads.
        box_head, mask_head: Makers of the heads, called with in_channels and num_classes.
        score_thresh: Detections with a lower score are dropped.
        nms_thresh: IoU above which the lower-scored of two boxes of one class is dropped.
        detections_per_image: The best-scored detections that are kept.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        strides: Sequence[int],
        num_classes: int,
        roi: RoISettings,
        roi_align: RoIAlign,
        box_head: Callable[..., BoxHead],
        mask_head: Callable[..., MaskHead],
        score_thresh: float,
        nms_thresh: float,
        detections_per_image: int,
    ) -> None:
        super().__init__()
        if len(roi.stages) != 1:
            raise ValueError(f"roi.stages must hold exactly one stage, got {len(roi.stages)}")
        self.strides = strides
        self.stages = roi.stages
        self.sampler = roi.sampler
        self.roi_align = roi_align
        self.box_heads = nn.ModuleList(box_head(in_channels=in_channels, num_classes=num_classes) for _ in roi.stages)
        self.mask_head = mask_head(in_channels=in_channels, num_classes=num_classes)
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.detections_per_image = detections_per_image

    @property
    def _box_head(self) -> BoxHead:
        return cast(BoxHead, self.box_heads[0])

    def losses(
        self, features: list[Tensor], proposals: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """`loss_classifier`, `loss_box_reg` and `loss_mask`, for a batch of any number of instances."""
        stage, head = self.stages[0], self._box_head
        rois, labels, matches = self._sample(proposals, targets, stage.matcher)
        scores, deltas = head(self._pool(features, rois, head.resolution))
        label = torch.cat(labels)
        positive = torch.where(label > 0)[0]
        matched_boxes = torch.cat([target["boxes"][match] for target, match in zip(targets, matches, strict=True)])
        box_loss = box_regression_loss(
            head.box_loss,
            _of_class(deltas, label)[positive],
            references=torch.cat(rois)[positive],
            boxes=matched_boxes,
            weights=stage.coder_weights,
            beta=head.smooth_l1_beta,
        )
        count = len(label) if head.box_loss_normalizer == "sampled" else max(len(positive), 1)
        # The positives come first in each image.
        positive_rois = [roi[: len(match)] for roi, match in zip(rois, matches, strict=True)]
        positive_labels = [one[: len(match)] for one, match in zip(labels, matches, strict=True)]
        return {
            "loss_classifier": F.cross_entropy(scores, label),
            "loss_box_reg": box_loss / count + deltas.sum() * 0,
            "loss_mask": self._mask_loss(features, positive_rois, positive_labels, matches, targets),
        }

    @torch.no_grad()
    def _sample(
        self, proposals: list[Tensor], targets: list[dict[str, Tensor]], matcher: Matcher
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """RoIs of each image, positives first, their labels (0 for background), and what the positives match."""
        rois, labels, matches = [], [], []
        for proposal, target in zip(proposals, targets, strict=True):
            candidates = torch.cat((proposal, target["boxes"]))
            match = matcher(target["boxes"], candidates)
            positive, negative = self.sampler(match)
            matched = match[positive]
            rois.append(candidates[torch.cat((positive, negative))])
            labels.append(torch.cat((target["labels"][matched], torch.zeros_like(negative))))
            matches.append(matched)
        return rois, labels, matches

    def _mask_loss(
        self,
        features: list[Tensor],
        rois: list[Tensor],
        labels: list[Tensor],
        matches: list[Tensor],
        targets: list[dict[str, Tensor]],
    ) -> Tensor:
        """Binary cross-entropy of the mask of the true class, over positives only (Mask R-CNN, section 3)."""
        known = [target["has_mask"][match] for target, match in zip(targets, matches, strict=True)]
        rois, label_lists, matches = (
            [one[k] for one, k in zip(of, known, strict=True)] for of in (rois, labels, matches)
        )
        logits = self.mask_head(self._pool(features, rois, self.mask_head.resolution))
        label = torch.cat(label_lists)
        if not len(label):
            return logits.float().sum() * 0
        truth = sample_mask_targets(
            torch.cat([target["masks"][match] for target, match in zip(targets, matches, strict=True)]),
            boxes=torch.cat([target["boxes"][match] for target, match in zip(targets, matches, strict=True)]),
            rois=torch.cat(rois),
            size=logits.shape[-1],
        )
        chosen = logits[torch.arange(len(label), device=label.device), label]
        return F.binary_cross_entropy_with_logits(chosen.float(), truth)

    @torch.no_grad()
    def detect(self, features: list[Tensor], proposals: list[Tensor], batch: ImageBatch) -> list[dict[str, Tensor]]:
        """Detections of each image in pixels of the batch, best first."""
        stage, head = self.stages[0], self._box_head
        counts = [len(proposal) for proposal in proposals]
        scores, deltas = head(self._pool(features, proposals, head.resolution))
        probs = scores.softmax(-1)
        boxes = decode_boxes(deltas.unflatten(1, (-1, 4)), torch.cat(proposals), stage.coder_weights)
        detections = [
            self._select(prob, box, size)
            for prob, box, size in zip(probs.split(counts), boxes.split(counts), batch.sizes, strict=True)
        ]
        logits = self.mask_head(self._pool(features, [d["boxes"] for d in detections], self.mask_head.resolution))
        labels = torch.cat([d["labels"] for d in detections])
        mask_probs = logits[torch.arange(len(labels), device=labels.device), labels].float().sigmoid()
        for detection, mask_prob in zip(
            detections, mask_probs.split([len(d["labels"]) for d in detections]), strict=True
        ):
            detection["mask_probs"] = mask_prob
        return detections

    def _select(self, probs: Tensor, boxes: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """Score threshold, per-class NMS and the best of an image from probs [P, K + 1], boxes [P, 1 or K + 1, 4]."""
        proposal, label = torch.where(probs[:, 1:] > self.score_thresh)
        label = label + 1
        score = probs[proposal, label]
        box = clip_boxes_to_image(boxes[proposal, label if boxes.shape[1] > 1 else 0], size)
        keep = remove_small_boxes(box, 1e-2)
        box, score, label = box[keep], score[keep], label[keep]
        keep = batched_nms(box, score, label, self.nms_thresh)[: self.detections_per_image]
        return {"boxes": box[keep], "scores": score[keep], "labels": label[keep]}

    def _pool(self, features: list[Tensor], boxes: list[Tensor], resolution: int) -> Tensor:
        return self.roi_align(features, boxes, strides=self.strides, output_size=resolution)


def _of_class(deltas: Tensor, labels: Tensor) -> Tensor:
    """The deltas [R, 4] that belong to each RoI's label."""
    per_class = deltas.unflatten(1, (-1, 4))
    return per_class[torch.arange(len(labels), device=labels.device), labels if per_class.shape[1] > 1 else 0]

"""RoI heads: sample, refine, classify and segment the proposals (Mask R-CNN, section 3; Cascade R-CNN, section 4).

B images, K classes, R sampled RoIs of the whole batch, D detections of an image, M mask resolution
proposals    list of B [P_i, 4]
targets      list of B dicts: boxes [G, 4], labels [G], masks uint8 [G, S, S] (each cropped to its box),
             has_mask bool [G] (False where only the box is known: no mask is learnt there)
sizes        list of B (height, width), what the boxes are cut to
scores       logits [R, K + 1], background first
deltas       [R, (K + 1) * 4] per class, or [R, 4] class-agnostic
mask_logits  [R, K + 1, M, M]
detections   list of B dicts: boxes [D, 4], labels [D], scores [D], mask_probs [D, M, M]
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes

from maskrcnn.models.box_heads import BoxHead
from maskrcnn.models.losses import box_regression_loss, check_coder_weights
from maskrcnn.models.mask_heads import MaskHead
from maskrcnn.models.matching import BELOW, BalancedSampler, Matcher
from maskrcnn.models.roi_align import RoIAlign
from maskrcnn.ops.boxes import decode_boxes
from maskrcnn.ops.image_batch import ImageBatch
from maskrcnn.ops.masks import sample_mask_targets

# RoIs of each image, positives first, their labels (0 for background), and what the positives match.
_Sample = tuple[list[Tensor], list[Tensor], list[Tensor]]


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
        stages: Each round has a box head of its own and refines the boxes of the round before.
        sampler: RoIs that enter the losses; later rounds keep those of the first.
    """

    stages: Sequence[RoIStage]
    sampler: BalancedSampler


class RoIHeads(nn.Module):
    """Samples RoIs in training, refines and scores them, and predicts their masks.

    With several stages (Cai and Vasconcelos 2018, section 4) each takes the boxes that the one before made of its
    own, without gradient, and labels them by its own matcher. Their losses are summed, and the gradient that each
    sends into the features is divided by their number. Scores are averaged over the stages, boxes are the last
    one's. Masks are learnt on the RoIs of the first stage and predicted on the final boxes.

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
        min_box_size: Boxes with a shorter side, in pixels, are dropped before that.
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
        min_box_size: float,
    ) -> None:
        super().__init__()
        if not roi.stages:
            raise ValueError("roi.stages must hold at least one stage")
        self.strides = strides
        self.stages = roi.stages
        self.sampler = roi.sampler
        self.roi_align = roi_align
        box_heads = [box_head(in_channels=in_channels, num_classes=num_classes) for _ in roi.stages]
        if len(box_heads) > 1 and not box_heads[0].class_agnostic:
            raise ValueError(
                f"box_head.class_agnostic must be true where roi has {len(box_heads)} stages: "
                "each hands one box to the next, whatever its class"
            )
        self.box_heads = nn.ModuleList(box_heads)
        self.mask_head = mask_head(in_channels=in_channels, num_classes=num_classes)
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.detections_per_image = detections_per_image
        self.min_box_size = min_box_size

    def losses(
        self,
        features: list[Tensor],
        proposals: list[Tensor],
        targets: list[dict[str, Tensor]],
        sizes: list[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """`loss_classifier` and `loss_box_reg`, each the sum over the stages, and `loss_mask`.

        The batch may have any number of instances.
        """
        boxes, classifier, box_reg = proposals, [], []
        samples: list[_Sample] = []
        for stage, head in self._rounds():
            sample = _relabel(boxes, targets, stage.matcher) if samples else self._sample(boxes, targets, stage.matcher)
            rois, labels, _ = sample
            pooled = self._pool(features, rois, head.resolution)
            if len(self.stages) > 1 and pooled.requires_grad:
                pooled.register_hook(lambda gradient: gradient / len(self.stages))
            scores, deltas = head(pooled)
            label = torch.cat(labels)
            classifier.append(F.cross_entropy(scores, label) if len(label) else scores.sum())
            box_reg.append(_box_loss(head, stage, deltas, sample, targets))
            samples.append(sample)
            if len(samples) < len(self.stages):
                boxes = _refine(deltas, rois, stage, sizes)
        return {
            "loss_classifier": torch.stack(classifier).sum(),
            "loss_box_reg": torch.stack(box_reg).sum(),
            "loss_mask": self._mask_loss(features, samples[0], targets),
        }

    @torch.no_grad()
    def _sample(self, proposals: list[Tensor], targets: list[dict[str, Tensor]], matcher: Matcher) -> _Sample:
        """Of the proposals and the ground truth."""
        candidates = [torch.cat((boxes, target["boxes"])) for boxes, target in zip(proposals, targets, strict=True)]
        return _label(candidates, targets, matcher, self.sampler)

    def _mask_loss(self, features: list[Tensor], sample: _Sample, targets: list[dict[str, Tensor]]) -> Tensor:
        """Binary cross-entropy of the mask of the true class, over positives only (Mask R-CNN, section 3)."""
        matches = sample[2]
        rois, labels = ([one[: len(match)] for one, match in zip(of, matches, strict=True)] for of in sample[:2])
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
        detections = []
        for found in self.candidates(features, proposals, batch.sizes):
            keep = self.select(**found)
            detections.append({name: value[keep] for name, value in found.items()})
        boxes, labels = ([detection[name] for detection in detections] for name in ("boxes", "labels"))
        for detection, mask_probs in zip(detections, self.mask_probs(features, boxes, labels), strict=True):
            detection["mask_probs"] = mask_probs
        return detections

    @torch.no_grad()
    def candidates(
        self, features: list[Tensor], proposals: list[Tensor], sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Every box and class of each image above `score_thresh`: boxes [N, 4], scores [N], labels [N]."""
        counts = [len(proposal) for proposal in proposals]
        rois, probs = proposals, []
        for stage, head in self._rounds():
            scores, deltas = head(self._pool(features, rois, head.resolution))
            probs.append(scores.softmax(-1))
            if len(probs) < len(self.stages):
                rois = _refine(deltas, rois, stage, sizes)
        boxes = decode_boxes(deltas.unflatten(1, (-1, 4)), torch.cat(rois), stage.coder_weights)
        mean = torch.stack(probs).mean(dim=0)
        return [
            self._candidates(prob, box, size)
            for prob, box, size in zip(mean.split(counts), boxes.split(counts), sizes, strict=True)
        ]

    def _candidates(self, probs: Tensor, boxes: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """Those of an image, from probs [P, K + 1] and boxes [P, 1 or K + 1, 4]."""
        proposal, label = torch.where(probs[:, 1:] > self.score_thresh)
        label = label + 1
        score = probs[proposal, label]
        box = clip_boxes_to_image(boxes[proposal, label if boxes.shape[1] > 1 else 0], size)
        keep = remove_small_boxes(box, self.min_box_size)
        return {"boxes": box[keep], "scores": score[keep], "labels": label[keep]}

    def select(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """Which candidates of an image are its detections, best first: per-class NMS and the best of what is left."""
        keep = batched_nms(boxes, scores, labels, self.nms_thresh)[: self.detections_per_image]
        return keep[(boxes[keep, 2:] > boxes[keep, :2]).all(dim=1)]

    @torch.no_grad()
    def mask_probs(self, features: list[Tensor], boxes: list[Tensor], labels: list[Tensor]) -> list[Tensor]:
        """The masks [D, M, M] of each image's boxes [D, 4], of their classes, in float32."""
        logits = self.mask_head(self._pool(features, boxes, self.mask_head.resolution))
        label = torch.cat(labels)
        probs = logits[torch.arange(len(label), device=label.device), label].float().sigmoid()
        return list(probs.split([len(one) for one in labels]))

    def _pool(self, features: list[Tensor], boxes: list[Tensor], resolution: int) -> Tensor:
        return self.roi_align(features, boxes, strides=self.strides, output_size=resolution)

    def _rounds(self) -> list[tuple[RoIStage, BoxHead]]:
        return [(stage, cast(BoxHead, head)) for stage, head in zip(self.stages, self.box_heads, strict=True)]


def _label(
    candidates: list[Tensor],
    targets: list[dict[str, Tensor]],
    matcher: Matcher,
    choose: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> _Sample:
    """Those candidates whose match makes `choose` take them as positives or negatives."""
    rois, labels, matches = [], [], []
    for boxes, target in zip(candidates, targets, strict=True):
        match = matcher(target["boxes"], boxes)
        positive, negative = choose(match)
        matched = match[positive]
        rois.append(boxes[torch.cat((positive, negative))])
        labels.append(torch.cat((target["labels"][matched], torch.zeros_like(negative))))
        matches.append(matched)
    return rois, labels, matches


@torch.no_grad()
def _relabel(refined: list[Tensor], targets: list[dict[str, Tensor]], matcher: Matcher) -> _Sample:
    """All refined boxes that have an area."""
    kept = [boxes[(boxes[:, 2:] > boxes[:, :2]).all(dim=1)] for boxes in refined]
    return _label(kept, targets, matcher, lambda match: (torch.where(match >= 0)[0], torch.where(match == BELOW)[0]))


@torch.no_grad()
def _refine(deltas: Tensor, rois: list[Tensor], stage: RoIStage, sizes: list[tuple[int, int]]) -> list[Tensor]:
    """What class-agnostic deltas [R, 4] make of the RoIs, cut to the pictures."""
    boxes = decode_boxes(deltas, torch.cat(rois), stage.coder_weights).split([len(roi) for roi in rois])
    return [clip_boxes_to_image(box, size) for box, size in zip(boxes, sizes, strict=True)]


def _box_loss(
    head: BoxHead, stage: RoIStage, deltas: Tensor, sample: _Sample, targets: list[dict[str, Tensor]]
) -> Tensor:
    """The regression loss of the positives, which keeps the graph whole where there are none."""
    rois, labels, matches = sample
    label = torch.cat(labels)
    positive = torch.where(label > 0)[0]
    loss = box_regression_loss(
        head.box_loss,
        _of_class(deltas, label)[positive],
        references=torch.cat(rois)[positive],
        boxes=torch.cat([target["boxes"][match] for target, match in zip(targets, matches, strict=True)]),
        weights=stage.coder_weights,
        beta=head.smooth_l1_beta,
    )
    count = len(label) if head.box_loss_normalizer == "sampled" else len(positive)
    return loss / max(count, 1) + deltas.sum() * 0


def _of_class(deltas: Tensor, labels: Tensor) -> Tensor:
    """The deltas [R, 4] that belong to each RoI's label."""
    per_class = deltas.unflatten(1, (-1, 4))
    return per_class[torch.arange(len(labels), device=labels.device), labels if per_class.shape[1] > 1 else 0]

"""RoI heads: sample, refine, classify and segment the proposals (Mask R-CNN, section 3; Cascade R-CNN, section 4).

B images, K classes, S slots for sampled RoIs of an image, R RoIs of the whole batch that the heads see (see
`ops/slots.py`), D detections of an image, M mask resolution
proposals    list of B [P_i, 4]; one without an area is an empty slot
targets      list of B dicts: boxes [G, 4], labels [G], masks uint8 [G, S, S] (each cropped to its box),
             has_mask bool [G] (False where only the box is known: no mask is learnt there)
sizes        list of B (height, width), what the boxes are cut to
scores       logits [R, K + 1], background first
deltas       [R, (K + 1) * 4] per class, or [R, 4] class-agnostic
mask_logits  [R, K + 1, M, M]
detections   list of B dicts: boxes [D, 4], labels [D], scores [D], mask_probs [D, M, M]
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes

from maskrcnn.models.box_heads import BoxHead
from maskrcnn.models.losses import box_regression_loss, check_coder_weights
from maskrcnn.models.mask_heads import MaskHead
from maskrcnn.models.matching import BELOW, BETWEEN, BalancedSampler, Matcher, match_batch, numbered
from maskrcnn.models.roi_align import RoIAlign, to_rois
from maskrcnn.ops.boxes import decode_boxes
from maskrcnn.ops.image_batch import ImageBatch
from maskrcnn.ops.masks import sample_mask_targets
from maskrcnn.ops.slots import occupied, put_back


class _Sample(NamedTuple):
    """What enters the losses.

    Attributes:
        rois: [B, S, 4], in the first round positives first.
        labels: int64 [B, S], 0 for background, IGNORED where a slot is empty.
        matches: int64 [B, S], the instance of a positive, 0 for no positive.
    """

    rois: Tensor
    labels: Tensor
    matches: Tensor


class _Instances(NamedTuple):
    """Those of the whole batch, numbered as `match_batch` does; number 0 is none.

    Attributes:
        of_image: B x [G_i, 4], the boxes of each picture.
        boxes: [1 + sum G_i, 4].
        labels: int64 [1 + sum G_i], that of number 0 is 0.
    """

    of_image: list[Tensor]
    boxes: Tensor
    labels: Tensor


IGNORED = -1  # a label


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
        instances = _instances(targets)
        boxes, classifier, box_reg = proposals, [], []
        samples: list[_Sample] = []
        for stage, head in self._rounds():
            label_boxes = _relabel if samples else self._sample
            sample = label_boxes(boxes, instances, stage.matcher)
            filled = sample.labels != IGNORED
            slot, real = occupied(filled)
            rois = to_rois(list(sample.rois))[slot]
            pooled = self._pool(features, rois, head.resolution)
            if len(self.stages) > 1 and pooled.requires_grad:
                pooled.register_hook(lambda gradient: gradient / len(self.stages))
            scores, deltas = head(pooled)
            label = torch.where(real, sample.labels.flatten()[slot], IGNORED)
            loss = F.cross_entropy(scores, label, ignore_index=IGNORED, reduction="sum")
            classifier.append(loss / real.sum().clamp(min=1))
            matched = instances.boxes[sample.matches.flatten()[slot]]
            box_reg.append(_box_loss(head, stage, deltas, rois=rois[:, 1:], boxes=matched, label=label))
            samples.append(sample)
            if len(samples) < len(self.stages):
                refined = decode_boxes(deltas.detach(), rois[:, 1:], stage.coder_weights)
                boxes = _clip(put_back(refined, filled), sizes)
        return {
            "loss_classifier": torch.stack(classifier).sum(),
            "loss_box_reg": torch.stack(box_reg).sum(),
            "loss_mask": self._mask_loss(features, samples[0], instances.boxes, targets),
        }

    @torch.no_grad()
    def _sample(self, proposals: list[Tensor], instances: _Instances, matcher: Matcher) -> _Sample:
        """Of the proposals and the ground truth."""
        candidates = [torch.cat(both) for both in zip(proposals, instances.of_image, strict=True)]
        boxes = pad_sequence(candidates, batch_first=True)
        match = match_batch(matcher, instances.of_image, candidates)
        match = torch.where(_has_area(boxes), match, BETWEEN)
        index, filled = self.sampler(match)
        match = torch.where(filled, match.gather(1, index), BETWEEN)
        return _labelled(boxes.gather(1, index[..., None].expand(-1, -1, 4)), match, instances)

    def _mask_loss(
        self, features: list[Tensor], sample: _Sample, boxes: Tensor, targets: list[dict[str, Tensor]]
    ) -> Tensor:
        """Binary cross-entropy of the mask of the true class, over positives only (Mask R-CNN, section 3).

        Args:
            features: Of the batch.
            sample: That of the first round.
            boxes: [1 + sum G_i, 4], of the instances by number.
            targets: Of each image.
        """
        rois, labels, matches = (of[:, : self.sampler.max_positives] for of in sample)
        known, masks = (
            torch.cat([targets[0][name].new_zeros(1, *targets[0][name].shape[1:]), *_all(targets, name)])
            for name in ("has_mask", "masks")
        )
        slot, real = occupied(known[matches])
        rois, label, match = to_rois(list(rois))[slot], labels.flatten()[slot], matches.flatten()[slot]
        logits = self.mask_head(self._pool(features, rois, self.mask_head.resolution))
        chosen = logits[torch.arange(len(label), device=label.device), label.clamp(min=0)]
        truth = sample_mask_targets(masks, boxes=boxes, rois=rois[:, 1:], size=logits.shape[-1], instances=match)
        loss = F.binary_cross_entropy_with_logits(
            chosen.float(), truth, weight=real[:, None, None].float(), reduction="sum"
        )
        return loss / (real.sum() * truth[:1].numel()).clamp(min=1)

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
        mean = torch.where(_has_area(torch.cat(proposals))[:, None], torch.stack(probs).mean(dim=0), 0)
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
        return keep[_has_area(boxes[keep])]

    @torch.no_grad()
    def mask_probs(self, features: list[Tensor], boxes: list[Tensor], labels: list[Tensor]) -> list[Tensor]:
        """The masks [D, M, M] of each image's boxes [D, 4], of their classes, in float32."""
        logits = self.mask_head(self._pool(features, boxes, self.mask_head.resolution))
        label = torch.cat(labels)
        probs = logits[torch.arange(len(label), device=label.device), label].float().sigmoid()
        return list(probs.split([len(one) for one in labels]))

    def _pool(self, features: list[Tensor], boxes: list[Tensor] | Tensor, resolution: int) -> Tensor:
        return self.roi_align(features, boxes, strides=self.strides, output_size=resolution)

    def _rounds(self) -> list[tuple[RoIStage, BoxHead]]:
        return [(stage, cast(BoxHead, head)) for stage, head in zip(self.stages, self.box_heads, strict=True)]


def _instances(targets: list[dict[str, Tensor]]) -> _Instances:
    boxes, labels = _all(targets, "boxes"), _all(targets, "labels")
    return _Instances(boxes, numbered(boxes), torch.cat((labels[0].new_zeros(1), *labels)))


def _all(targets: list[dict[str, Tensor]], name: str) -> list[Tensor]:
    return [target[name] for target in targets]


def _labelled(rois: Tensor, match: Tensor, instances: _Instances) -> _Sample:
    """RoIs [B, S, 4] whose match, int64 [B, S], is an instance, BELOW, or anything else for an empty slot."""
    matches = match.clamp(min=0)
    labels = torch.where((match > 0) | (match == BELOW), instances.labels[matches], IGNORED)
    return _Sample(rois, labels, matches)


@torch.no_grad()
def _relabel(refined: list[Tensor], instances: _Instances, matcher: Matcher) -> _Sample:
    """All refined boxes B x [S, 4] that have an area."""
    boxes, match = torch.stack(refined), match_batch(matcher, instances.of_image, refined)
    return _labelled(boxes, torch.where(_has_area(boxes), match, BETWEEN), instances)


def _has_area(boxes: Tensor) -> Tensor:
    """Bool [...] of boxes [..., 4]."""
    return (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)


@torch.no_grad()
def _refine(deltas: Tensor, rois: list[Tensor], stage: RoIStage, sizes: list[tuple[int, int]]) -> list[Tensor]:
    """What class-agnostic deltas [R, 4] make of the RoIs, cut to the pictures."""
    return _clip(decode_boxes(deltas, torch.cat(rois), stage.coder_weights).split([len(roi) for roi in rois]), sizes)


def _clip(boxes: Iterable[Tensor], sizes: list[tuple[int, int]]) -> list[Tensor]:
    return [clip_boxes_to_image(box, size) for box, size in zip(boxes, sizes, strict=True)]


def _box_loss(head: BoxHead, stage: RoIStage, deltas: Tensor, *, rois: Tensor, boxes: Tensor, label: Tensor) -> Tensor:
    """The regression loss of the positives.

    Args:
        head: Has predicted the deltas.
        stage: Its round.
        deltas: [R, 4] or [R, (K + 1) * 4].
        rois: [R, 4].
        boxes: [R, 4], those that positives match.
        label: int64 [R], IGNORED where a RoI does not count.
    """
    positive = label > 0
    row, real = occupied(positive)
    loss = box_regression_loss(
        head.box_loss,
        _of_class(deltas, label.clamp(min=0))[row],
        references=rois[row],
        boxes=boxes[row],
        weights=stage.coder_weights,
        beta=head.smooth_l1_beta,
        real=real,
    )
    count = (label != IGNORED if head.box_loss_normalizer == "sampled" else positive).sum()
    return loss / count.clamp(min=1)


def _of_class(deltas: Tensor, labels: Tensor) -> Tensor:
    """The deltas [R, 4] that belong to each RoI's label."""
    per_class = deltas.unflatten(1, (-1, 4))
    return per_class[torch.arange(len(labels), device=labels.device), labels if per_class.shape[1] > 1 else 0]

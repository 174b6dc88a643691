"""The network as an exporter can follow it: the parts of a Mask R-CNN, without a loop over pictures.

B pictures, K classes, L levels, P proposals and D detections of a picture at most, M mask resolution
images       float32 [B, 3, H, W], RGB in 0..255, resized as the model expects; H and W multiples of its size divisor
sizes        int64 [B, 2], height and width of each picture in the top left of its canvas
boxes        float32 [N, 4], detections of all pictures, best first in each, in pixels of `images`
labels       int64 [N] in 1..K
scores       float32 [N]
mask_probs   float32 [N, M, M]
image_index  int64 [N], the picture that each belongs to, ascending

Every picture has P slots for proposals and D for detections, some of them empty: their shapes do not depend on
what is in the pictures. Only the last step, which drops the empty ones, does.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from maskrcnn.export.suppression import Suppress
from maskrcnn.models.box_heads import BoxHead
from maskrcnn.models.mask_rcnn import STRIDES, MaskRCNN
from maskrcnn.ops.boxes import decode_boxes

_LOWEST = torch.finfo(torch.float32).min


class ExportNetwork(nn.Module):
    """Padded pictures to detections, the same numbers as `MaskRCNN.predict` between resizing and scaling back.

    Args:
        model: In evaluation mode; its parts are used as they are.
        suppress: Non-maximum suppression, see `export/suppression.py`.
        half: Compute convolutions and fully connected layers in float16, which changes `model`; pixels, boxes,
            scores and pooling stay float32.
    """

    def __init__(self, model: MaskRCNN, *, suppress: Suppress, half: bool = False) -> None:
        super().__init__()
        self.model = model
        self.suppress = suppress
        self.dtype = torch.float16 if half else torch.float32
        for part in (model.backbone, model.neck, model.rpn.convs, model.rpn.objectness, model.rpn.deltas):
            part.to(self.dtype)
        model.roi_heads.box_heads.to(self.dtype)
        model.roi_heads.mask_head.to(self.dtype)

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What is found: boxes [N, 4], labels [N], scores [N], mask_probs [N, M, M], image_index [N]."""
        pixels = self._normalise(images, sizes)
        features = self.model.neck(self.model.backbone(pixels.to(self.dtype)))
        limits = sizes.flip(1).repeat(1, 2).float()[:, None]  # [B, 1, 4]: what x1 y1 x2 y2 are cut to
        proposals = self._propose(features, limits, (images.shape[2], images.shape[3]))
        features = [feature.float() for feature in features]
        boxes, labels, scores, image_index = self._detect(features, proposals, limits)
        return boxes, labels, scores, self._segment(features, boxes, labels, image_index), image_index

    def _normalise(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Normalised pixels, 0 outside the pictures."""
        rows = torch.arange(images.shape[2], device=images.device) < sizes[:, :1]
        columns = torch.arange(images.shape[3], device=images.device) < sizes[:, 1:]
        inside = (rows[:, :, None] & columns[:, None, :])[:, None]
        expected = self.model.input
        pixels = images.flip(1) if expected.channel_order == "bgr" else images
        return torch.where(inside, (pixels / 255 - expected.mean) / expected.std, 0.0)

    def _propose(self, features: list[Tensor], limits: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Proposals [B, P, 4]; slots that are left over hold boxes without a size."""
        rpn = self.model.rpn
        slots = rpn.pre_nms_top_n[False]
        boxes, scores = [], []
        for logits, deltas, anchors in zip(*rpn.predict(features), rpn.anchors(features, image_size), strict=True):
            # A level may have fewer anchors than slots.
            best, index = F.pad(logits.float(), (0, slots), value=-torch.inf).topk(slots, dim=1)
            filled = best > _LOWEST
            index = torch.where(filled, index, 0)
            chosen = deltas.gather(1, index[..., None].expand(-1, -1, 4))
            box = decode_boxes(chosen.flatten(0, 1), anchors[index].flatten(0, 1), rpn.coder_weights)
            box = _clip(box.unflatten(0, (-1, slots)), limits)
            boxes.append(box)
            scores.append(torch.where(filled & _is_large(box, rpn.min_size), best, -torch.inf))
        box, score = torch.stack(boxes, 1), torch.stack(scores, 1)  # [B, L, slots, ...]
        kept = self.suppress(box.flatten(0, 1), score.flatten(0, 1)[:, None], rpn.nms_thresh, _LOWEST)
        score = torch.where(kept.view_as(score), score, -torch.inf).flatten(1)
        best, index = score.topk(min(rpn.post_nms_top_n[False], len(features) * slots), dim=1)
        chosen = box.flatten(1, 2).gather(1, index[..., None].expand(-1, -1, 4))
        return torch.where((best > _LOWEST)[..., None], chosen, 0.0)

    def _detect(
        self, features: list[Tensor], proposals: Tensor, limits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What is found: boxes [N, 4], labels [N], scores [N], image_index [N]."""
        heads = self.model.roi_heads
        batch, slots = proposals.shape[:2]
        image_index = torch.arange(batch, device=proposals.device)[:, None].expand(-1, slots).flatten()
        rois, probs = proposals, []
        for stage, head in zip(heads.stages, heads.box_heads, strict=True):
            assert isinstance(head, BoxHead)
            pooled = self._pool(features, rois.flatten(0, 1), image_index, head.resolution)
            scores, deltas = head(pooled.to(self.dtype))
            probs.append(scores.softmax(-1))
            boxes = decode_boxes(deltas.unflatten(1, (-1, 4)), rois.flatten(0, 1), stage.coder_weights)
            boxes = _clip(boxes.unflatten(0, (-1, slots)), limits[:, None])  # [B, P, 1 or K + 1, 4]
            rois = boxes[:, :, 0]
        score = torch.stack(probs).mean(dim=0)[:, 1:].unflatten(0, (-1, slots)).transpose(1, 2)  # [B, K, P]
        boxes = boxes.transpose(1, 2)
        per_class = boxes.shape[1] > 1
        boxes = boxes[:, 1:] if per_class else boxes
        proposed = (proposals[..., 2:] > proposals[..., :2]).all(dim=-1)[:, None]
        score = torch.where(proposed & _is_large(boxes, heads.min_box_size), score, -1.0)
        candidates = boxes.expand(-1, score.shape[1], -1, -1).flatten(1, 2)  # [B, K * P, 4]
        if per_class:
            kept = self.suppress(
                boxes.flatten(0, 1), score.flatten(0, 1)[:, None], heads.nms_thresh, heads.score_thresh
            ).view_as(score)
        else:
            kept = self.suppress(boxes[:, 0], score, heads.nms_thresh, heads.score_thresh)
        score = torch.where(kept, score, -1.0).flatten(1)
        best, index = score.topk(min(heads.detections_per_image, self.model.num_classes * slots), dim=1)
        box = candidates.gather(1, index[..., None].expand(-1, -1, 4))
        image, rank = torch.where((best >= 0) & (box[..., 2:] > box[..., :2]).all(dim=-1))
        return box[image, rank], index[image, rank] // slots + 1, best[image, rank], image

    def _segment(self, features: list[Tensor], boxes: Tensor, labels: Tensor, image_index: Tensor) -> Tensor:
        """Their masks [N, M, M]."""
        head = self.model.roi_heads.mask_head
        # One more box than there are, since not every layer of every runtime takes none.
        pooled = self._pool(features, F.pad(boxes, (0, 0, 0, 1)), F.pad(image_index, (0, 1)), head.resolution)
        logits = head(pooled.to(self.dtype))[:-1]
        return logits[torch.arange(labels.shape[0], device=labels.device), labels].float().sigmoid()

    def _pool(self, features: list[Tensor], boxes: Tensor, image_index: Tensor, resolution: int) -> Tensor:
        """Maps [R, C, resolution, resolution] of boxes [R, 4]."""
        pooling = self.model.roi_heads.roi_align
        strides = STRIDES[: pooling.num_levels]
        levels = pooling.levels(boxes, strides)
        rois = torch.cat((image_index[:, None].to(boxes.dtype), boxes), dim=1)
        rows, pooled = [], []
        for level, (feature, stride) in enumerate(zip(features, strides, strict=False)):
            chosen = torch.where(levels == level)[0]
            rows.append(chosen)
            pooled.append(
                roi_align(feature, rois[chosen], resolution, 1 / stride, pooling.sampling_ratio, pooling.aligned)
            )
        row = torch.cat(rows)
        place = torch.zeros_like(levels).scatter(0, row, torch.arange(row.shape[0], device=row.device))
        return torch.cat(pooled)[place]


def _clip(boxes: Tensor, limits: Tensor) -> Tensor:
    """Boxes cut to their pictures."""
    return torch.minimum(boxes.clamp(min=0), limits)


def _is_large(boxes: Tensor, min_size: float) -> Tensor:
    """Whether both sides of boxes [..., 4] reach `min_size`."""
    return (boxes[..., 2:] - boxes[..., :2] >= min_size).all(dim=-1)

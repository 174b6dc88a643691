"""Region Proposal Network (Faster R-CNN, section 3.1).

B images, L levels, A anchors per cell, N = sum over levels of H_l * W_l * A
features    list of L [B, C, H_l, W_l]
objectness  logits, per level [B, H_l * W_l * A]
deltas      per level [B, H_l * W_l * A, 4]
anchors     per level [H_l * W_l * A, 4]
proposals   list of B [P_i, 4], P_i <= post_nms_top_n; on an accelerator P_i is fixed, and slots that are left over hold
            boxes without an area
"""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import clip_boxes_to_image

from maskrcnn.models.anchors import AnchorGenerator
from maskrcnn.models.losses import (
    BoxLossName,
    BoxLossNormalizer,
    box_regression_loss,
    check_box_loss,
    check_coder_weights,
)
from maskrcnn.models.matching import BalancedSampler, Matcher, match_batch, numbered
from maskrcnn.ops.boxes import decode_boxes
from maskrcnn.ops.cells import to_cells
from maskrcnn.ops.image_batch import ImageBatch
from maskrcnn.ops.nms import suppress
from maskrcnn.ops.slots import occupied, trimmed


class RPN(nn.Module):
    """Proposes boxes that may hold an object.

    Args:
        in_channels: Channels of the features, from the neck.
        anchors: The anchor generator.
        num_convs: 3 x 3 convolutions before the two predictions.
        pre_nms_top_n_train, pre_nms_top_n_test: Best-scored boxes of a level that enter NMS.
        post_nms_top_n_train, post_nms_top_n_test: Proposals of an image that leave NMS.
        nms_thresh: IoU above which the lower-scored box is dropped.
        min_size: Proposals with a shorter side, in pixels, are dropped.
        matcher: Anchors to ground truth.
        sampler: Anchors that enter the loss.
        box_loss: `l1`, `smooth_l1`, `iou`, `giou`, `diou` or `ciou`.
        box_loss_normalizer: Its sum is divided by the number of all `sampled` or of the `positive` anchors.
        smooth_l1_beta: Where smooth L1 turns from quadratic to linear.
        coder_weights: Scales of dx, dy, dw, dh.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        anchors: AnchorGenerator,
        matcher: Matcher,
        sampler: BalancedSampler,
        num_convs: int = 1,
        pre_nms_top_n_train: int = 2000,
        pre_nms_top_n_test: int = 1000,
        post_nms_top_n_train: int = 2000,
        post_nms_top_n_test: int = 1000,
        nms_thresh: float = 0.7,
        min_size: float = 1e-3,
        box_loss: BoxLossName = "smooth_l1",
        box_loss_normalizer: BoxLossNormalizer = "sampled",
        smooth_l1_beta: float = 1 / 9,
        coder_weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        check_box_loss(box_loss, box_loss_normalizer)
        check_coder_weights(coder_weights)
        for key, value in (
            ("pre_nms_top_n_train", pre_nms_top_n_train),
            ("pre_nms_top_n_test", pre_nms_top_n_test),
            ("post_nms_top_n_train", post_nms_top_n_train),
            ("post_nms_top_n_test", post_nms_top_n_test),
        ):
            if value < 1:
                raise ValueError(f"{key} must be at least 1, got {value}")
        if not 0 < nms_thresh <= 1:
            raise ValueError(f"nms_thresh must be in (0, 1], got {nms_thresh}")
        self.anchors = anchors
        self.matcher = matcher
        self.sampler = sampler
        self.pre_nms_top_n = {True: pre_nms_top_n_train, False: pre_nms_top_n_test}
        self.post_nms_top_n = {True: post_nms_top_n_train, False: post_nms_top_n_test}
        self.nms_thresh = nms_thresh
        self.min_size = min_size
        self.box_loss = box_loss
        self.box_loss_normalizer = box_loss_normalizer
        self.smooth_l1_beta = smooth_l1_beta
        self.coder_weights = tuple(coder_weights)
        self.convs = nn.ModuleList(nn.Conv2d(in_channels, in_channels, 3, padding=1) for _ in range(num_convs))
        self.objectness = nn.Conv2d(in_channels, anchors.num_anchors, 1)
        self.deltas = nn.Conv2d(in_channels, anchors.num_anchors * 4, 1)
        for layer in (*self.convs, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(
        self, features: list[Tensor], batch: ImageBatch, targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals of each image and, where targets are given, the two losses.

        Returns:
            proposals, B x [P_i, 4] without gradient, and {} or {"loss_objectness", "loss_rpn_box_reg"}.
        """
        height, width = batch.pixels.shape[-2:]
        anchors = self.anchors(features, (height, width))
        proposals = self._propose(*self.predict(features), anchors, batch.sizes)
        if targets is None:
            return proposals, {}
        return proposals, self._losses(features, torch.cat(anchors), targets)

    @torch.no_grad()
    def predict(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Objectness and deltas of each level, without gradient: the losses see few anchors."""
        objectness, deltas = [], []
        for x in features:
            for conv in self.convs:
                x = F.relu(conv(x))
            objectness.append(_by_cell(self.objectness(x), 1).squeeze(-1))
            deltas.append(_by_cell(self.deltas(x), 4))
        return objectness, deltas

    @torch.no_grad()
    def _propose(
        self, objectness: list[Tensor], deltas: list[Tensor], anchors: list[Tensor], sizes: list[tuple[int, int]]
    ) -> list[Tensor]:
        limit, boxes, scores = self.pre_nms_top_n[self.training], [], []
        slots = min(limit, max(logits.shape[1] for logits in objectness))
        for logits, delta, anchor in zip(objectness, deltas, anchors, strict=True):
            best, index = logits.float().topk(min(limit, logits.shape[1]), dim=1)
            chosen = delta.gather(1, index[..., None].expand(-1, -1, 4))
            box = decode_boxes(chosen.flatten(0, 1), anchor[index].flatten(0, 1), self.coder_weights).view_as(chosen)
            box = torch.stack([clip_boxes_to_image(one, size) for one, size in zip(box, sizes, strict=True)])
            large = (box[..., 2:] - box[..., :2] >= self.min_size).all(dim=-1)
            empty = slots - best.shape[1]  # a level may have fewer anchors
            boxes.append(F.pad(box, (0, 0, 0, empty)))
            scores.append(F.pad(torch.where(large, best, -torch.inf), (0, empty), value=-torch.inf))
        groups, ranks = (torch.stack(levels, dim=1).flatten(0, 1) for levels in (boxes, scores))  # [B * L, slots, ...]
        kept = suppress(groups, ranks, self.nms_thresh)
        ranks = torch.where(kept, ranks, -torch.inf).view(len(sizes), -1)
        best, index = ranks.topk(min(self.post_nms_top_n[self.training], ranks.shape[1]), dim=1)
        chosen = groups.view(len(sizes), -1, 4).gather(1, index[..., None].expand(-1, -1, 4))
        return trimmed(chosen, best > -torch.inf)

    def _losses(self, features: list[Tensor], anchors: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        boxes = [target["boxes"] for target in targets]
        match = match_batch(self.matcher, boxes, [anchors] * len(boxes))
        index, filled = self.sampler(match)
        slot, real = occupied(filled)
        images, anchor, match = slot // index.shape[1], index.flatten()[slot], match.gather(1, index).flatten()[slot]
        logits, deltas = self._predict_at(features, anchor, images)
        positive = real & (match > 0)
        objectness = F.binary_cross_entropy_with_logits(
            logits.float(), positive.float(), weight=real.float(), reduction="sum"
        )
        row, regressed = occupied(positive)
        box_loss = box_regression_loss(
            self.box_loss,
            deltas[row],
            references=anchors[anchor[row]],
            boxes=numbered(boxes)[match[row].clamp(min=0)],
            weights=self.coder_weights,
            beta=self.smooth_l1_beta,
            real=regressed,
        )
        count = (real if self.box_loss_normalizer == "sampled" else positive).sum().clamp(min=1)
        return {"loss_objectness": objectness / real.sum().clamp(min=1), "loss_rpn_box_reg": box_loss / count}

    def _predict_at(self, features: list[Tensor], anchors: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Objectness [S] and deltas [S, 4] of some anchors, from the cells around each and no others.

        The numbers are those of `predict`. Where a few hundred anchors of 100,000 enter a loss, the convolutions
        over whole maps need no backward pass.

        Args:
            features: As in `predict`.
            anchors: int64 [S], their numbers in the order of the levels.
            images: int64 [S], the picture of each.
        """
        cells = to_cells(features)
        per_image = cells.shapes.prod(dim=1).cumsum(dim=0)
        cell, kind = anchors // self.anchors.num_anchors, anchors % self.anchors.num_anchors
        level = torch.bucketize(cell, per_image, right=True)
        height, width = cells.shapes[level].unbind(dim=1)
        place = cell - (per_image[level] - height * width)
        reach = torch.arange(-len(self.convs), len(self.convs) + 1, device=cell.device)
        row = (place // width)[:, None, None] + reach[:, None]
        column = (place % width)[:, None, None] + reach
        height, width = height[:, None, None], width[:, None, None]
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        index = cells.first[level][:, None, None] + (images[:, None, None] * height + row) * width + column
        x = F.embedding(torch.where(inside, index, 0), cells.rows).permute(0, 3, 1, 2)
        inside = inside[:, None]
        for conv in cast(Iterable[nn.Conv2d], self.convs):
            x = F.relu(F.conv2d(torch.where(inside, x, 0), conv.weight, conv.bias))  # zero padding, as in `predict`
            inside = inside[..., 1:-1, 1:-1]
        chosen = torch.arange(len(kind), device=kind.device)
        logits = self.objectness(x).flatten(1)[chosen, kind]
        return logits, self.deltas(x).flatten(1).unflatten(1, (-1, 4))[chosen, kind]


def _by_cell(prediction: Tensor, channels: int) -> Tensor:
    """[B, A * channels, H, W] -> [B, H * W * A, channels], the order of the anchors."""
    batch, _, height, width = prediction.shape
    prediction = prediction.view(batch, -1, channels, height, width).permute(0, 3, 4, 1, 2)
    return prediction.reshape(batch, -1, channels)

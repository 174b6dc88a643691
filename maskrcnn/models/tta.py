"""Test-time augmentation: one set of detections from several views of each picture.

A view is the picture at a size of its own, as it is or mirrored. The scheme is that of He et al. 2017, appendix
"Enhanced Detection Results on COCO": the box candidates of all views enter one NMS per class; the masks of what is
left are predicted in every view, and their probabilities averaged.

images      list of B tensors [3, h, w], as they come from their files
candidates  list of B dicts: boxes [N, 4] in pixels of a view, scores [N], labels [N]
detections  list of B dicts: boxes [D, 4], labels [D], scores [D], mask_probs [D, M, M]
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.ops.boxes import flip_boxes, scale_boxes


@dataclass(frozen=True)
class _View:
    """What the model makes of a batch that is resized, and mirrored or not."""

    flipped: bool
    sizes: list[tuple[int, int]]
    features: list[Tensor]
    candidates: list[dict[str, Tensor]]

    def boxes_of(self, other: "_View", index: int) -> Tensor:
        """Where the candidates that another view has of a picture lie in this one."""
        size = self.sizes[index]
        boxes = scale_boxes(other.candidates[index]["boxes"], old_size=other.sizes[index], new_size=size)
        return clip_boxes_to_image(flip_boxes(boxes, size[1]) if other.flipped != self.flipped else boxes, size)


class AugmentedMaskRCNN(nn.Module):
    """Predicts as a Mask R-CNN does, from several views of each picture.

    A view costs as much as a prediction. The features of all views of a batch are in memory together.

    Args:
        model: The network.
        flip: Whether each size is seen mirrored, too.
        scales: Sizes of the views, as factors of the model's `input.min_size` and `input.max_size`.
    """

    def __init__(self, *, model: MaskRCNN, flip: bool = True, scales: Sequence[float] = (1.0,)) -> None:
        super().__init__()
        if not scales or min(scales) <= 0 or len(set(scales)) < len(scales):
            raise ValueError(f"scales must be one or more different numbers above 0, got {list(scales)}")
        self.model = model
        self.flip = flip
        self.scales = tuple(scales)

    @property
    def paste(self) -> str:
        """How a mask is laid into the picture, see `ops.masks`."""
        return self.model.paste

    @torch.no_grad()
    def predict(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Detections in pixels of the given pictures, best first."""
        mirrored = (False, True) if self.flip else (False,)
        views = [self._view(images, scale, flipped) for scale in self.scales for flipped in mirrored]
        detections, in_views = [], []  # boxes of the detections in each view, by picture
        for index, image in enumerate(images):
            found = [view.candidates[index] for view in views]
            scores, labels = (torch.cat([candidates[name] for candidates in found]) for name in ("scores", "labels"))
            united = [torch.cat([view.boxes_of(other, index) for other in views]) for view in views]
            keep = self.model.roi_heads.select(united[0], scores, labels)
            in_views.append([boxes[keep] for boxes in united])
            original = (image.shape[-2], image.shape[-1])
            boxes = scale_boxes(united[0][keep], old_size=views[0].sizes[index], new_size=original)
            detections.append({"boxes": boxes, "scores": scores[keep], "labels": labels[keep]})
        classes = [detection["labels"] for detection in detections]
        masks = [self._masks(view, boxes, classes) for view, *boxes in zip(views, *in_views, strict=True)]
        for detection, seen in zip(detections, zip(*masks, strict=True), strict=True):
            detection["mask_probs"] = torch.stack(seen).mean(dim=0)
        return detections

    def _view(self, images: list[Tensor], scale: float, flipped: bool) -> _View:
        model = self.model
        batch = model.input.prepare([image.flip(-1) for image in images] if flipped else images, scale=scale)
        features = model.features(batch)
        proposals, _ = model.rpn(features, batch)
        sizes = [model.input.resized_shape(image, scale=scale) for image in images]  # a letterbox is larger
        return _View(flipped, sizes, features, model.roi_heads.candidates(features, proposals, batch.sizes))

    def _masks(self, view: _View, boxes: list[Tensor], labels: list[Tensor]) -> list[Tensor]:
        """Of the boxes [D, 4] that each picture has in the view: its masks [D, M, M], as the picture itself lies."""
        masks = self.model.roi_heads.mask_probs(view.features, boxes, labels)
        return [mask.flip(-1) for mask in masks] if view.flipped else masks

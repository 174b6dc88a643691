"""What the tests of exported models share."""

import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torchvision.ops import box_iou

from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.ops.masks import masks_to_rle

Detections = list[dict[str, Tensor]]


@torch.no_grad()
def sharpen(model: MaskRCNN) -> MaskRCNN:
    """Scale random predictions up, so that scores and boxes differ by more than rounding."""
    model.rpn.objectness.weight.mul_(30)
    model.rpn.deltas.weight.mul_(5)
    for head in model.roi_heads.box_heads:
        head.scores.weight.mul_(4)
    model.roi_heads.mask_head.logits.weight.mul_(5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def assert_same_detections(
    got: Detections, expected: Detections, images: list[Tensor], *, paste: str, pixels: float = 0.1, iou: float = 0.99
) -> None:
    """Each has one of its class and place, its box within `pixels`, its mask above `iou` but for two pixels."""
    assert len(got) == len(expected) == len(images)
    for ours, theirs, image in zip(got, expected, images, strict=True):
        assert len(ours["boxes"]) == len(theirs["boxes"])
        if not len(ours["boxes"]):
            continue
        size = (image.shape[-2], image.shape[-1])
        alike = box_iou(theirs["boxes"], ours["boxes"]).nan_to_num()  # cut to a picture, a box may lose its area
        alike -= 2.0 * (theirs["labels"][:, None] != ours["labels"])
        alike -= (theirs["scores"][:, None] - ours["scores"]).abs()  # or become another's equal
        partner = alike.argmax(dim=1)
        assert torch.equal(partner.sort().values, torch.arange(len(partner)))
        assert torch.equal(ours["labels"][partner], theirs["labels"])
        torch.testing.assert_close(ours["boxes"][partner], theirs["boxes"], atol=pixels, rtol=0)
        torch.testing.assert_close(ours["scores"][partner], theirs["scores"], atol=1e-4, rtol=0)
        assert (ours["scores"].diff() <= 0).all()
        torch.testing.assert_close(ours["mask_probs"][partner], theirs["mask_probs"], atol=1e-3, rtol=0)
        # In the same boxes: where corners are cut to whole pixels, the last digit may move a mask by one.
        masks = [
            masks_to_rle(probs, theirs["boxes"], size=size, paste=paste)
            for probs in (ours["mask_probs"][partner], theirs["mask_probs"])
        ]
        for one, other in zip(*masks, strict=True):
            union = coco_mask.area(coco_mask.merge([one, other]))
            assert coco_mask.area(coco_mask.merge([one, other], intersect=True)) >= iou * union - 2  # px

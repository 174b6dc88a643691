"""Whether both sides do the same: their detections on the same pictures, with the same random weights."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.ops import box_iou

SAME = 0.9  # IoU from which two detections of one class are the same

Found = list[dict[str, np.ndarray]]  # boxes, scores and labels of each picture


def coarse_pictures(count: int, size: tuple[int, int], *, seed: int) -> list[Tensor]:
    """Pictures [3, height, width] in 0..1 whose regions differ, unlike those of noise."""
    fields = torch.rand(count, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
    return list(nn.functional.interpolate(fields, size=size, mode="bilinear", align_corners=False))


@torch.no_grad()
def sharpen(model: TorchvisionMaskRCNN, pictures: list[Tensor]) -> None:
    """Scale random weights so that the network is sure of many different classes on pictures like these."""
    for name, norm in model.backbone.body.named_modules():
        if name.endswith("bn3"):
            norm.weight.fill_(0.25)  # or the sums of the residual blocks grow and grow
    model.rpn.head.cls_logits.weight.mul_(30)
    seen: list[Tensor] = []
    hook = model.roi_heads.box_head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model.eval()(pictures)
    hook.remove()
    centre = seen[0].mean(dim=0)
    predictor = model.roi_heads.box_predictor
    for layer, deviation in ((predictor.cls_score, 3.0), (predictor.bbox_pred, 0.5)):
        layer.weight.mul_(deviation / ((seen[0] - centre) @ layer.weight.T).std())
        layer.bias.copy_(-layer.weight @ centre)


def arrays(detections: list[dict[str, Tensor]]) -> Found:
    """What is compared of them."""
    return [{name: one[name].float().cpu().numpy() for name in ("boxes", "scores", "labels")} for one in detections]


def compare(ours: Found, theirs: Found) -> dict[str, Any]:
    """How far the detections are apart.

    Returns:
        "detections" and "peer_detections": their numbers; "matched": the share, of the larger number, that has a
        detection of the same class with an IoU of at least `SAME` on the other side; "max_box_difference" in pixels
        and "max_score_difference" of those, None where nothing is matched.
    """
    boxes, scores = [], []
    for one, other in zip(ours, theirs, strict=True):
        overlap = box_iou(torch.from_numpy(one["boxes"]), torch.from_numpy(other["boxes"])).numpy()
        overlap[one["labels"][:, None] != other["labels"]] = 0
        while overlap.size and overlap.max() >= SAME:
            row, column = np.unravel_index(overlap.argmax(), overlap.shape)
            boxes.append(np.abs(one["boxes"][row] - other["boxes"][column]).max())
            scores.append(abs(one["scores"][row] - other["scores"][column]))
            overlap[row], overlap[:, column] = 0, 0
    counts = [sum(len(each["labels"]) for each in side) for side in (ours, theirs)]
    return {
        "detections": counts[0],
        "peer_detections": counts[1],
        "matched": len(boxes) / max(*counts, 1),
        "max_box_difference": float(max(boxes)) if boxes else None,
        "max_score_difference": float(max(scores)) if scores else None,
    }

"""What was found in one picture."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from maskrcnn.evaluation.visualize import draw_instances
from maskrcnn.ops.masks import RLE


@dataclass(frozen=True, eq=False)
class Result:
    """The N instances found in one picture, best first.

    Attributes:
        size: (height, width) of the picture in pixels.
        boxes: float32 [N, 4], x1, y1, x2, y2 in pixels of the picture.
        scores: float32 [N] in 0..1.
        labels: int64 [N] in 1..K.
        names: Class name of each instance.
        category_ids: Category id of each instance, as in the data set that the model was trained on.
        rles: Mask of each instance as COCO's compressed run-length encoding, `counts` a str: ready for JSON.
    """

    size: tuple[int, int]
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: list[str]
    category_ids: list[int]
    rles: list[RLE]

    def __len__(self) -> int:
        """The number of instances."""
        return len(self.rles)

    @property
    def masks(self) -> np.ndarray:
        """Whole masks, bool [N, H, W]. Decoded at each use: 100 of them on 12 megapixels take 1.2 GB."""
        masks = np.empty((len(self), *self.size), dtype=bool)
        for mask, rle in zip(masks, self.rles, strict=True):
            mask[:] = coco_mask.decode(rle)
        return masks

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """The instances as entries of a COCO results file."""
        return [
            {
                "image_id": image_id,
                "category_id": category_id,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
                "segmentation": rle,
            }
            for (x1, y1, x2, y2), category_id, score, rle in zip(
                self.boxes.tolist(), self.category_ids, self.scores.tolist(), self.rles, strict=True
            )
        ]

    def draw(self, image: np.ndarray) -> np.ndarray:
        """Masks, boxes, names and scores over the picture, uint8 [H, W, 3] RGB; a small picture is enlarged."""
        return draw_instances(image, boxes=self.boxes, masks=self.rles, names=self.names, scores=self.scores.tolist())

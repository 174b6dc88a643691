"""From detections to COCO results."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from maskrcnn.errors import UserError
from maskrcnn.ops.masks import masks_to_rle


def to_results(
    detections: dict[str, Tensor],
    *,
    image_id: int,
    size: tuple[int, int],
    category_ids: Sequence[int | None],
    paste: str,
) -> list[dict[str, Any]]:
    """COCO results of one image.

    Args:
        detections: boxes [D, 4], labels [D], scores [D], mask_probs [D, M, M].
        image_id: The image they belong to.
        size: Its (height, width).
        category_ids: Category of each label 1..K; detections whose category is None are dropped.
        paste: How masks are laid into the picture, see `ops.masks`.
    """
    results = []
    masks = masks_to_rle(detections["mask_probs"], detections["boxes"], size=size, paste=paste)
    for box, label, score, mask in zip(
        detections["boxes"].tolist(),
        detections["labels"].tolist(),
        detections["scores"].tolist(),
        masks,
        strict=True,
    ):
        category_id = category_ids[label - 1]
        if category_id is None:
            continue
        x1, y1, x2, y2 = box
        results.append(
            {
                "image_id": image_id,
                "category_id": category_id,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
                "segmentation": {"size": mask["size"], "counts": mask["counts"].decode()},
            }
        )
    return results


def match_categories(known: list[dict[str, Any]], wanted: list[dict[str, Any]], *, source: str) -> list[int | None]:
    """The data set's category id for each label of a model, None where the data set lacks it.

    Categories are matched by name. A model without class names fits a data set of as many classes.

    Args:
        known: {"id", "name"} of the model's labels 1..K.
        wanted: {"id", "name"} of the data set.
        source: What the model came from, for messages.

    Raises:
        UserError: The model does not know one of the data set's categories.
    """
    names = [category["name"] for category in known]
    numbers = [str(label) for label in range(1, len(known) + 1)]
    if names == [category["name"] for category in wanted] or (names == numbers and len(known) == len(wanted)):
        return [category["id"] for category in wanted]
    missing = [category["name"] for category in wanted if category["name"] not in names]
    if missing:
        raise UserError(
            f"{source} knows {len(known)} classes ({_some(names)}), the data set has {len(wanted)}, of which "
            f"{len(missing)} are unknown to it ({_some(missing)}): choose the data set it was trained for"
        )
    id_of = {category["name"]: category["id"] for category in wanted}
    return [id_of.get(name) for name in names]


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")

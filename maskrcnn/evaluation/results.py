"""COCO results: made of detections, or read from a file."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from faster_coco_eval import mask_api_new_cpp
from torch import Tensor

from maskrcnn.errors import UserError
from maskrcnn.evaluation.coco import KINDS
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


def read_results(path: Path, ground_truth: dict[str, Any]) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Reads and checks a COCO results file.

    Returns:
        The results and the kinds they can be scored for: ("box",), ("mask",) or both.

    Raises:
        UserError: the file can't be read or an entry is wrong; names the file and the entry (from 0).
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}); give a COCO results file") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); give a COCO results file") from error
    if not isinstance(results, list):
        raise UserError(f"{path}: should be a list of COCO results, is a JSON {type(results).__name__}")
    sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    categories = {category["id"] for category in ground_truth["categories"]}
    kinds = tuple(KINDS)
    for index, entry in enumerate(results):
        where = f"{path}: entry {index}"
        found = _check_result(entry, where, sizes, categories)
        if index and found != kinds:
            raise UserError(f"{where} has not the same of 'bbox' and 'segmentation' as the entries before it")
        kinds = found
    return results, kinds


def _check_result(entry: Any, where: str, sizes: dict[int, tuple[int, int]], categories: set[int]) -> tuple[str, ...]:
    """Checks one entry of a results file, the one that messages call ``where``.

    Returns:
        The kinds it can be scored for.
    """
    if not isinstance(entry, dict):
        raise UserError(f"{where} should be a COCO result, an object with an image_id, a category_id and a score")
    for key in ("image_id", "category_id", "score"):
        if key not in entry:
            raise UserError(f"{where} has no {key!r}")
    for key, known in (("image_id", sizes), ("category_id", categories)):
        if not isinstance(entry[key], int) or entry[key] not in known:
            raise UserError(f"{where} has an unknown {key}, the ground truth has no {entry[key]!r}")
    if not _is_finite(entry["score"]):
        raise UserError(f"{where} has a score that is not a finite number: {entry['score']!r}")
    if "bbox" in entry:
        _check_box(entry["bbox"], where)
    if "segmentation" in entry:
        _check_mask(entry["segmentation"], where, *sizes[entry["image_id"]])
    kinds = tuple(kind for kind, field in (("box", "bbox"), ("mask", "segmentation")) if field in entry)
    if not kinds:
        raise UserError(f"{where} has neither 'bbox' nor 'segmentation'")
    return kinds


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_box(box: Any, where: str) -> None:
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        raise UserError(f"{where} has a bbox that is not four finite numbers [x, y, width, height]")


def _check_mask(rle: Any, where: str, height: int, width: int) -> None:
    if not isinstance(rle, dict) or not isinstance(rle.get("counts"), str) or "size" not in rle:
        raise UserError(f"{where} has a segmentation that is not a compressed RLE (size and counts)")
    if rle["size"] != [height, width]:
        raise UserError(f"{where} has an RLE of size {rle['size']!r}, its image is [{height}, {width}]")
    try:
        runs = mask_api_new_cpp.toUncompressedRLE([rle])[0]["counts"]
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{where} has a malformed RLE ({error})") from error
    # With too few pixels the library's IoU would never end.
    if sum(runs) != height * width:
        raise UserError(f"{where} has a malformed RLE ({sum(runs)} pixels, its image has {height * width})")


def remarks(
    results: list[dict[str, Any]], ground_truth: dict[str, Any], image_ids: Sequence[int], *, most: int = 100
) -> list[str]:
    """What is odd about results, and how it is scored; a line each.

    Args:
        results: COCO results.
        ground_truth: A parsed COCO instances file.
        image_ids: The images that are scored.
        most: Detections of a class in an image that are scored.
    """
    scored = set(image_ids)
    found = Counter((result["image_id"], result["category_id"]) for result in results)
    counted = {
        annotation["image_id"]
        for annotation in ground_truth["annotations"]
        if annotation["image_id"] in scored and not annotation.get("iscrowd") and not annotation.get("ignore")
    }
    without = len(counted - {image_id for image_id, _ in found})
    crowded = len({image_id for (image_id, _), count in found.items() if count > most})
    lines = []
    if not counted:
        lines.append("no image has an instance to find, so every AP is -1")
    elif not results:
        lines.append("no detections at all, so every instance is missed")
    elif without:
        lines.append(f"no detections in {without} of {len(counted)} images with instances, so these are missed")
    if crowded:
        where = f"{crowded} image{'s' * (crowded != 1)}"
        lines.append(f"more than {most} detections of a class in {where}: the best {most} count")
    return lines

"""Pictures that go wrong, with what was detected beside what is annotated."""

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn.data.split import Split
from maskrcnn.errors import UserError
from maskrcnn.evaluation.diagnosis import Failure
from maskrcnn.evaluation.visualize import draw_results, draw_truth

_SIDE = 640  # px of the longer side of a JPEG, at most


@dataclass(frozen=True)
class Shown:
    """A picture in the report.

    Attributes:
        name: Its file.
        failure: What went wrong.
        found: JPEG of what was detected, or None where the picture cannot be read.
        truth: JPEG of what is annotated, likewise.
    """

    name: str
    failure: Failure
    found: bytes | None = None
    truth: bytes | None = None


def draw_failures(
    failures: Sequence[Failure], split: Split, results: list[dict[str, Any]], thresholds: dict[int, float]
) -> list[Shown]:
    """Draw pictures with the detections that count.

    Args:
        failures: The pictures.
        split: Holds them.
        results: COCO results of the split.
        thresholds: By category id, the score from which on detections count.
    """
    position = {image_id: index for index, image_id in enumerate(split.image_ids)}
    of_picture: dict[int, list[dict[str, Any]]] = defaultdict(list)
    wanted = {failure.image_id for failure in failures}
    for result in results:
        if result["image_id"] in wanted and result["score"] >= thresholds.get(result["category_id"], np.inf):
            of_picture[result["image_id"]].append(result)
    shown = []
    for failure in failures:
        index = position[failure.image_id]
        name = split.dataset.annotations.file_name(int(split.positions[index]))
        try:
            sample = split[index]
        except UserError:  # a results file is scored without pictures, too
            shown.append(Shown(name, failure))
            continue
        found = draw_results(sample, of_picture[failure.image_id], split.categories)
        shown.append(Shown(name, failure, _jpeg(found), _jpeg(draw_truth(sample, split.categories))))
    return shown


def _jpeg(drawing: np.ndarray) -> bytes:
    picture = Image.fromarray(drawing)
    picture.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=80, optimize=True)
    return file.getvalue()

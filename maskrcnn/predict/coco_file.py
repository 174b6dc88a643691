"""Predictions as a COCO file, written while they are made."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from pycocotools import mask as coco_mask

from maskrcnn.predict.result import Result


class CocoFile:
    """A JSON file of `categories`, `annotations` (each with its `score`) and `images`, as pycocotools reads it.

    Image ids count from 1 in the order of the pictures. What was written when a run is interrupted is a whole file.

    Args:
        path: The file.
        categories: {"id", "name"} of each label.
    """

    def __init__(self, path: Path, *, categories: list[dict[str, Any]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8")
        self._file.write(f'{{"categories": {json.dumps(categories)},\n"annotations": [')
        self._images: list[dict[str, Any]] = []
        self._count = 0

    def __enter__(self) -> "CocoFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.write(f'],\n"images": {json.dumps(self._images)}}}\n')
        self._file.close()

    def write(self, result: Result, **about: Any) -> None:
        """Add a picture.

        Args:
            result: What was found in it.
            about: More entries of its image, such as its file_name.
        """
        height, width = result.size
        image_id = len(self._images) + 1
        lines = []
        for entry in result.to_coco(image_id):
            self._count += 1
            comma = "," if self._count > 1 else ""
            more = {"id": self._count, "area": int(coco_mask.area(entry["segmentation"])), "iscrowd": 0}
            lines.append(f"{comma}\n{json.dumps(entry | more)}")
        self._file.write("".join(lines))
        self._images.append({"id": image_id, **about, "width": width, "height": height})

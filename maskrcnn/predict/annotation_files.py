"""Results as files of annotation tools: a model's findings as a first draft."""

import json
import os
from pathlib import Path
from typing import Any

from maskrcnn.predict.polygons import join_polygons, mask_to_polygons
from maskrcnn.predict.result import Result

FORMATS = ("yolo", "labelme")


def yolo_lines(result: Result) -> list[str]:
    """A line for each instance: its class from 0, then x and y of its polygon as shares of width and height."""
    height, width = result.size
    lines = []
    for label, rle in zip(result.labels.tolist(), result.rles, strict=True):
        parts = mask_to_polygons(rle)
        if parts:
            points = (join_polygons(parts) / (width, height)).ravel()
            lines.append(" ".join([str(label - 1), *(f"{value:.6f}".rstrip("0").rstrip(".") for value in points)]))
    return lines


def labelme_content(result: Result, *, image_path: str) -> dict[str, Any]:
    """What a LabelMe file holds: a polygon for each part, those of one instance with the same `group_id`.

    Args:
        result: What was found in the picture.
        image_path: The picture, relative to the folder of the file.
    """
    height, width = result.size
    shapes = []
    for number, (name, score, rle) in enumerate(zip(result.names, result.scores.tolist(), result.rles, strict=True)):
        parts = mask_to_polygons(rle)
        shapes += [
            {
                "label": name,
                "points": part.tolist(),
                "group_id": number if len(parts) > 1 else None,
                "description": f"score {score:.3f}",
                "shape_type": "polygon",
                "flags": {},
            }
            for part in parts
        ]
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def write_yolo(folder: Path, name: str, result: Result) -> None:
    """Write `labels/<name>.txt`; the folder also needs the class names, see `write_yolo_classes`."""
    path = folder / "labels" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in yolo_lines(result)), encoding="utf-8")


def write_yolo_classes(folder: Path, class_names: list[str]) -> None:
    """Write `classes.txt`, a name on each line from class 0 on."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")


def write_labelme(folder: Path, name: str, result: Result, picture: Path) -> None:
    """Write `<name>.json`, which points at the picture where it is."""
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    image_path = Path(os.path.relpath(picture.resolve(), path.parent.resolve())).as_posix()
    path.write_text(json.dumps(labelme_content(result, image_path=image_path), indent=1), encoding="utf-8")

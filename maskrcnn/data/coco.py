"""COCO instance annotations: read, checked, and kept in flat arrays.

A Python list of annotations that is copied into worker processes grows there page by page (reading an
object counts its references, which writes to it); arrays do not.
"""

import json
import logging
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import mask_api_new_cpp
from pycocotools import mask as coco_mask

from maskrcnn.data.images import read_image
from maskrcnn.data.sample import Outline, Sample
from maskrcnn.errors import UserError

log = logging.getLogger(__name__)

Rings = list[list[float]]

# What every entry of a section must have.
_FIELDS: dict[str, tuple[str, dict[str, type]]] = {
    "images": ("image", {"id": int, "file_name": str, "height": int, "width": int}),
    "categories": ("category", {"id": int, "name": str}),
    "annotations": ("annotation", {"image_id": int, "category_id": int, "bbox": list}),
}
_TYPE_NAMES = {int: "an integer", str: "a string", list: "a list"}

# A polygon that reaches farther, in pixels, is an error; pycocotools would crash on it without a word.
_FARTHEST = 1e5


@dataclass(frozen=True)
class CocoAnnotations:
    """A COCO instances file in arrays; N images, M instances sorted by image, R rings of polygons.

    Attributes:
        path: The annotation file.
        categories: {"id", "name"} of each label 1..K, by ascending id.
        image_ids: int64 [N].
        file_names: unicode [N].
        sizes: int64 [N, 2], height and width.
        first_instance: int64 [N + 1]; image i has instances first_instance[i] to first_instance[i + 1].
        labels: int64 [M], 1..K.
        first_ring: int64 [M + 1]; an instance without rings is run-length encoded.
        first_point: int64 [R + 1].
        points: float32 [first_point[-1], 2].
        first_byte: int64 [M + 1].
        rle_bytes: uint8 [first_byte[-1]], compressed COCO run lengths.
    """

    path: Path
    categories: list[dict[str, Any]]
    image_ids: np.ndarray
    file_names: np.ndarray
    sizes: np.ndarray
    first_instance: np.ndarray
    labels: np.ndarray
    first_ring: np.ndarray
    first_point: np.ndarray
    points: np.ndarray
    first_byte: np.ndarray
    rle_bytes: np.ndarray

    def outline(self, instance: int, size: tuple[int, int]) -> Outline:
        """What instance 0..M-1 covers in its picture of `size` (height, width)."""
        rings = range(self.first_ring[instance], self.first_ring[instance + 1])
        if rings:
            return Outline(tuple(self.points[self.first_point[r] : self.first_point[r + 1]] for r in rings))
        counts = self.rle_bytes[self.first_byte[instance] : self.first_byte[instance + 1]].tobytes()
        return Outline(bitmap=coco_mask.decode({"size": list(size), "counts": counts}))


class CocoDataset:
    """Samples of a COCO instances file.

    Args:
        annotations: The parsed file.
        images: Folder of the picture files.
        indices: Which of the file's images, by position.
    """

    def __init__(self, *, annotations: CocoAnnotations, images: Path, indices: np.ndarray) -> None:
        self.annotations = annotations
        self.images = images
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> tuple[np.ndarray, int]:
        """RGB uint8 [H, W, 3] and image id.

        Raises:
            UserError: The file is missing, damaged, or not of the annotated size.
        """
        position = self.indices[index]
        ann = self.annotations
        image_id = int(ann.image_ids[position])
        path = self.images / str(ann.file_names[position])
        image = read_image(path, image_id=image_id)
        height, width = ann.sizes[position]
        if image.shape[:2] != (height, width):
            raise UserError(
                f"{path} (image id {image_id}) is {image.shape[1]} x {image.shape[0]} pixels, but {ann.path} "
                f"says {width} x {height}: correct width and height there"
            )
        return image, image_id

    def __getitem__(self, index: int) -> Sample:
        image, image_id = self.image(index)
        position = self.indices[index]
        first, last = self.annotations.first_instance[position : position + 2]
        outlines = [self.annotations.outline(i, image.shape[:2]) for i in range(first, last)]
        return Sample(image, outlines, self.annotations.labels[first:last].copy(), image_id)


def read_instances(path: Path) -> dict[str, Any]:
    """Parse a COCO instances file and check what every later step relies on.

    Every annotation has a `segmentation` afterwards, an empty list where the file has none.

    Raises:
        UserError: The file is missing, not JSON, lacks a section or a field, or refers to unknown ids.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such annotation file; set data.root, data.train_annotations, data.val_annotations")
    try:
        content = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    lists = [key for key in _FIELDS if isinstance(content, dict) and isinstance(content.get(key), list)]
    missing = [key for key in _FIELDS if key not in lists]
    if missing:
        raise UserError(f"{path}: not a COCO instances file, it has no list {' and no list '.join(missing)}")
    for section in _FIELDS:
        _check_fields(path, content[section], section)
    if not content["categories"]:
        raise UserError(f"{path}: categories is empty; there is nothing to learn")
    _check_images(path, content["images"])
    _check_ids(path, content)
    for entry in content["annotations"]:
        if not _are_numbers(entry["bbox"]) or len(entry["bbox"]) != 4:
            where = f"{path}: annotation {entry.get('id')}"
            raise UserError(f"{where} has bbox {entry['bbox']}; it must be four numbers x, y, width, height")
        entry["segmentation"] = entry.get("segmentation") or []
    return content


def _check_fields(path: Path, entries: list[Any], section: str) -> None:
    kind, fields = _FIELDS[section]
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise UserError(f"{path}: {kind} number {i} is not an object but {entry!r:.40}")
        for field, expected in fields.items():
            if isinstance(entry.get(field), expected):
                continue
            name = f"{kind} {entry['id']}" if "id" in entry else f"{kind} number {i}"
            if field not in entry:
                raise UserError(f"{path}: {name} has no {field}")
            raise UserError(f"{path}: {name} has {field} {entry[field]!r:.40}, not {_TYPE_NAMES[expected]}")


def _check_images(path: Path, images: list[dict[str, Any]]) -> None:
    for image in images:
        width, height = image["width"], image["height"]
        if width < 1 or height < 1:
            raise UserError(
                f"{path}: image {image['id']} is {width} x {height} pixels; width and height must be positive"
            )


def _check_ids(path: Path, content: dict[str, Any]) -> None:
    """Images and categories have ids of their own, and annotations refer to them."""
    for key, section in (("image_id", "images"), ("category_id", "categories")):
        counts = Counter(entry["id"] for entry in content[section])
        if counts and (common := counts.most_common(1)[0])[1] > 1:
            raise UserError(f"{path}: {section} holds id {common[0]} {common[1]} times; ids must be unique")
        for entry in content["annotations"]:
            if entry[key] not in counts:
                raise UserError(
                    f"{path}: annotation {entry.get('id')} has {key} {entry[key]}, which is not in {section}"
                )


def _are_numbers(values: list[Any]) -> bool:
    """Whether all are finite numbers."""
    try:
        return math.isfinite(sum(values))
    except TypeError:
        return False


def index_instances(path: Path, content: dict[str, Any], *, use_crowd: bool) -> CocoAnnotations:
    """Put a parsed instances file into arrays.

    Crowd annotations are left out unless `use_crowd`; boxes without area and boxes outside of their picture
    are left out, counted and reported in one line.

    Raises:
        UserError: A segmentation is empty or malformed.
    """
    categories = sorted(
        ({"id": entry["id"], "name": entry["name"]} for entry in content["categories"]),
        key=lambda c: c["id"],
    )
    label_of = {category["id"]: label for label, category in enumerate(categories, start=1)}
    images = content["images"]
    position_of = {image["id"]: i for i, image in enumerate(images)}
    of_image: list[list[tuple[int, Rings, bytes]]] = [[] for _ in images]
    rejected: dict[str, list[Any]] = {}
    for entry in content["annotations"]:
        position = position_of[entry["image_id"]]
        reason = _reason_to_reject(entry["bbox"], images[position])
        left_out = bool(entry.get("iscrowd", 0)) and not use_crowd
        if reason:
            rejected.setdefault(reason, []).append(entry.get("id"))
        elif entry["segmentation"] or not left_out:
            segmentation = _segmentation(path, entry, images[position])
            if not left_out:
                of_image[position].append((label_of[entry["category_id"]], *segmentation))
    for reason, ids in rejected.items():
        log.warning("%s: %d annotations left out, their box %s (first: annotation %s)", path, len(ids), reason, ids[0])

    instances = [instance for of_one in of_image for instance in of_one]
    rings = [ring for _, of_one, _ in instances for ring in of_one]
    points = [np.asarray(ring, dtype=np.float32) for ring in rings]
    return CocoAnnotations(
        path=path,
        categories=categories,
        image_ids=np.array([image["id"] for image in images], dtype=np.int64),
        file_names=np.array([image["file_name"] for image in images], dtype=np.str_),
        sizes=np.array([[image["height"], image["width"]] for image in images], np.int64).reshape(-1, 2),
        first_instance=_starts([len(of_one) for of_one in of_image]),
        labels=np.array([label for label, _, _ in instances], dtype=np.int64),
        first_ring=_starts([len(of_one) for _, of_one, _ in instances]),
        first_point=_starts([len(ring) // 2 for ring in rings]),
        points=np.concatenate(points).reshape(-1, 2) if points else np.zeros((0, 2), np.float32),
        first_byte=_starts([len(counts) for _, _, counts in instances]),
        rle_bytes=np.frombuffer(b"".join(counts for _, _, counts in instances), dtype=np.uint8),
    )


def _reason_to_reject(box: list[float], image: dict[str, Any]) -> str | None:
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return "has no area"
    if x >= image["width"] or y >= image["height"] or x + width <= 0 or y + height <= 0:
        return "lies outside of the picture"
    return None


def _segmentation(path: Path, entry: dict[str, Any], image: dict[str, Any]) -> tuple[Rings, bytes]:
    """Polygon rings, or compressed run lengths."""
    where = f"{path}: annotation {entry.get('id')} (image id {entry['image_id']})"
    segmentation = entry["segmentation"]
    if not segmentation:
        raise UserError(f"{where} has no segmentation; Mask R-CNN learns from outlines, add one or remove it")
    if isinstance(segmentation, dict):
        return [], _run_lengths(where, segmentation, [image["height"], image["width"]])
    if not isinstance(segmentation, list):
        raise UserError(f"{where} has segmentation {segmentation!r:.40}, neither polygons nor run lengths")
    for ring in segmentation:
        if not isinstance(ring, list) or len(ring) < 6 or len(ring) % 2 or not _are_numbers(ring):
            raise UserError(f"{where} has a polygon that is not a list x1, y1, x2, y2, ... of at least 3 points")
        if max(ring) > _FARTHEST or min(ring) < -_FARTHEST:
            raise UserError(f"{where} has a polygon that reaches {max(map(abs, ring)):.3g} pixels far")
    return segmentation, b""


def _run_lengths(where: str, segmentation: dict[str, Any], size: list[int]) -> bytes:
    """Compressed run lengths, of a mask that is known to be whole."""
    if segmentation.get("size") != size:
        raise UserError(f"{where} has a run-length mask of size {segmentation.get('size')}, its picture has {size}")
    counts: Any = segmentation.get("counts")
    try:
        if isinstance(counts, list):
            counts = coco_mask.frPyObjects(segmentation, *size)["counts"].decode()
        runs = mask_api_new_cpp.toUncompressedRLE([{"size": size, "counts": counts}])[0]["counts"]
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{where} has a malformed run-length mask ({error})") from None
    if sum(runs) != size[0] * size[1]:
        raise UserError(f"{where} has run lengths that add up to {sum(runs)}, not to {size[0]} x {size[1]}")
    return counts.encode()


def _starts(counts: list[int]) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64))).astype(np.int64)

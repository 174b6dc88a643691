"""COCO-style entries one at a time: each is checked, its numbers go to flat arrays, and it is forgotten."""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faster_coco_eval import mask_api_new_cpp
from pycocotools import mask as coco_mask

# What every entry of a section must have.
_FIELDS: dict[str, dict[str, type]] = {
    "image": {"id": int, "file_name": str, "height": int, "width": int},
    "category": {"id": int, "name": str},
    "annotation": {"image_id": int, "category_id": int, "bbox": list},
}
_TYPE_NAMES = {int: "an integer", str: "a string", list: "a list"}

_LARGEST_INTEGER = 2**63 - 1
# A polygon that reaches farther, in pixels, is an error; pycocotools would crash on it without a word.
_FARTHEST = 1e5


@dataclass(frozen=True)
class Problem:
    """Something wrong with one entry.

    Attributes:
        message: One line that names the file and the entry, says what is wrong with it and what to do.
    """

    message: str


@dataclass(frozen=True)
class RunLengths:
    """A mask as compressed COCO run lengths; the default is none.

    Attributes:
        counts: The compressed text.
        size: Height and width of its picture.
        area: Pixels covered.
    """

    counts: bytes = b""
    size: tuple[int, int] = (0, 0)
    area: int = 0


class Entries:
    """The entries seen so far, in flat arrays: I images, A annotations in the order of the file.

    References between sections are checked when all are there, so that sections may come in any order.

    Args:
        source: The file, for messages.

    Attributes:
        problems: What is wrong with the entries that were refused.
        outline_problems: Row of an annotation whose outline was refused, and why; the rest of it was taken.
        refused: Ids of refused images and categories, by the key that refers to them.
    """

    def __init__(self, source: Path) -> None:
        self.source = source
        self.problems: list[Problem] = []
        self.outline_problems: list[tuple[int, Problem]] = []
        self.refused: dict[str, set[int]] = {"image_id": set(), "category_id": set()}

        self.num_categories = self.num_images = self.num_annotations = 0
        self.categories: list[dict[str, Any]] = []

        self.image_ids = array("q")
        self.sizes = array("q")  # height, width
        self.name_lengths = array("q")
        self.name_bytes = bytearray()
        self.void_lengths = array("q")
        self.void_bytes = bytearray()

        self.annotation_ids = array("q")
        self.has_id = bytearray()  # 0: the id is the position in the file + 1
        self.image_id_of = array("q")
        self.category_id_of = array("q")
        self.boxes = array("d")
        self.areas = array("d")  # not a number where there is none
        self.crowd = bytearray()
        self.difficult = bytearray()
        self.ring_counts = array("q")
        self.point_counts = array("q")  # of each ring
        self.points = array("d")
        self.rle_lengths = array("q")
        self.rle_bytes = bytearray()
        self.rle_sizes = array("q")  # height, width; 0, 0 without run lengths
        self.rle_areas = array("q")

    def add_category(self, entry: Any) -> None:
        """Take {"id", "name"}."""
        number = self.num_categories
        self.num_categories += 1
        if self._has_fields(entry, "category", number):
            self.categories.append({"id": int(entry["id"]), "name": entry["name"]})
        else:
            self._refuse(entry, "category_id")

    def add_image(self, entry: Any) -> None:
        """Take {"id", "file_name", "height", "width"} and, where there is one, "void": RLE."""
        number = self.num_images
        self.num_images += 1
        if not self._has_fields(entry, "image", number):
            self._refuse(entry, "image_id")
            return
        where, size = f"{self.source}: image {entry['id']}", (entry["height"], entry["width"])
        try:
            if min(size) < 1:
                raise _MalformedError(f"is {size[1]} x {size[0]} pixels; width and height must be positive")
            void = _run_lengths(entry["void"]) if entry.get("void") else RunLengths(size=size)
            if void.size != size:
                raise _MalformedError(f"has a void mask of size {list(void.size)}, it has {list(size)}")
        except _MalformedError as problem:
            self.problems.append(Problem(f"{where} {problem}"))
            self._refuse(entry, "image_id")
            return
        self.image_ids.append(entry["id"])
        self.sizes.extend(size)
        name = entry["file_name"].encode("utf-8", "surrogatepass")
        self.name_lengths.append(len(name))
        self.name_bytes += name
        self.void_lengths.append(len(void.counts))
        self.void_bytes += void.counts

    def add_annotation(self, entry: Any) -> None:
        """Take {"image_id", "category_id", "bbox"} and what there is of id, area, iscrowd, difficult, segmentation."""
        number = self.num_annotations
        self.num_annotations += 1
        if not self._has_fields(entry, "annotation", number):
            return
        box = entry["bbox"]
        if len(box) != 4 or not _are_near(box):
            where = f"{self.source}: {self._name(entry, 'annotation', number)}"
            what = "it must be four numbers x, y, width, height, in pixels"
            self.problems.append(Problem(f"{where} has bbox {box!r:.80}; {what}"))
            return
        try:
            rings, run_lengths = _outline(entry.get("segmentation"))
        except _MalformedError as problem:
            rings, run_lengths = [], RunLengths()
            where = f"{self._name(entry, 'annotation', number)} (image id {entry['image_id']})"
            row = len(self.annotation_ids)
            self.outline_problems.append((row, Problem(f"{self.source}: {where} {problem}")))

        has_id = _is_integer(entry.get("id"))
        self.annotation_ids.append(entry["id"] if has_id else number + 1)
        self.has_id.append(has_id)
        self.image_id_of.append(entry["image_id"])
        self.category_id_of.append(entry["category_id"])
        self.boxes.extend(box)
        area = entry.get("area")
        self.areas.append(area if _are_numbers([area]) else math.nan)
        self.crowd.append(bool(entry.get("iscrowd")))
        self.difficult.append(bool(entry.get("difficult")))
        self.ring_counts.append(len(rings))
        for ring in rings:
            self.point_counts.append(len(ring) // 2)
            self.points.extend(ring)
        self.rle_lengths.append(len(run_lengths.counts))
        self.rle_bytes += run_lengths.counts
        self.rle_sizes.extend(run_lengths.size)
        self.rle_areas.append(run_lengths.area)

    def _has_fields(self, entry: Any, kind: str, number: int) -> bool:
        """Whether all required fields are there and of their type; otherwise there is one more problem."""
        if not isinstance(entry, dict):
            self.problems.append(Problem(f"{self.source}: {kind} number {number} is not an object but {entry!r:.40}"))
            return False
        for field, expected in _FIELDS[kind].items():
            value = entry.get(field)
            if isinstance(value, expected) and (expected is not int or _is_integer(value)):
                continue
            where = f"{self.source}: {self._name(entry, kind, number)}"
            if field not in entry:
                self.problems.append(Problem(f"{where} has no {field}; add it or remove the {kind}"))
            else:
                what = f"{_TYPE_NAMES[expected]}{' of 64 bits' if isinstance(value, int) else ''}"
                self.problems.append(Problem(f"{where} has {field} {value!r:.40}, not {what}"))
            return False
        return True

    def _refuse(self, entry: Any, key: str) -> None:
        """Remember the id, so that not every annotation that refers to it is one more problem."""
        if isinstance(entry, dict) and _is_integer(entry.get("id")):
            self.refused[key].add(entry["id"])

    @staticmethod
    def _name(entry: dict[str, Any], kind: str, number: int) -> str:
        return f"{kind} {entry['id']!s:.40}" if "id" in entry else f"{kind} number {number}"


class _MalformedError(Exception):
    """What is wrong with an outline or a picture, to be said after its name."""


def _outline(segmentation: Any) -> tuple[Sequence[list[float]], RunLengths]:
    """Rings of polygons, or run lengths; neither for an annotation that has only a box.

    Raises:
        _MalformedError: It is no outline.
    """
    if not segmentation or segmentation == [[]]:
        return [], RunLengths()
    if isinstance(segmentation, dict):
        return [], _run_lengths(segmentation)
    if not isinstance(segmentation, list):
        raise _MalformedError(f"has segmentation {segmentation!r:.40}, neither polygons nor run lengths")
    for ring in segmentation:
        if not isinstance(ring, list) or len(ring) < 6 or len(ring) % 2 or not _are_numbers(ring):
            raise _MalformedError("has a polygon that is not a list x1, y1, x2, y2, ... of at least 3 points")
        if not _are_near(ring):
            raise _MalformedError(f"has a polygon that reaches {max(map(abs, ring)):.3g} pixels far")
    return segmentation, RunLengths()


def _run_lengths(rle: Any) -> RunLengths:
    """Run lengths that are known to fill their picture.

    Raises:
        _MalformedError: They don't, or can't be read.
    """
    size = rle.get("size") if isinstance(rle, dict) else None
    if not isinstance(size, list) or len(size) != 2 or not all(_is_integer(s) and 0 < s <= _FARTHEST for s in size):
        raise _MalformedError(f"has a run-length mask of size {size!r:.40}; it must be [height, width] of its picture")
    height, width = size
    counts = rle.get("counts")
    try:
        if isinstance(counts, list):
            counts = coco_mask.frPyObjects(rle, height, width)["counts"]
        text = counts.decode("ascii") if isinstance(counts, bytes) else counts
        runs = mask_api_new_cpp.toUncompressedRLE([{"size": size, "counts": text}])[0]["counts"]
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise _MalformedError(f"has a malformed run-length mask ({str(error).splitlines()[0]:.80})") from None
    if sum(runs) != height * width:
        raise _MalformedError(f"has run lengths that add up to {sum(runs)}, not to {height} x {width}")
    return RunLengths(text.encode(), (height, width), sum(runs[1::2]))


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and -_LARGEST_INTEGER <= value <= _LARGEST_INTEGER


def _are_numbers(values: list[Any]) -> bool:
    """Whether all are finite numbers."""
    try:
        return math.isfinite(sum(values))
    except (TypeError, OverflowError):
        return False


def _are_near(values: list[Any]) -> bool:
    """Whether all are numbers of pixels that a picture can have."""
    return _are_numbers(values) and max(values) <= _FARTHEST and min(values) >= -_FARTHEST

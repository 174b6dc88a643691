"""Instance annotations of one split in flat arrays, whatever format they came from.

A Python list of annotations that is copied into worker processes grows there page by page (reading an
object counts its references, which writes to it); arrays do not, and those of a saved folder are shared.
"""

import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.data.entries import Entries, Problem
from maskrcnn.data.indexing import resolve
from maskrcnn.data.outline import Outline


@dataclass(frozen=True, eq=False)
class Annotations:
    """N images, M instances sorted by image (in the order of the file within one), R rings of polygons.

    Arrays are read-only. An instance with neither rings nor run lengths has only its box.

    Attributes:
        source: The file they came from, for messages.
        categories: {"id", "name"} of each label 1..K, by ascending id; a name that comes twice holds its id.
        notes: One line for each kind of thing that was corrected or left out, without the name of the file.
        annotated: False if the file has no annotations at all, as that of a test split.
        image_ids: int64 [N].
        sizes: int64 [N, 2], height and width.
        first_name: int64 [N + 1]; the file name of image i is name_bytes[first_name[i] : first_name[i + 1]].
        name_bytes: uint8, UTF-8.
        first_instance: int64 [N + 1]; image i has instances first_instance[i] to first_instance[i + 1].
        annotation_ids: int64 [M], the position in the file + 1 where it gives none.
        labels: int64 [M], 1..K.
        boxes: float64 [M, 4], x y width height, as in the file.
        areas: float64 [M], square pixels; corrected where the file's are missing or wrong.
        crowd: bool [M].
        difficult: bool [M], ignored in scoring and left out of training.
        usable: bool [M], False where the box has no area or lies outside of the picture.
        first_ring: int64 [M + 1].
        first_point: int64 [R + 1].
        points: float64 [first_point[-1], 2], x y.
        first_byte: int64 [M + 1].
        rle_bytes: uint8, compressed COCO run lengths.
        first_void: int64 [N + 1].
        void_bytes: uint8, compressed COCO run lengths of pixels that scoring ignores.
        folder: Where they are saved, if they are.
    """

    source: Path
    categories: list[dict[str, Any]]
    notes: tuple[str, ...]
    annotated: bool
    image_ids: np.ndarray
    sizes: np.ndarray
    first_name: np.ndarray
    name_bytes: np.ndarray
    first_instance: np.ndarray
    annotation_ids: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    usable: np.ndarray
    first_ring: np.ndarray
    first_point: np.ndarray
    points: np.ndarray
    first_byte: np.ndarray
    rle_bytes: np.ndarray
    first_void: np.ndarray
    void_bytes: np.ndarray
    folder: Path | None = None

    def __post_init__(self) -> None:
        for name in _ARRAYS:
            getattr(self, name).flags.writeable = False

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the folder instead of getting a copy of the arrays."""
        if self.folder is not None:
            return _open_again, (self.folder, self.source)
        return Annotations, tuple(getattr(self, field.name) for field in fields(self))

    def file_name(self, position: int) -> str:
        """File name of image 0..N-1, relative to the folder of the pictures."""
        return _part(self.name_bytes, self.first_name, position).decode("utf-8", "surrogatepass")

    @property
    def has_outline(self) -> np.ndarray:
        """Bool [M], False where only the box is known."""
        return (np.diff(self.first_ring) > 0) | (np.diff(self.first_byte) > 0)

    def segmentation(self, instance: int) -> list[list[float]] | dict[str, Any]:
        """COCO segmentation of instance 0..M-1: rings x1, y1, x2, ..., compressed run lengths, or an empty list."""
        counts = _part(self.rle_bytes, self.first_byte, instance)
        if counts:
            return {"size": self._size_of(instance), "counts": counts.decode()}
        return [ring.ravel().tolist() for ring in self._rings(instance)]

    def outline(self, instance: int) -> Outline:
        """What instance 0..M-1 covers; its box, and `box_only`, where that is all that is known."""
        rings = self._rings(instance)
        if rings:
            return Outline(rings)
        counts = _part(self.rle_bytes, self.first_byte, instance)
        if counts:
            return Outline.from_rle({"size": self._size_of(instance), "counts": counts})
        x, y, width, height = self.boxes[instance]
        corners = np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]])
        return Outline((corners,), box_only=True)

    def ground_truth(self, positions: Iterable[int], categories: Iterable[int] | None = None) -> dict[str, Any]:
        """A COCO instances file, parsed, of some of the images; what scoring compares with.

        It holds every annotation, crowds and those that are not trained on too; difficult ones have "ignore": 1,
        images may have a "void" mask.

        Args:
            positions: Images 0..N-1.
            categories: Ids of the categories to keep; None for all.
        """
        wanted = {c["id"] for c in self.categories} if categories is None else set(categories)
        kept = {label: c for label, c in enumerate(self.categories, start=1) if c["id"] in wanted}
        images, annotations = [], []
        for position in map(int, positions):
            images.append(self._image_entry(position))
            for instance in range(*self.first_instance[position : position + 2].tolist()):
                label = int(self.labels[instance])
                if label not in kept:
                    continue
                entry = {
                    "id": int(self.annotation_ids[instance]),
                    "image_id": images[-1]["id"],
                    "category_id": kept[label]["id"],
                    "bbox": self.boxes[instance].tolist(),
                    "area": float(self.areas[instance]),
                    "iscrowd": int(self.crowd[instance]),
                    "segmentation": self.segmentation(instance),
                }
                if self.difficult[instance]:
                    entry["ignore"] = 1
                annotations.append(entry)
        return {
            "images": images,
            "annotations": annotations,
            "categories": [dict(category) for category in kept.values()],
        }

    def save(self, folder: Path) -> None:
        """Write the arrays into a new folder.

        Raises:
            OSError: It exists, or can't be written.
        """
        folder.mkdir(parents=True)
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))
        meta = {
            "source": str(self.source),
            "categories": self.categories,
            "notes": self.notes,
            "annotated": self.annotated,
        }
        (folder / "meta.json").write_text(json.dumps(meta))
        checksums = {path.name: _checksum(path) for path in sorted(folder.iterdir())}
        (folder / "checksums.json").write_text(json.dumps(checksums))

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> "Annotations":
        """Map the arrays of a saved folder into memory; processes that open it share them.

        Args:
            folder: Where `save` wrote them.
            verify: Read every file once and compare its checksum.

        Raises:
            OSError: A file is missing or can't be read.
            ValueError: A file is damaged.
        """
        if verify:
            checksums = json.loads((folder / "checksums.json").read_bytes())
            for name in ("meta.json", *(f"{name}.npy" for name in _ARRAYS)):
                if not isinstance(checksums, dict) or _checksum(folder / name) != checksums.get(name):
                    raise ValueError(f"{folder / name} is damaged")
        meta = json.loads((folder / "meta.json").read_bytes())
        # As plain arrays: each slice of a memmap object is one more, ten times as slow.
        arrays = {name: np.asarray(np.lib.format.open_memmap(folder / f"{name}.npy", mode="r")) for name in _ARRAYS}
        return cls(
            source=Path(meta["source"]),
            categories=meta["categories"],
            notes=tuple(meta["notes"]),
            annotated=meta["annotated"],
            folder=folder,
            **arrays,
        )

    def _rings(self, instance: int) -> tuple[np.ndarray, ...]:
        rings = range(*self.first_ring[instance : instance + 2].tolist())
        return tuple(self.points[self.first_point[r] : self.first_point[r + 1]] for r in rings)

    def _size_of(self, instance: int) -> list[int]:
        position = np.searchsorted(self.first_instance, instance, side="right") - 1
        return self.sizes[position].tolist()

    def _image_entry(self, position: int) -> dict[str, Any]:
        height, width = self.sizes[position].tolist()
        entry = {"id": int(self.image_ids[position]), "file_name": self.file_name(position)}
        entry |= {"height": height, "width": width}
        void = _part(self.void_bytes, self.first_void, position)
        if void:
            entry["void"] = {"size": [height, width], "counts": void.decode()}
        return entry


_ARRAYS = tuple(field.name for field in fields(Annotations) if field.type is np.ndarray)


def index_annotations(
    *,
    source: Path,
    categories: Iterable[Any],
    images: Iterable[Any],
    annotations: Iterable[Any] | None,
) -> tuple[Annotations, list[Problem]]:
    """Check COCO-style entries and put them into arrays. Each iterable is used once and may be lazy.

    Args:
        source: The file they come from, for messages.
        categories: {"id", "name"}.
        images: {"id", "file_name", "height", "width"}; "void" may hold run lengths of pixels that scoring ignores.
        annotations: {"image_id", "category_id", "bbox"} and what there is of "id", "area", "iscrowd", "difficult"
            and "segmentation" (polygons or run lengths); None if the file has none at all.

    Returns:
        The annotations without the entries that have a problem, and all problems.

    Raises:
        UserError: There is no category.
    """
    entries = Entries(source)
    for category in categories:
        entries.add_category(category)
    for image in images:
        entries.add_image(image)
    for annotation in annotations or ():
        entries.add_annotation(annotation)
    return to_annotations(entries, annotated=annotations is not None)


def to_annotations(entries: Entries, *, annotated: bool) -> tuple[Annotations, list[Problem]]:
    """The same, of entries that came in any order."""
    columns, problems = resolve(entries)
    return Annotations(source=entries.source, annotated=annotated, **columns), problems


def _open_again(folder: Path, source: Path) -> Annotations:
    return replace(Annotations.open(folder, verify=False), source=source)


def _part(data: np.ndarray, first: np.ndarray, index: int) -> bytes:
    return data[first[index] : first[index + 1]].tobytes()


def _checksum(path: Path) -> int:
    """CRC-32 of a file, which is read and not mapped: mapped pages count as memory of the process."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            checksum = zlib.crc32(block, checksum)
    return checksum

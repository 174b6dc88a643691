"""From entries in the order of the file to arrays in the order of the images, with all references resolved."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from maskrcnn.data.areas import check_areas
from maskrcnn.data.entries import Entries, Problem
from maskrcnn.errors import UserError


def resolve(entries: Entries) -> tuple[dict[str, Any], list[Problem]]:
    """The arrays, categories and notes of `Annotations` by name, and all problems.

    Annotations with a problem are left out.

    Raises:
        UserError: There is no category.
    """
    if not entries.num_categories:
        raise UserError(f"{entries.source}: categories is empty; there is nothing to learn")
    categories, notes = _name_apart(entries.categories)
    category_ids = np.array([category["id"] for category in categories], dtype=np.int64)
    image_ids = _array(entries.image_ids)
    problems = [*entries.problems, *_repeated(entries, image_ids, "images"), *_repeated(entries, category_ids)]

    image_of = _find(image_ids, _array(entries.image_id_of))
    label_of = _find(category_ids, _array(entries.category_id_of)) + 1
    problems += _unknown(entries, image_of < 0, "image_id", "images")
    problems += _unknown(entries, label_of < 1, "category_id", "categories")
    sizes = _array(entries.sizes).reshape(-1, 2)
    size_of = sizes[image_of] if len(sizes) else np.ones((len(image_of), 2), dtype=np.int64)
    other_size = (_array(entries.rle_lengths) > 0) & (_array(entries.rle_sizes).reshape(-1, 2) != size_of).any(axis=1)
    known = (image_of >= 0) & (label_of >= 1)
    problems += _of_other_size(entries, known & other_size, size_of)

    boxes = _array(entries.boxes, np.float64).reshape(-1, 4)
    reasons = _unusable(boxes, size_of)
    usable = ~np.logical_or.reduce(list(reasons.values()))
    # The outline of what is not trained on anyway does no harm.
    harmful = [(row, problem) for row, problem in entries.outline_problems if usable[row]]
    problems += [problem for _, problem in harmful]
    keep = known & ~other_size
    keep[[row for row, _ in harmful]] = False

    first_ring, first_point = _starts(_array(entries.ring_counts)), _starts(_array(entries.point_counts))
    first_byte = _starts(_array(entries.rle_lengths))
    points = _array(entries.points, np.float64).reshape(-1, 2)
    crowd = _flags(entries.crowd)
    checked = check_areas(
        areas=_array(entries.areas, np.float64),
        boxes=boxes,
        crowd=crowd,
        rle_areas=_array(entries.rle_areas),
        first_ring=first_ring,
        first_point=first_point,
        points=points,
        sizes=size_of,
    )
    ids = _array(entries.annotation_ids)
    for reason, rejected in reasons.items():
        notes += _note(ids, np.flatnonzero(rejected & keep), f"annotations left out, their box {reason}")
    for reason, rows in checked.corrected.items():
        notes += _note(ids, rows[keep[rows]], f"annotations {reason}, it was computed anew")

    order = np.flatnonzero(keep)
    order = order[np.argsort(image_of[order], kind="stable")]
    rings, first_ring_sorted = _gather(first_ring, order)
    vertices, first_point_sorted = _gather(first_point, rings)
    rle_bytes, first_byte_sorted = _gather(first_byte, order)
    columns = {
        "categories": categories,
        "notes": tuple(notes),
        "image_ids": image_ids,
        "sizes": sizes,
        "first_name": _starts(_array(entries.name_lengths)),
        "name_bytes": _bytes(entries.name_bytes),
        "first_instance": _starts(np.bincount(image_of[order], minlength=len(image_ids))),
        "annotation_ids": ids[order],
        "labels": label_of[order],
        "boxes": boxes[order],
        "areas": checked.areas[order],
        "crowd": crowd[order],
        "difficult": _flags(entries.difficult)[order],
        "usable": usable[order],
        "first_ring": first_ring_sorted,
        "first_point": first_point_sorted,
        "points": points[vertices],
        "first_byte": first_byte_sorted,
        "rle_bytes": _bytes(entries.rle_bytes)[rle_bytes],
        "first_void": _starts(_array(entries.void_lengths)),
        "void_bytes": _bytes(entries.void_bytes),
    }
    return columns, problems


def _name_apart(categories: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Categories by ascending id with names that differ, and a note on those that did not."""
    names: set[str] = set()
    renamed: list[dict[str, Any]] = []
    ordered = [dict(category) for category in sorted(categories, key=lambda category: category["id"])]
    for category in ordered:
        name = category["name"]
        while category["name"] in names:
            category["name"] += f" (id {category['id']})"
        names.add(category["name"])
        if category["name"] != name:
            renamed.append(category)
    notes = [f"{len(renamed)} categories have the name of another (first: {renamed[0]['name']})"] if renamed else []
    return ordered, notes


def _repeated(entries: Entries, ids: np.ndarray, section: str = "categories") -> Iterator[Problem]:
    values, counts = np.unique(ids, return_counts=True)
    for repeated in np.flatnonzero(counts > 1):
        what = f"holds id {values[repeated]} {counts[repeated]} times; ids must be unique"
        yield Problem(f"{entries.source}: {section} {what}")


def _find(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Position of each wanted id, -1 if it is not there."""
    if not len(ids):
        return np.full(len(wanted), -1)
    order = np.argsort(ids, kind="stable")
    found = order[np.searchsorted(ids, wanted, sorter=order).clip(max=len(ids) - 1)]
    return np.where(ids[found] == wanted, found, -1)


def _unknown(entries: Entries, rows: np.ndarray, key: str, section: str) -> Iterator[Problem]:
    ids = entries.image_id_of if key == "image_id" else entries.category_id_of
    for row in np.flatnonzero(rows).tolist():
        if ids[row] not in entries.refused[key]:
            where = f"{entries.source}: {_name(entries, row)} has {key} {ids[row]}"
            yield Problem(f"{where}, which is not in {section}; add it there or remove the annotation")


def _of_other_size(entries: Entries, rows: np.ndarray, size_of: np.ndarray) -> Iterator[Problem]:
    for row in np.flatnonzero(rows).tolist():
        where = f"{entries.source}: {_name(entries, row)} (image id {entries.image_id_of[row]})"
        size = list(entries.rle_sizes[2 * row : 2 * row + 2])
        yield Problem(f"{where} has a run-length mask of size {size}, its picture has {size_of[row].tolist()}")


def _name(entries: Entries, row: int) -> str:
    id = entries.annotation_ids[row]
    return f"annotation {id}" if entries.has_id[row] else f"annotation number {id - 1}"


def _unusable(boxes: np.ndarray, size_of: np.ndarray) -> dict[str, np.ndarray]:
    """Bool [A] for each reason not to train on an annotation."""
    x, y, width, height = boxes.T
    no_area = (width <= 0) | (height <= 0)
    outside = (x >= size_of[:, 1]) | (y >= size_of[:, 0]) | (x + width <= 0) | (y + height <= 0)
    return {"has no area": no_area, "lies outside of the picture": outside & ~no_area}


def _note(ids: np.ndarray, rows: np.ndarray, what: str) -> list[str]:
    return [f"{len(rows)} {what} (first: annotation {ids[rows[0]]})"] if len(rows) else []


def _starts(counts: np.ndarray) -> np.ndarray:
    starts = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts


def _gather(first: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the parts of the entries in `order` were, and where each entry's parts start afterwards."""
    counts = np.diff(first)[order]
    starts = _starts(counts)
    return np.repeat(first[order] - starts[:-1], counts) + np.arange(starts[-1]), starts


def _array(values: Any, dtype: Any = np.int64) -> np.ndarray:
    return np.frombuffer(values, dtype=dtype) if len(values) else np.zeros(0, dtype)


def _bytes(values: bytearray) -> np.ndarray:
    return _array(values, np.uint8)


def _flags(values: bytearray) -> np.ndarray:
    return _bytes(values) > 0

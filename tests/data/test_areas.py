"""Areas of a file: those that are right stay, the others are computed anew and said to be."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn.data.annotations import index_annotations

# Area 300, its pixels 310, in a box of 20 x 30.
TRIANGLE = [[10, 10, 30, 10, 30, 40]]
# Area 900 as a sum, 700 as a union, which is that of its box.
PARTS = [[5, 5, 25, 5, 25, 25, 5, 25], [15, 5, 40, 5, 40, 25, 15, 25]]
# 400 pixels of a picture of 3072.
RLE = {"size": [48, 64], "counts": [1000, 400, 1672]}


def indexed(*entries):
    annotations, problems = index_annotations(
        source=Path("f.json"),
        categories=[{"id": 1, "name": "thing"}],
        images=[{"id": 1, "file_name": "a.png", "height": 48, "width": 64}],
        annotations=[{"id": 10 + i, "image_id": 1, "category_id": 1} | entry for i, entry in enumerate(entries)],
    )
    assert problems == []
    return annotations


def entry(segmentation, box, **values):
    return {"segmentation": segmentation, "bbox": box} | values


@pytest.mark.parametrize(
    ("segmentation", "box", "area"),
    [
        (TRIANGLE, [10, 10, 20, 30], 300),
        (TRIANGLE, [10, 10, 20, 30], 299.6),  # rounded
        (TRIANGLE, [10, 10, 20, 30], 310),  # pixels
        (TRIANGLE, [10, 10, 20, 30], 260),  # through the centres of the pixels at its border
        (PARTS, [5, 5, 35, 20], 900),
        (PARTS, [5, 5, 35, 20], 700),
        (RLE, [20, 0, 10, 48], 400),
        ([[10, 10, 20, 10, 30, 10]], [10, 10, 20, 1], 0),  # as in COCO: a line
        ([[-300, 0, 20, 0, 20, 20, -300, 20]], [0, 0, 20, 20], 400),  # of the part in the picture
        ([], [10, 10, 20, 30], 250),
    ],
)
def test_right_areas_stay(segmentation, box, area):
    annotations = indexed(entry(segmentation, box, area=area))
    assert annotations.areas.tolist() == [area]
    assert annotations.notes == ()


@pytest.mark.parametrize(
    ("segmentation", "box", "area", "right", "reason"),
    [
        (TRIANGLE, [10, 10, 20, 30], 600, 300, "have the area of their box"),
        (TRIANGLE, [10.25, 10, 19.75, 30.5], 602, 300, "have the area of their box"),
        (RLE, [20, 0, 10, 48], 480, 400, "have the area of their box"),
        (TRIANGLE, [10, 10, 20, 30], 0.0098, 300, "have an area far from that of their outline"),
        (TRIANGLE, [10, 10, 20, 30], 1200.0, 300, "have an area far from that of their outline"),
        (PARTS, [5, 5, 35, 20], 5000, 700, "have an area far from that of their outline"),
        (RLE, [20, 0, 10, 48], 5, 400, "have an area far from that of their outline"),
        *(
            (TRIANGLE, [10, 10, 20, 30], area, 300, "have no area")
            for area in (None, 0, -4, "300", float("nan"), float("inf"), 10**400)
        ),
        (PARTS, [5, 5, 35, 20], None, 700, "have no area"),
        (RLE, [20, 0, 10, 48], None, 400, "have no area"),
        ([], [10, 10, 20, 30], None, 600, "have no area"),
    ],
)
def test_wrong_areas_are_computed_anew(segmentation, box, area, right, reason):
    fine = entry(TRIANGLE, [10, 10, 20, 30], area=300)
    annotations = indexed(fine, entry(segmentation, box, area=area), entry(segmentation, box, area=area))
    assert annotations.areas.tolist() == [300, right, right]
    assert annotations.notes == (f"2 annotations {reason}, it was computed anew (first: annotation 11)",)


def test_missing_key():
    annotations = indexed(entry(TRIANGLE, [10, 10, 20, 30]))
    assert annotations.areas.tolist() == [300]
    assert annotations.notes == ("1 annotations have no area, it was computed anew (first: annotation 10)",)


def test_crowds_keep_their_rough_areas():
    annotations = indexed(entry(RLE, [0, 0, 64, 48], area=900, iscrowd=1), entry(RLE, [0, 0, 64, 48], iscrowd=1))
    assert annotations.areas.tolist() == [900, 400]


@given(st.lists(st.tuples(st.integers(3, 12), st.integers(0, 2**32 - 1)), min_size=1, max_size=20))
def test_areas_of_many_polygons(shapes):
    """Star-shaped polygons round the centre of the picture; the reference goes along their edges one by one."""
    entries, expected = [], []
    for count, seed in shapes:
        rng = np.random.default_rng(seed)
        angles = np.sort(rng.uniform(0, 2 * np.pi, count))
        radii = rng.uniform(1, 20, count)
        points = np.stack((32 + radii * np.cos(angles), 24 + radii * np.sin(angles)), axis=1)
        low, high = points.min(axis=0), points.max(axis=0)
        entries.append(entry([points.ravel().tolist()], [*low, *(high - low)]))
        edges = zip(points, np.roll(points, -1, axis=0), strict=True)
        expected.append(abs(sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in edges)) / 2)
    assert indexed(*entries).areas == pytest.approx(expected)

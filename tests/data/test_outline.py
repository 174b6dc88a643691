"""What an outline covers is compared with pycocotools' masks, with points tested one by one, and with known areas."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from maskrcnn.data.outline import IDENTITY, Outline, is_affine, magnification, map_points, shift, warp

SIZE = (90, 120)  # height, width
WINDOW = (0, 0, 120, 90)
SIDE = 112
PROPERTY = settings(deadline=None, derandomize=True, max_examples=100)


def ring(*points):
    return np.array(points, dtype=np.float64)


def rectangle(x1, y1, x2, y2):
    return ring((x1, y1), (x2, y1), (x2, y2), (x1, y2))


def blob(cx, cy, rx, ry, angle=0.0, lobes=2, dent=0.0):  # noqa: PLR0917
    """An ellipse of 48 vertices; with `dent` from about 0.2 on it is concave between its lobes."""
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    radius = 1 - dent * (1 + np.cos(lobes * t)) / 2
    x, y = rx * radius * np.cos(t), ry * radius * np.sin(t)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack((cx + cos * x - sin * y, cy + sin * x + cos * y), axis=1)


def flip(width):
    return np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]])


def pixels(outline, size=SIZE):
    return coco_mask.decode(outline.rle(size)).astype(bool)


def as_bitmap(outline, size=SIZE):
    return Outline(bitmap=coco_mask.decode(outline.rle(size)))


def iou(a, b):
    return (a & b).sum() / max((a | b).sum(), 1)


def around(mask):
    """x1 y1 x2 y2 of the pixels that are set."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def covered(polygons, x, y):
    """Whether points lie in one of the polygons: a ray to the left crosses an odd number of its edges."""
    inside = np.zeros(np.shape(x), dtype=bool)
    for points in polygons:
        odd = np.zeros_like(inside)
        for (x1, y1), (x2, y2) in zip(points, np.roll(points, -1, axis=0), strict=True):
            if y1 != y2:
                odd ^= ((y1 > y) != (y2 > y)) & (x < x1 + (x2 - x1) * (y - y1) / (y2 - y1))
        inside |= odd
    return inside


def dense(polygons, matrix=IDENTITY, *, size=SIZE, samples=2, within=None):
    """Share of each pixel of the mapped picture that is covered, from points looked up in the unmapped one.

    Of the unmapped picture only what lies inside the polygon `within` counts.
    """
    height, width = size
    x, y = np.meshgrid((np.arange(width * samples) + 0.5) / samples, (np.arange(height * samples) + 0.5) / samples)
    back = np.linalg.inv(matrix)
    depth = back[2, 0] * x + back[2, 1] * y + back[2, 2]
    origin = [(back[i, 0] * x + back[i, 1] * y + back[i, 2]) / depth for i in range(2)]
    # A point behind the viewer is not seen.
    hits = covered(polygons, *origin) & (matrix[2, 0] * origin[0] + matrix[2, 1] * origin[1] + matrix[2, 2] > 0)
    if within is not None:
        hits &= covered([within], *origin)
    return hits.reshape(height, samples, width, samples).mean(axis=(1, 3))


def assert_within_a_pixel(mask, share):
    """`mask` covers what is covered all around, and nothing that has no covered point nearby."""
    kernel = np.ones((3, 3), np.uint8)
    everywhere = cv2.erode((share == 1).astype(np.uint8), kernel, borderValue=1) > 0
    somewhere = cv2.dilate((share > 0).astype(np.uint8), kernel) > 0
    assert not (everywhere & ~mask).any()
    assert not (mask & ~somewhere).any()


blobs = st.builds(
    blob,
    cx=st.floats(30, 90),
    cy=st.floats(30, 60),
    rx=st.floats(6, 28),
    ry=st.floats(6, 28),
    angle=st.floats(0, 3.1),
)
# Partly or wholly outside of the picture, some concave, one to three parts.
shapes = st.lists(
    st.builds(
        blob,
        cx=st.floats(-20, 140),
        cy=st.floats(-20, 110),
        rx=st.floats(10, 50),
        ry=st.floats(10, 50),
        angle=st.floats(0, 3.1),
        lobes=st.integers(2, 3),
        dent=st.floats(0, 0.5),
    ),
    min_size=1,
    max_size=3,
).map(tuple)


@st.composite
def affines(draw):
    """A rotation, scale, shear and move that leaves the middle of the picture in the picture."""
    angle = draw(st.floats(-np.pi, np.pi))
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    slant = np.array([[1, draw(st.floats(-0.4, 0.4)), 0], [0, 1, 0], [0, 0, 1]])
    grow = np.diag([draw(st.floats(0.6, 1.6)), draw(st.floats(0.6, 1.6)), 1])
    to = shift(60 + draw(st.floats(-20, 20)), 45 + draw(st.floats(-20, 20)))
    return to @ turn @ slant @ grow @ shift(-60, -45)


@st.composite
def homographies(draw):
    tilt = np.array([[1, 0, 0], [0, 1, 0], [draw(st.floats(-0.3, 0.3)) / 60, draw(st.floats(-0.3, 0.3)) / 45, 1]])
    return draw(affines()) @ shift(60, 45) @ tilt @ shift(-60, -45)


def test_ten_by_ten_square_covers_a_hundred_pixels():
    mask = pixels(Outline((rectangle(20, 30, 30, 40),)))
    assert mask.sum() == 100
    assert mask[30:40, 20:30].all()


# --- boxes


@given(points=blobs)
@PROPERTY
def test_box_is_tight(points):
    outline = Outline((points,))
    mask = pixels(outline)
    assert np.abs(outline.box - around(mask)).max() <= 1
    assert (as_bitmap(outline).box == around(mask)).all()
    assert outline.box.dtype == np.float32


@given(points=blobs, dx=st.floats(-80, 80), dy=st.floats(-60, 60))
@PROPERTY
def test_box_is_tight_where_the_picture_cuts_the_outline(points, dx, dy):
    """It reaches to every pixel that is drawn, and not beyond what is inside."""
    points = points + np.array((dx, dy))
    clipped = Outline((points,)).clip(WINDOW)
    box, mask = clipped.box, pixels(clipped)
    edges = np.roll(points, -1, axis=0) - points
    contour = (points[:, None] + np.linspace(0, 1, 50)[:, None] * edges[:, None]).reshape(-1, 2)
    corners = rectangle(0, 0, SIZE[1], SIZE[0])
    to_corners = corners[:, None] - points
    inside = (edges[:, 0] * to_corners[..., 1] - edges[:, 1] * to_corners[..., 0] >= 0).all(axis=1)
    left = np.concatenate((contour[((contour >= 0) & (contour <= corners[2])).all(axis=1)], corners[inside]))
    if mask.any():
        assert (box[:2] > left.min(axis=0) - 0.3).all()
        assert (box[2:] < left.max(axis=0) + 0.3).all()
        found = around(mask)
        assert (box[:2] <= found[:2] + 0.5).all()
        assert (box[2:] >= found[2:] - 0.5).all()
    else:
        assert box.tolist() == [0, 0, 0, 0]
        assert not len(left) or np.ptp(left, axis=0).min() < 1


@pytest.mark.parametrize(
    "outline",
    [
        Outline(),
        Outline(bitmap=np.zeros(SIZE, np.uint8)),
        Outline((rectangle(130, 10, 140, 20),)),
        Outline((rectangle(-20, -20, -10, -10),)),
        Outline(bitmap=np.ones((5, 5), np.uint8), matrix=shift(130, 10)),
        Outline(bitmap=np.ones((5, 5), np.uint8), matrix=shift(-10, -10)),
    ],
)
def test_nothing_is_left_of_what_lies_outside(outline):
    clipped = outline.clip(WINDOW)
    assert (clipped.box[2] - clipped.box[0]) * (clipped.box[3] - clipped.box[1]) == 0
    assert clipped.area == 0
    assert not pixels(clipped).any()
    assert not clipped.clip((10, 10, 20, 20)).raster(np.array([10, 10, 20, 20])).any()
    assert clipped.cut(np.ones(SIZE, dtype=bool)).area == 0


@given(parts=shapes, matrix=homographies())
@PROPERTY
def test_box_of_a_mapped_bitmap_holds_the_middles_of_the_sides_of_its_pixels(parts, matrix):
    outline = as_bitmap(Outline(parts))
    rows, columns = np.nonzero(outline.bitmap)
    if not len(rows):
        return
    middles = ((0, 0.5), (1, 0.5), (0.5, 0), (0.5, 1))
    points = np.concatenate([np.stack((columns + x, rows + y, np.ones(len(rows))), 1) for x, y in middles])
    mapped = points @ matrix.T
    mapped = mapped[:, :2] / mapped[:, 2:]
    expected = np.concatenate((mapped.min(axis=0), mapped.max(axis=0)))
    np.testing.assert_allclose(outline.transform(matrix).box, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("degrees", [0, 20, 45, 90, 200])
def test_box_of_an_enlarged_bitmap_is_that_of_what_is_drawn(degrees):
    """A corner of a turned pixel reaches up to 3 pixels further than what is drawn of it."""
    cos, sin = 8 * np.cos(np.radians(degrees)), 8 * np.sin(np.radians(degrees))
    matrix = shift(60, 45) @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ shift(-4, -3)
    outline = Outline(bitmap=np.ones((6, 8), np.uint8)).transform(matrix)
    assert np.abs(outline.box - around(pixels(outline))).max() <= 1


@pytest.mark.parametrize(
    ("points", "region"),
    [
        (rectangle(3, 4, 9, 12), [3, 4, 9, 12]),
        (rectangle(3.2, 4.9, 9.1, 12.5), [3, 4, 10, 13]),
        (rectangle(-3.2, -4.9, -0.1, 12.5), [-4, -5, 0, 13]),
    ],
)
def test_region_is_the_box_in_whole_pixels(points, region):
    outline = Outline((points,))
    assert outline.region.tolist() == region
    assert outline.region.dtype.kind == "i"


def test_outlines_are_told_apart_by_identity():
    """Arrays have no single truth value, so that comparing them would raise."""
    one, other = Outline((rectangle(0, 0, 2, 2),)), Outline((rectangle(0, 0, 2, 2),))
    assert one == one  # noqa: PLR0124
    assert one != other
    assert len({one, other, one}) == 2


# --- transform


@given(parts=shapes, matrix=homographies())
@settings(PROPERTY, max_examples=60)
def test_a_mapped_outline_covers_what_the_mapping_says(parts, matrix):
    share = dense(parts, matrix)
    moved = Outline(parts).transform(matrix).clip(WINDOW)
    assert_within_a_pixel(pixels(moved), share)
    if share.max() == 1:
        assert abs(pixels(moved).sum() - share.sum()) <= max(0.03 * share.sum(), 15)


@given(points=blobs)
@PROPERTY
def test_flip_is_pycocotools_mask_flipped(points):
    outline = as_bitmap(Outline((points,)))
    assert np.array_equal(pixels(outline.transform(flip(SIZE[1]))), pixels(outline)[:, ::-1])


@given(parts=st.lists(st.tuples(*[st.integers(0, 80)] * 2, *[st.integers(1, 40)] * 2), min_size=1, max_size=3))
@PROPERTY
def test_flipped_upright_polygons_lose_no_pixel(parts):
    polygons = tuple(rectangle(x, y, x + width, min(y + height, 90)) for x, y, width, height in parts if y < 90)
    outline = Outline(polygons)
    flipped = outline.transform(flip(SIZE[1]))
    assert np.array_equal(pixels(flipped), pixels(outline)[:, ::-1])
    if polygons:
        assert (flipped.box == around(pixels(flipped))).all()


def test_flipped_polygons_are_their_masks_flipped():
    rng = np.random.default_rng(0)
    overlaps = []
    for _ in range(40):
        outline = Outline((blob(*rng.uniform((35, 30, 10, 10, 0), (85, 60, 28, 28, 3))),))
        overlaps.append(iou(pixels(outline.transform(flip(SIZE[1]))), pixels(outline)[:, ::-1]))
    assert np.mean(overlaps) >= 0.98


def test_two_flips_are_none():
    outline = as_bitmap(Outline((blob(50, 40, 20, 10, 0.5),)))
    twice = outline.transform(flip(SIZE[1])).transform(flip(SIZE[1]))
    assert np.array_equal(pixels(twice), pixels(outline))
    assert (twice.box == outline.box).all()


def test_polygon_and_bitmap_agree_after_any_chain():
    rng = np.random.default_rng(0)
    overlaps = []
    for _ in range(80):
        outline = Outline((blob(*rng.uniform((35, 30, 12, 12, 0), (85, 60, 28, 28, 3)), lobes=3, dent=0.3),))
        pair = [outline, as_bitmap(outline)]
        for _ in range(3):
            angle, scale = rng.uniform(-0.5, 0.5), rng.uniform(0.8, 1.4)
            turn = scale * np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 0]])
            turn[2] = *rng.uniform(-0.001, 0.001, 2), 1
            matrix = shift(*rng.uniform((50, 35), (70, 55))) @ turn @ shift(-60, -45)
            pair = [one.transform(matrix) for one in pair]
        pair = [one.clip((20, 10, 100, 80)) for one in pair]
        masks = [pixels(one) for one in pair]
        if masks[0].sum() > 60:
            overlaps.append(iou(*masks))
            assert np.abs(pair[0].box - pair[1].box).max() <= 2
    assert len(overlaps) > 60
    assert np.mean(overlaps) >= 0.97


# --- area


@pytest.mark.parametrize(
    ("outline", "area"),
    [
        (Outline(), 0),
        (Outline((rectangle(1, 2, 4, 9),)), 21),
        (Outline((rectangle(1, 2, 4, 9), rectangle(20, 2, 24, 4)[::-1])), 29),
        (Outline((rectangle(0, 0, 20, 20), rectangle(10, 0, 30, 20))), 600),  # half of each lies on the other
        (Outline((rectangle(0, 0, 20, 20), rectangle(0, 0, 20, 20)[::-1])), 400),
        (Outline((rectangle(-30, -20, -10, 0), rectangle(-20, -20, 0, 0))), 600),
        (Outline((ring((0, 0), (8, 0), (0, 6)),)), 24),
        (Outline(bitmap=np.eye(7, dtype=np.uint8)), 7),
    ],
)
def test_area_by_hand(outline, area):
    assert outline.area == area


@given(parts=shapes, matrix=affines())
@PROPERTY
def test_area_grows_by_the_determinant(parts, matrix):
    determinant = abs(matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0])
    for outline in (Outline(parts[:1]), as_bitmap(Outline(parts))):
        assert outline.transform(matrix).area == pytest.approx(determinant * outline.area, rel=1e-9)
    several = Outline((*parts, parts[0]))  # counted in pixels, as they overlap
    assert several.transform(matrix).area == pytest.approx(determinant * several.area, rel=0.05, abs=40)


@given(parts=shapes, matrix=homographies())
@settings(PROPERTY, max_examples=60)
def test_area_of_several_parts_is_that_of_the_pixels_of_their_union(parts, matrix):
    """Wherever they lie: pycocotools counts them on a canvas that holds all."""
    moved = Outline((*parts, parts[0])).transform(matrix)
    low = np.floor(moved.box[:2])
    canvas = moved.transform(shift(*(5 - low)))
    size = tuple(np.ceil(canvas.box[:1:-1] + 5).astype(int).tolist())
    assert moved.area == coco_mask.area(canvas.rle(size))


@given(parts=shapes, matrix=homographies())
@settings(PROPERTY, max_examples=60)
def test_area_is_the_number_of_pixels(parts, matrix):
    outline = Outline(parts).clip(WINDOW).transform(matrix)
    for window in (WINDOW, (20, 10, 90, 70)):
        share = dense(parts, matrix, within=rectangle(*WINDOW))
        x1, y1, x2, y2 = window
        expected = share[y1:y2, x1:x2].sum()
        rounding = 12 if len(parts) == 1 else 30  # several are counted in whole pixels
        assert outline.clip(window).area == pytest.approx(expected, rel=0.05, abs=rounding)


def test_magnification_is_the_change_of_a_small_square():
    matrix = shift(3, 4) @ np.array([[1.2, 0.3, 0], [-0.2, 0.9, 0], [0.002, -0.004, 1.0]])
    for x, y in ((60, 45), (0, 0), (120, 90)):
        small = map_points(matrix, rectangle(x - 0.01, y - 0.01, x + 0.01, y + 0.01))
        assert magnification(matrix, (x, y)) == pytest.approx(Outline((small,)).area / 0.02**2, rel=1e-4)
    assert magnification(flip(7), (60, 45)) == 1


# --- union


def test_overlapping_parts_of_an_instance_unite():
    left, right = rectangle(10, 10, 30, 30), rectangle(20, 10, 40, 30)
    outline = Outline((left, right, left[::-1]))
    for one in (outline, outline.transform(flip(SIZE[1])).transform(flip(SIZE[1]))):
        assert pixels(one).sum() == 30 * 20
        assert (one.crop(one.box.astype(np.float64), SIDE) == 255).all()
    assert (outline.transform(flip(SIZE[1])).box == [80, 10, 110, 30]).all()
    clipped = outline.clip((15, 15, 35, 25))
    assert (clipped.box == [15, 15, 35, 25]).all()
    assert pixels(clipped).sum() == 20 * 10


@given(parts=shapes, matrix=homographies())
@settings(PROPERTY, max_examples=50)
def test_parts_never_cancel(parts, matrix):
    """An instance covers what its parts cover one by one, and a part that is there twice changes nothing."""
    both = pixels(Outline(parts + parts[::-1]).transform(matrix).clip(WINDOW))
    single = [pixels(Outline((part,)).transform(matrix).clip(WINDOW)) for part in parts]
    assert np.array_equal(both, np.any(single, axis=0))
    box = np.array([10.0, 10, 110, 80])
    crop = Outline(parts + parts).transform(matrix).crop(box, SIDE)
    assert np.array_equal(crop, np.max([Outline((part,)).transform(matrix).crop(box, SIDE) for part in parts], axis=0))


# --- clip


@given(parts=shapes, corner=st.tuples(st.integers(0, 70), st.integers(0, 50)), side=st.integers(8, 50))
@PROPERTY
def test_clip_keeps_exactly_the_part_inside(parts, corner, side):
    window = (*corner, min(corner[0] + side, 120), min(corner[1] + side, 90))
    inside = np.zeros(SIZE, dtype=bool)
    inside[window[1] : window[3], window[0] : window[2]] = True
    whole = Outline(parts)
    clipped = whole.clip(window)
    assert_within_a_pixel(pixels(clipped), dense(parts) * inside)
    assert not (pixels(clipped) & ~inside).any()
    bitmap = as_bitmap(whole).clip(window)
    assert np.array_equal(pixels(bitmap), pixels(whole) & inside)
    for one in (clipped, bitmap):
        assert (one.box[:2] >= window[:2]).all() or one.area == 0
        assert (one.box[2:] <= window[2:]).all() or one.area == 0


@given(parts=shapes, corner=st.tuples(st.integers(0, 70), st.integers(0, 50)))
@PROPERTY
def test_box_after_a_clip_is_tight(parts, corner):
    window = (*corner, corner[0] + 45, corner[1] + 35)
    clipped = Outline(parts).clip(window)
    mask = pixels(clipped)
    if mask.any():
        assert np.abs(clipped.box - around(mask)).max() <= 1.5
    else:
        assert clipped.box.tolist() == [0, 0, 0, 0]


COMB = ring((30, -20), (40, -20), (40, 20), (60, 20), (60, -20), (110, -20), (110, -30), (30, -30))
AROUND_THE_CORNER = ring((-20, 20), (20, 20), (20, 10), (-10, 10), (-10, -10), (80, -10), (80, 30), (90, 30))
AROUND_THE_CORNER = np.concatenate((AROUND_THE_CORNER, ring((90, -20), (-20, -20))))


@pytest.mark.parametrize(
    ("points", "box"),
    [
        # Two teeth hang into the picture, a third bridge runs outside, above.
        (COMB, [40, 0, 60, 20]),
        (COMB[:, ::-1], [0, 40, 20, 60]),
        ((120, 90) - COMB, [60, 70, 80, 90]),
        # A clasp around the corner: one end enters from the left, the other from above.
        (AROUND_THE_CORNER, [0, 0, 90, 30]),
    ],
)
def test_outlines_that_leave_and_return_have_a_tight_box(points, box):
    expected = np.array(box, dtype=float)
    clipped = Outline((points,)).clip(WINDOW)
    found = around(pixels(clipped))
    assert np.array_equal(found, expected)
    assert np.abs(clipped.box - expected).max() <= 0.5
    assert clipped.area == pytest.approx(pixels(clipped).sum(), abs=2)


def test_a_clasp_that_only_touches_two_sides_does_not_reach_into_the_corner():
    """The two ends lie far from the corner around which the polygon runs outside."""
    clasp = ring((-9, 50), (30, 50), (30, 60), (-19, 60), (-19, -19), (80, -19), (80, 30), (70, 30), (70, -9), (-9, -9))
    clipped = Outline((clasp,)).clip(WINDOW)
    assert np.abs(clipped.box - [0, 0, 80, 60]).max() <= 0.5  # both ends together
    lower = Outline((clasp,)).clip((0, 40, 120, 90))
    assert np.abs(lower.box - [0, 50, 30, 60]).max() <= 0.5
    right = Outline((clasp,)).clip((40, 0, 120, 90))
    assert np.abs(right.box - [70, 0, 80, 30]).max() <= 0.5
    between = Outline((clasp,)).clip((0, 0, 60, 45))
    assert between.area == 0


def test_a_part_that_only_touches_the_window_leaves_nothing_there():
    """It would stretch the box of the parts inside, without a pixel of its own."""
    inside = rectangle(20, 20, 40, 40)
    for outside in (ring((-10, 70), (0, 80), (-10, 90)), rectangle(-30, 60, 0, 80), rectangle(120, 60, 130, 80)):
        clipped = Outline((inside, outside)).clip(WINDOW)
        assert clipped.box.tolist() == [20, 20, 40, 40]


def test_a_sliver_without_a_pixel_does_not_stretch_the_box():
    """Whichever part comes first, and if it crosses a single border only."""
    parts = rectangle(20, 20, 40, 40), rectangle(-10, 70, 0.2, 80)
    for one in (parts, parts[::-1]):
        assert Outline(one).clip(WINDOW).box.tolist() == [20, 20, 40, 40]
    assert Outline(parts[1:]).clip(WINDOW).box.tolist() == [0, 0, 0, 0]


def test_a_spike_without_a_pixel_does_not_stretch_the_box():
    """It runs along the border, thinner than a pixel; what hangs from it is the rest."""
    spike = ring((20, -5), (110, -5), (110, 0.1), (40, 0.1), (40, 20), (20, 20))
    assert np.abs(Outline((spike,)).clip(WINDOW).box - [20, 0, 40, 20]).max() <= 0.5


def test_inside_the_window_nothing_changes():
    for outline in (Outline((blob(60, 45, 20, 20),)), as_bitmap(Outline((blob(60, 45, 20, 20),)))):
        assert outline.clip(WINDOW) is outline
        assert outline.clip((30, 20, 100, 80)) is outline


# --- cut


@given(parts=shapes, hiding=shapes)
@PROPERTY
def test_cut_leaves_what_is_not_hidden(parts, hiding):
    hidden = pixels(Outline(hiding))
    outline = Outline(parts).clip(WINDOW)
    for one in (outline, as_bitmap(outline)):
        cut = one.cut(hidden)
        left = pixels(one) & ~hidden
        assert np.array_equal(pixels(cut), left)
        if (pixels(one) & hidden).any():
            assert cut.area == left.sum()
            assert not left.any() or np.array_equal(cut.box, around(left))
        assert (cut.box[2:] - cut.box[:2]).min() >= 0


def test_what_hides_nothing_leaves_the_outline_as_it_is():
    outline = Outline((rectangle(20, 20, 40, 40),), box_only=True)
    hidden = np.zeros(SIZE, dtype=bool)
    hidden[50:] = True
    assert outline.cut(hidden) is outline


def test_what_lies_in_a_notch_leaves_the_outline_as_it_is():
    """Inside the box, but none of the outline's own pixels: its precision is kept."""
    outline = Outline((ring((20.3, 20.4), (60, 20), (60, 30), (30, 30), (30, 60), (20, 60)),))
    hidden = np.zeros(SIZE, dtype=bool)
    hidden[40:, 40:] = True
    assert outline.cut(hidden) is outline


def test_what_is_known_of_an_outline_stays_known():
    box = Outline((rectangle(20, 20, 40, 40),), box_only=True)
    hidden = np.zeros(SIZE, dtype=bool)
    hidden[:30] = True
    for outline in (box.transform(flip(120)), box.clip((30, 0, 120, 90)), box.cut(hidden), box.cut(hidden | True)):
        assert outline.box_only
    assert box.cut(hidden).box.tolist() == [20, 30, 40, 40]


# --- run lengths, raster, crop


@given(parts=shapes)
@PROPERTY
def test_run_lengths_and_back(parts):
    rle = Outline(parts).rle(SIZE)
    assert rle == coco_mask.merge(coco_mask.frPyObjects([points.ravel().tolist() for points in parts], *SIZE))
    outline = Outline.from_rle(rle)
    assert outline.rle(SIZE) == rle
    assert outline.area == coco_mask.area(rle)
    x, y, width, height = coco_mask.toBbox(rle)
    assert not width or outline.box.tolist() == [x, y, x + width, y + height]


def test_run_lengths_of_nothing():
    empty = coco_mask.encode(np.zeros(SIZE, np.uint8, order="F"))
    assert Outline().rle(SIZE) == empty
    assert Outline.from_rle(empty).rle(SIZE) == empty
    assert Outline.from_rle(empty).area == 0


@given(parts=shapes, region=st.tuples(*[st.integers(0, 60)] * 4))
@PROPERTY
def test_a_region_of_the_raster_is_a_part_of_the_whole(parts, region):
    x, y, width, height = region
    box = np.array([x, y, min(x + width, 120), min(y + height, 90)])
    outline = Outline(parts).clip(WINDOW)
    whole = pixels(outline)
    assert np.array_equal(as_bitmap(outline).raster(box), whole[box[1] : box[3], box[0] : box[2]])
    x1, y1, x2, y2 = own = outline.region
    assert np.array_equal(outline.raster(own), whole[y1:y2, x1:x2])


def test_polygon_and_bitmap_of_one_instance_give_the_same_crop():
    rng = np.random.default_rng(0)
    overlaps = []
    for _ in range(60):
        outline = Outline((blob(*rng.uniform((35, 30, 8, 8, 0), (85, 60, 28, 28, 3))),))
        box = outline.box.astype(np.float64)
        crops = [one.crop(box, SIDE) for one in (outline, as_bitmap(outline))]
        assert {(crop.shape, crop.dtype.name) for crop in crops} == {((SIDE, SIDE), "uint8")}
        overlaps.append(iou(*(crop > 127 for crop in crops)))
    assert np.mean(overlaps) >= 0.97
    assert min(overlaps) > 0.9


def test_crop_is_the_share_of_the_box_that_is_covered():
    outline = Outline((rectangle(10, 10, 30, 30),))
    crop = outline.crop(np.array([10.0, 10.0, 50.0, 30.0]), SIDE)
    assert (crop[:, : SIDE // 2] == 255).all()
    assert (crop[:, SIDE // 2 :] == 0).all()
    bitmap = as_bitmap(outline).crop(np.array([10.0, 10.0, 50.0, 30.0]), SIDE)
    assert abs(bitmap.mean() / 255 - 0.5) < 0.01


# --- matrices and pixels


@given(matrix=homographies())
@PROPERTY
def test_points_go_where_opencv_takes_them(matrix):
    points = np.random.default_rng(0).uniform(0, 90, (20, 2))
    np.testing.assert_allclose(map_points(matrix, points), cv2.perspectiveTransform(points[None], matrix)[0], rtol=1e-9)


def test_a_perspective_is_told_from_an_affinity():
    assert is_affine(flip(4) @ shift(1.5, 2) @ np.diag([0.3, 0.7, 1]))
    assert not is_affine(np.array([[1, 0, 0], [0, 1, 0], [1e-9, 0, 1]]))


@pytest.mark.parametrize("factor", [0.5, 2.0, 3.0])
def test_warp_keeps_corners_in_the_corners(factor):
    image = np.zeros((20, 30, 3), np.uint8)
    image[:, 15:] = 200
    size = (int(20 * factor), int(30 * factor))
    warped = warp(image, np.diag([factor, factor, 1]), size, fill=None)
    assert warped.shape == (*size, 3)
    half = size[1] // 2
    margin = int(np.ceil(factor))
    assert (warped[:, : half - margin] == 0).all()
    assert (warped[:, half + margin :] == 200).all()  # the border is continued, nothing fades out
    assert abs(warped.mean() - 100) < 1


def test_warp_by_the_identity_changes_nothing():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert np.array_equal(warp(image, IDENTITY, (20, 30)), image)
    assert np.array_equal(warp(image, flip(30), (20, 30)), image[:, ::-1])


@pytest.mark.parametrize("tilt", [0.0, 0.002])
def test_warp_takes_pixel_centres_to_pixel_centres(tilt):
    """A ramp is linear, so bilinear sampling reads off the exact source column."""
    ramp = np.repeat(np.arange(0, 250, 2, dtype=np.uint8)[None], 90, axis=0)  # level 2 c at the centre of column c
    matrix = shift(7, -3) @ np.array([[1.3, 0.1, 0], [0.05, 1.2, 0], [0, tilt, 1]])
    warped = warp(ramp, matrix, (60, 80)).astype(float)
    x, y = np.meshgrid(np.arange(80) + 0.5, np.arange(60) + 0.5)
    origin = np.stack((x, y, np.ones_like(x)), axis=-1) @ np.linalg.inv(matrix).T
    column, row = origin[..., 0] / origin[..., 2], origin[..., 1] / origin[..., 2]
    inside = (column > 0.5) & (column < 124.5) & (row > 0.5) & (row < 89.5)
    assert inside.mean() > 0.5
    assert np.abs(warped - 2 * (column - 0.5))[inside].max() <= 0.6


def test_warp_fills_around_the_picture_and_into_a_canvas():
    canvas = np.full((30, 40, 3), 9, np.uint8)
    warp(np.full((10, 10, 3), 200, np.uint8), shift(5, 5), (20, 20), fill=(1, 2, 3), out=canvas[5:25, 10:30])
    assert (canvas[:5] == 9).all()
    assert (canvas[:, 30:] == 9).all()
    assert (canvas[10:20, 15:25] == 200).all()
    assert (canvas[5:10, 10:30] == (1, 2, 3)).all()

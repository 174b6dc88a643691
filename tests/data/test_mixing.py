"""Several pictures in one, against dense masks and arithmetic on whole arrays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from maskrcnn.data.mixing import CopyPaste, MixUp, Mosaic
from maskrcnn.data.outline import Outline, map_points
from maskrcnn.data.sample import Sample

PROPERTY = settings(deadline=None, derandomize=True, max_examples=60)
FILL = (124, 116, 104)
SIDE = 64
seeds = st.integers(0, 2**32)


def rng(seed=0):
    return np.random.default_rng(seed)


def rectangle(x1, y1, x2, y2):
    return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], dtype=np.float64)


def ellipse(cx, cy, rx, ry):
    t = np.linspace(0, 2 * np.pi, 30, endpoint=False)
    return np.stack((cx + rx * np.cos(t), cy + ry * np.sin(t)), axis=1)


def pixels(outline, size):
    return coco_mask.decode(outline.rle(size)).astype(bool)


def corner_points(size):
    height, width = size
    return np.array([(0, 0), (width, 0), (width, height), (0, height)], dtype=np.float64)


def noise(size, seed):
    return rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def scattered(size, count, seed, *, first_label=1, box_only=()):
    """A picture of noise with outlines of many sizes, polygons and bitmaps in turn."""
    draws = rng(seed)
    height, width = size
    outlines = []
    for i in range(count):
        parts = tuple(ellipse(*draws.uniform((0, 0, 3, 3), (width, height, 18, 18))) for _ in range(1 + i % 2))
        outline = Outline(parts).clip((0, 0, width, height))
        if i in box_only:
            outline = Outline((rectangle(*outline.box.astype(float)),), box_only=True)
        elif i % 3 == 2:
            outline = Outline.from_rle(outline.rle(size))
        outlines.append(outline)
    return Sample(noise(size, seed), outlines, np.arange(first_label, first_label + count), image_id=seed)


def enough(min_visibility=0.0):
    """Whether something is left, and at least a share of the whole."""
    return lambda whole, left: left.area > 0 and left.area >= min_visibility * whole.area


# --- mosaic


four_sizes = st.lists(st.tuples(st.integers(10, 300), st.integers(10, 300)), min_size=4, max_size=4)


@given(sizes=four_sizes, seed=seeds, scale=st.tuples(st.floats(0.2, 1), st.floats(1, 2)), translate=st.floats(0, 0.4))
@PROPERTY
def test_mosaic_pictures_meet_in_one_point_at_one_scale(sizes, seed, scale, translate):
    layout = Mosaic(p=1, scale=scale, translate=translate).layout(sizes, rng(seed), side=SIDE)
    boxes = [
        map_points(matrix, corner_points(size))[[0, 2]].ravel() for (matrix, _), size in zip(layout, sizes, strict=True)
    ]
    # Their bottom right, bottom left, top right and top left corners.
    touching = np.array([box[[x, y]] for box, (x, y) in zip(boxes, ((2, 3), (0, 3), (2, 1), (0, 1)), strict=True)])
    np.testing.assert_allclose(touching, touching[:1].repeat(4, axis=0), atol=1e-9)
    factors = []
    for box, (height, width), (matrix, _) in zip(boxes, sizes, layout, strict=True):
        factors.append(max(box[2] - box[0], box[3] - box[1]) / SIDE)
        assert matrix[0, 0] == pytest.approx(matrix[1, 1])
        assert (box[2] - box[0]) / (box[3] - box[1]) == pytest.approx(width / height)
    assert np.ptp(factors) < 1e-9
    assert scale[0] - 1e-9 <= factors[0] <= scale[1] + 1e-9


@given(sizes=four_sizes, seed=seeds, factor=st.floats(0.2, 2))
@PROPERTY
def test_mosaic_windows_tile_the_canvas_that_can_be_seen(sizes, seed, factor):
    layout = Mosaic(p=1, scale=(factor, factor), translate=0.4).layout(sizes, rng(seed), side=SIDE)
    count = np.zeros((SIDE, SIDE), dtype=int)
    for _, (x1, y1, x2, y2) in layout:
        assert 0 <= x1 <= x2 <= SIDE
        assert 0 <= y1 <= y2 <= SIDE
        count[y1:y2, x1:x2] += 1
    assert count.max() <= 1  # no overlap
    rows, columns = np.flatnonzero(count.any(axis=1)), np.flatnonzero(count.any(axis=0))
    if len(rows):
        assert count[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()  # no gap
    if factor >= 0.9:  # then twice the side covers everything, wherever it is moved
        assert count.all()
    # One that has room is seen whole: all windows together are the canvas of twice the side, clipped.
    meeting = map_points(layout[3][0], np.zeros((1, 2)))[0]
    for (_, (x1, y1, x2, y2)), (right, below) in zip(layout, ((0, 0), (1, 0), (0, 1), (1, 1)), strict=True):
        if x2 > x1 and y2 > y1:
            assert abs((x1 if right else x2) - np.clip(meeting[0], 0, SIDE)) <= 0.5
            assert abs((y1 if below else y2) - np.clip(meeting[1], 0, SIDE)) <= 0.5


def test_mosaics_meet_anywhere_between_a_half_and_one_and_a_half_sides():
    """With factor 1 and no move the cut-out is the middle of the doubled canvas, from S/2 to 3S/2."""
    draws, mosaic = rng(), Mosaic(p=1, scale=(1, 1), translate=0)
    sizes = [(40, 30), (30, 40), (50, 50), (7, 200)]
    meeting = [map_points(mosaic.layout(sizes, draws, side=SIDE)[3][0], np.zeros((1, 2)))[0] for _ in range(2000)]
    on_canvas = np.array(meeting) / SIDE + 0.5
    assert 0.5 <= on_canvas.min() < 0.51
    assert 1.49 < on_canvas.max() <= 1.5
    assert np.abs(on_canvas.mean(axis=0) - 1).max() < 0.03
    assert np.abs(on_canvas.std(axis=0) - 1 / 12**0.5).max() < 0.02
    assert abs(np.corrcoef(on_canvas.T)[0, 1]) < 0.07


def test_mosaics_are_moved_by_their_share():
    draws = rng()
    centres = []
    for _ in range(1000):
        state = draws.bit_generator.state
        still = Mosaic(p=1, scale=(0.5, 0.5), translate=0).layout([(9, 9)] * 4, draws, side=SIDE)[3][0][:2, 2]
        draws.bit_generator.state = state
        moved = Mosaic(p=1, scale=(0.5, 0.5), translate=0.2).layout([(9, 9)] * 4, draws, side=SIDE)[3][0][:2, 2]
        centres.append((moved - still) / SIDE)
    assert 0.19 < np.abs(centres).max() <= 0.2
    assert np.abs(np.mean(centres, axis=0)).max() < 0.02


# --- mixup


def test_mixup_is_a_weighted_mean_with_the_instances_of_both():
    first, second = scattered((40, 50), 3, 1), scattered((40, 50), 2, 2, first_label=7)
    share = rng(5).beta(8, 8)
    mixed = MixUp(p=1)(first, second, rng(5), fill=FILL)
    expected = share * first.image.astype(float) + (1 - share) * second.image
    assert np.abs(mixed.image - expected).max() <= 0.501
    assert mixed.image.dtype == np.uint8
    assert mixed.outlines == [*first.outlines, *second.outlines]
    assert mixed.labels.tolist() == [1, 2, 3, 7, 8]
    assert mixed.labels.dtype == np.int64
    assert mixed.image_id == first.image_id
    assert mixed.partners == (second.image_id,)
    assert np.array_equal(first.image, noise((40, 50), 1))


@pytest.mark.parametrize(
    "sizes", [((40, 50), (30, 70)), ((30, 70), (40, 50)), ((20, 20), (40, 70)), ((40, 70), (9, 9))]
)
def test_mixup_extends_both_with_the_fill_colour(sizes):
    first, second = (Sample(noise(size, i), [], np.zeros(0, np.int64), i) for i, size in enumerate(sizes))
    mixed = MixUp(p=1, alpha=2)(first, second, rng(3), fill=FILL)
    share = rng(3).beta(2, 2)
    height, width = np.max(sizes, axis=0)
    pair = np.empty((2, height, width, 3))
    pair[:] = FILL
    for canvas, sample in zip(pair, (first, second), strict=True):
        canvas[: sample.size[0], : sample.size[1]] = sample.image
    assert mixed.size == (height, width)
    assert np.abs(mixed.image - (share * pair[0] + (1 - share) * pair[1])).max() <= 0.501
    assert mixed.labels.shape == (0,)


@pytest.mark.parametrize("alpha", [0.5, 8.0])
def test_shares_follow_the_beta_distribution(alpha):
    white, black = (Sample(np.full((1, 1, 3), level, np.uint8), [], np.zeros(0, int), 0) for level in (255, 0))
    draws, mixup = rng(), MixUp(p=1, alpha=alpha)
    shares = np.array([mixup(white, black, draws, fill=FILL).image[0, 0, 0] for _ in range(4000)]) / 255
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)


# --- copy-paste


@given(
    seed=seeds,
    sizes=st.tuples(*[st.tuples(st.integers(30, 70), st.integers(30, 70))] * 2),
    share=st.sampled_from([0.3, 0.5, 1.0]),
    min_visibility=st.sampled_from([0.0, 0.3]),
)
@PROPERTY
def test_pasting_is_dense_arithmetic(seed, sizes, share, min_visibility):
    base = scattered(sizes[0], 5, seed % 1000, box_only=(3,))
    other = scattered(sizes[1], 5, seed % 1000 + 1, first_label=11, box_only=(0,))
    asked = []

    def remains(whole, left):
        asked.append(whole)
        return enough(min_visibility)(whole, left)

    result = CopyPaste(p=1, share=share)(base, other, rng(seed), remains=remains)

    size = base.size
    height, width = min(size[0], other.size[0]), min(size[1], other.size[1])
    fresh = {}
    for outline, label, draw in zip(other.outlines, other.labels, rng(seed).random(5), strict=True):
        mask = pixels(outline.clip((0, 0, width, height)), size)
        # Where the smaller picture cuts a polygon, rounding to a fifth of a pixel may decide.
        whole = pixels(outline, other.size)[:height, :width]
        assert (mask[:height, :width] ^ whole).sum() <= (0 if size == other.size else 4)
        if draw >= share or outline.box_only:
            assert outline not in asked
            continue
        assert outline in asked
        if mask.any() and enough(min_visibility)(outline, outline.clip((0, 0, width, height))):
            fresh[int(label)] = mask
    hidden = np.any([np.zeros(size, bool), *fresh.values()], axis=0)

    image = base.image.copy()
    rows, columns = np.nonzero(hidden)
    image[rows, columns] = other.image[rows, columns]
    assert np.array_equal(result.image, image)
    assert np.array_equal(base.image, noise(size, seed % 1000))
    assert result.image_id == base.image_id
    assert result.partners == ((other.image_id,) if fresh else ())

    found = {int(label): outline for label, outline in zip(result.labels, result.outlines, strict=True)}
    assert len(found) == len(result.outlines)
    assert result.labels.dtype == np.int64
    for label, outline in zip(base.labels, base.outlines, strict=True):
        before = pixels(outline, size)
        left = before & ~hidden
        visible = left.sum() / max(before.sum(), 1)
        if label in found:
            assert np.array_equal(pixels(found[label], size), left)
            assert found[label].box_only == outline.box_only
            if visible < 1:
                y, x = np.nonzero(left)
                assert found[label].box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert (outline in asked) == (visible < 1 and before.any())
        # The area of a polygon is not quite the number of its pixels.
        if before.sum() > 30:
            assert label in found or visible < min_visibility + 0.1
            assert label not in found or visible > min_visibility - 0.1
    assert {label for label in found if label > 10} == fresh.keys()
    assert all(np.array_equal(pixels(found[label], size), mask) for label, mask in fresh.items())


def block(x1, y1, x2, y2, level, *, label=1, size=(40, 40), **kind):
    image = np.full((*size, 3), level, np.uint8)
    return Sample(image, [Outline((rectangle(x1, y1, x2, y2),), **kind)], np.array([label]), image_id=level)


def test_what_is_pasted_hides_what_lies_under_it():
    result = CopyPaste(p=1, share=1)(
        block(5, 5, 25, 15, 10), block(15, 0, 40, 40, 200, label=2), rng(), remains=enough()
    )
    assert result.labels.tolist() == [1, 2]
    assert result.outlines[0].box.tolist() == [5, 5, 15, 15]
    assert result.outlines[1].box.tolist() == [15, 0, 40, 40]
    assert (result.image[:, :15] == 10).all()
    assert (result.image[:, 15:] == 200).all()


@pytest.mark.parametrize(("min_visibility", "kept"), [(0.0, True), (0.5, True), (0.51, False), (0.9, False)])
def test_little_that_is_left_is_dropped(min_visibility, kept):
    base, other = block(5, 5, 25, 15, 10), block(15, 0, 40, 40, 200, label=2)
    result = CopyPaste(p=1, share=1)(base, other, rng(), remains=enough(min_visibility))
    assert result.labels.tolist() == ([1, 2] if kept else [2])


def test_what_is_asked_of_each_instance():
    """First of what the border leaves of a pasted one, then of what is hidden; never of what nothing covers."""
    base = block(5, 5, 25, 15, 10)
    base = Sample(base.image, [*base.outlines, Outline((rectangle(0, 30, 5, 35),))], np.array([1, 3]), 1)
    other = block(15, 0, 60, 20, 200, label=2, size=(40, 70))
    asked = []

    def remains(whole, left):
        asked.append((whole, left.box.tolist()))
        return True

    result = CopyPaste(p=1, share=1)(base, other, rng(), remains=remains)
    assert asked == [(other.outlines[0], [15, 0, 40, 20]), (base.outlines[0], [5, 5, 15, 15])]
    assert result.labels.tolist() == [1, 3, 2]
    assert result.outlines[1] is base.outlines[1]


def test_what_is_not_worth_pasting_hides_nothing():
    """Its pixels without its instance would teach the background."""
    base = block(5, 5, 25, 15, 10)
    other = block(0, 0, 15, 40, 200, label=2, size=(40, 80))
    other = Sample(other.image, [*other.outlines, Outline((rectangle(20, 0, 80, 40),))], np.array([2, 3]), 2)
    result = CopyPaste(p=1, share=1)(base, other, rng(), remains=enough(0.4))
    assert result.labels.tolist() == [1, 2]
    assert (result.image[:, :15] == 200).all()
    assert (result.image[:, 15:] == 10).all()
    assert result.outlines[0].box.tolist() == [15, 5, 25, 15]
    assert CopyPaste(p=1, share=1)(base, other, rng(), remains=lambda whole, left: False) is base


def test_what_is_hidden_wholly_goes():
    result = CopyPaste(p=1, share=1)(
        block(5, 5, 25, 15, 10), block(4, 4, 26, 16, 200, label=2), rng(), remains=enough()
    )
    assert result.labels.tolist() == [2]


def test_visibility_counts_overlapping_parts_once():
    """Two parts that lie on each other, and a twentieth of them hidden: most is still there to see."""
    base = block(0, 0, 40, 40, 10)
    base = Sample(base.image, [Outline((rectangle(0, 0, 40, 40), rectangle(0, 0, 40, 40)))], base.labels, 1)
    result = CopyPaste(p=1, share=1)(base, block(0, 0, 40, 2, 200, label=2), rng(), remains=enough(0.6))
    assert result.labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("base", "other"),
    [
        (block(5, 5, 25, 15, 10), block(0, 0, 40, 40, 200, box_only=True)),
        (block(5, 5, 25, 15, 10), block(50, 50, 70, 70, 200, size=(80, 80))),  # lies beyond the canvas
        (block(5, 5, 25, 15, 10), Sample(np.zeros((40, 40, 3), np.uint8), [], np.zeros(0, np.int64), 2)),
    ],
)
def test_nothing_to_paste_changes_nothing(base, other):
    assert CopyPaste(p=1, share=1)(base, other, rng(), remains=enough()) is base


def test_pasting_into_a_picture_without_instances():
    base = Sample(np.zeros((40, 40, 3), np.uint8), [], np.zeros(0, np.int64), 2)
    result = CopyPaste(p=1, share=1)(base, block(5, 5, 25, 15, 200, label=3), rng(), remains=enough())
    assert result.labels.tolist() == [3]
    assert (result.image[..., 0] == 200).sum() == 200


def test_each_instance_is_pasted_with_its_probability():
    base = Sample(np.zeros((40, 40, 3), np.uint8), [], np.zeros(0, np.int64), 2)
    outlines = [Outline((rectangle(x, 0, x + 2, 2),)) for x in range(0, 40, 4)]
    other = Sample(base.image, outlines, np.arange(1, 11), 3)
    draws, paste = rng(), CopyPaste(p=1, share=0.3)
    counts = np.zeros(11)
    for _ in range(500):
        counts[paste(base, other, draws, remains=enough()).labels] += 1
    assert np.abs(counts[1:] / 500 - 0.3).max() < 0.08


NAN = float("nan")


@pytest.mark.parametrize(
    ("make", "name", "values"),
    [
        *((step, "p", (-0.1, 1.1, NAN)) for step in (Mosaic, MixUp, CopyPaste)),
        (Mosaic, "scale", ((0, 1), (2, 1), (1,), (NAN, 1))),
        (Mosaic, "translate", (-0.1, 1.1, NAN)),
        (MixUp, "alpha", (0, -1, NAN)),
        (CopyPaste, "share", (0, -0.1, 1.1, NAN)),
    ],
)
def test_invalid_arguments_are_named(make, name, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"^{name} must be .*, got .*\Z"):
            make(**{name: value})

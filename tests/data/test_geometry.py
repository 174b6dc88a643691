"""Each step's matrix against the places where its picture's corners must go."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn.data.geometry import (
    HorizontalFlip,
    LargeScaleJitter,
    MultiScale,
    Perspective,
    RandomCrop,
    chain,
)
from maskrcnn.data.outline import IDENTITY, map_points, shift

SIZE = (90, 120)  # height, width
PROPERTY = settings(deadline=None, derandomize=True, max_examples=60)
seeds = st.integers(0, 2**32)
sizes = st.tuples(st.integers(1, 300), st.integers(1, 300))


def rng(seed=0):
    return np.random.default_rng(seed)


def corners(size):
    height, width = size
    return np.array([(0, 0), (width, 0), (width, height), (0, height)], dtype=np.float64)


@pytest.mark.parametrize("step", [HorizontalFlip(), RandomCrop(), Perspective(degrees=90, translate=1)])
def test_a_step_that_is_off_draws_nothing(step):
    draws = rng()
    before = draws.bit_generator.state
    matrix, size = step(SIZE, draws)
    assert np.array_equal(matrix, IDENTITY)
    assert size == SIZE
    assert draws.bit_generator.state == before


@pytest.mark.parametrize(
    "make", [HorizontalFlip, lambda p: RandomCrop(p=p, min_share=0.5), lambda p: Perspective(p=p, degrees=90)]
)
def test_a_step_comes_as_often_as_asked(make):
    draws, step = rng(), make(p=0.25)
    happened = [not np.array_equal(step((900, 900), draws)[0], IDENTITY) for _ in range(2000)]
    assert abs(np.mean(happened) - 0.25) < 0.04
    assert all(not np.array_equal(make(p=1)((900, 900), rng(seed))[0], IDENTITY) for seed in range(50))


def test_flip_maps_left_to_right():
    matrix, size = HorizontalFlip(p=1)(SIZE, rng())
    assert size == SIZE
    for x in (0, 1, 60, 120):
        assert (matrix @ [x, 7, 1]).tolist() == [120 - x, 7, 1]


@given(size=sizes, seed=seeds, min_share=st.floats(0.05, 1))
@PROPERTY
def test_crop_is_a_part_of_the_picture(size, seed, min_share):
    matrix, cropped = RandomCrop(p=1, min_share=min_share)(size, rng(seed))
    left, top = -matrix[:2, 2]
    assert np.array_equal(matrix, shift(-left, -top))
    assert left == int(left)
    assert top == int(top)
    for start, part, whole in ((top, cropped[0], size[0]), (left, cropped[1], size[1])):
        assert 0 <= start <= start + part <= whole
        assert part >= max(round(min_share * whole), 1)


def test_crops_reach_every_border_and_both_extremes_of_their_size():
    draws, crop = rng(), RandomCrop(p=1, min_share=0.5)
    seen = [crop((20, 20), draws) for _ in range(600)]
    left = np.array([-matrix[0, 2] for matrix, _ in seen])
    right = np.array([20 - width + matrix[0, 2] for matrix, (_, width) in seen])
    assert left.min() == right.min() == 0
    assert {size[0] for _, size in seen} == set(range(10, 21))


@given(size=sizes, seed=seeds)
@PROPERTY
def test_multi_scale_takes_corners_to_corners(size, seed):
    matrix, resized = MultiScale(min_sizes=[40, 50, 60], max_size=100)(size, rng(seed))
    np.testing.assert_allclose(map_points(matrix, corners(size)), corners(resized), atol=1e-9)
    assert max(resized) <= 100
    scale = min(resized) / min(size)
    asked = (40, 50, 60, 39, 49, 59)  # sides are cut to whole pixels, torchvision's way: 59.999 is 59
    assert min(resized) in asked or max(resized) in (99, 100)
    assert abs(max(resized) - max(size) * scale) <= max(size) / min(size) + 1


def test_every_size_is_drawn():
    draws, step = rng(), MultiScale(min_sizes=[30, 60, 90], max_size=1000)
    assert {min(step(SIZE, draws)[1]) for _ in range(40)} == {30, 60, 90}


@given(size=sizes, seed=seeds, scale=st.tuples(st.floats(0.1, 1), st.floats(1, 2)))
@PROPERTY
def test_jitter_resizes_and_crops(size, seed, scale):
    matrix, canvas = LargeScaleJitter(p=1, scale=scale)(size, rng(seed), side=64)
    assert canvas == (64, 64)
    (x1, y1), _, (x2, y2), _ = map_points(matrix, corners(size))
    factor = max(x2 - x1, y2 - y1) / 64
    assert scale[0] - 1e-9 <= factor <= scale[1] + 1e-9
    assert (x2 - x1) / size[1] == pytest.approx((y2 - y1) / size[0])
    for low, high in ((x1, x2), (y1, y2)):
        # A side that fits stands at the corner; one that does not covers the canvas.
        assert (low == 0 and high <= 64 + 1e-9) or (low <= 0 and high >= 64 - 1e-9)


def test_jitter_factors_and_crops_are_uniform():
    draws, jitter = rng(), LargeScaleJitter(p=1, scale=(0.1, 2.0))
    matrices = np.array([jitter((100, 100), draws, side=100)[0] for _ in range(4000)])
    factor = matrices[:, 0, 0]
    assert factor.mean() == pytest.approx(1.05, abs=0.03)
    assert factor.std() == pytest.approx(1.9 / 12**0.5, abs=0.03)
    large = factor > 1.2
    share = -matrices[large, :2, 2] / (factor[large, None] - 1) / 100
    assert np.abs(share.mean(axis=0) - 0.5).max() < 0.03
    assert np.abs(share.std(axis=0) - 1 / 12**0.5).max() < 0.02
    assert abs(np.corrcoef(share.T)[0, 1]) < 0.06


@given(size=st.tuples(st.integers(20, 300), st.integers(20, 300)), seed=seeds)
@PROPERTY
def test_rotation_keeps_lengths_and_the_centre(size, seed):
    matrix, canvas = Perspective(p=1, degrees=180)(size, rng(seed))
    assert canvas == size
    centre = np.array([[size[1] / 2, size[0] / 2]])
    np.testing.assert_allclose(map_points(matrix, centre), centre, atol=1e-9)
    np.testing.assert_allclose(matrix[:2, :2] @ matrix[:2, :2].T, np.eye(2), atol=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(1)


def test_each_setting_changes_what_it_says():
    draws = rng()
    moves = np.array([Perspective(p=1, degrees=0, translate=0.2)(SIZE, draws)[0] for _ in range(500)])
    assert np.array_equal(moves[:, :2, :2], np.broadcast_to(np.eye(2), (500, 2, 2)))
    shares = moves[:, :2, 2] / (120, 90)
    assert np.abs(shares).max() <= 0.2
    assert (shares.max(axis=0) > 0.19).all()
    assert (shares.min(axis=0) < -0.19).all()

    turns = np.array([Perspective(p=1, degrees=10)(SIZE, draws)[0] for _ in range(500)])
    angles = np.degrees(np.arctan2(turns[:, 1, 0], turns[:, 0, 0]))
    assert 9.8 < angles.max() <= 10
    assert -10 <= angles.min() < -9.8

    scales = [np.linalg.det(Perspective(p=1, degrees=0, scale=(0.5, 2))(SIZE, draws)[0]) ** 0.5 for _ in range(500)]
    assert 0.5 <= min(scales) < 0.52
    assert 1.98 < max(scales) <= 2

    shears = np.array([Perspective(p=1, degrees=0, shear=30)(SIZE, draws)[0] for _ in range(500)])
    angles = np.degrees(np.arctan(shears[:, [0, 1], [1, 0]]))
    assert np.abs(angles).max() <= 30
    assert (np.abs(angles).max(axis=0) > 29.5).all()
    np.testing.assert_allclose(shears[:, [0, 1], [0, 1]], 1)


@given(seed=seeds, size=st.tuples(st.integers(20, 300), st.integers(20, 300)))
@PROPERTY
def test_a_tilt_changes_the_scale_by_its_share(seed, size):
    """On the line from border to border through the centre, depths run from 1 - tilt to 1 + tilt."""
    matrix, _ = Perspective(p=1, degrees=0, perspective=0.3)(size, rng(seed))
    height, width = size
    middle = np.array(
        [(width / 2, height / 2), (0, height / 2), (width, height / 2), (width / 2, 0), (width / 2, height)]
    )
    depth = np.c_[middle, np.ones(5)] @ matrix[2]
    assert depth[0] == pytest.approx(1)
    assert depth[1] + depth[2] == pytest.approx(2)
    assert depth[3] + depth[4] == pytest.approx(2)
    assert np.abs(depth - 1).max() <= 0.3 + 1e-9
    moved = map_points(matrix, middle)
    np.testing.assert_allclose(moved[0], middle[0], atol=1e-9)
    # A border is at its distance from the centre, divided by its depth.
    np.testing.assert_allclose(moved - middle[0], (middle - middle[0]) / depth[:, None], atol=1e-9)


@given(seed=seeds)
@PROPERTY
def test_four_corners_make_the_homography(seed):
    """Four points and where they go determine the mapping of everything else: OpenCV solves for it."""
    step = Perspective(p=1, degrees=30, scale=(0.5, 1.5), shear=15, translate=0.2, perspective=0.3)
    matrix, _ = step(SIZE, rng(seed))
    source = corners(SIZE).astype(np.float32)
    solved = cv2.getPerspectiveTransform(source, map_points(matrix, corners(SIZE)).astype(np.float32))
    points = np.random.default_rng(1).uniform((0, 0), (120, 90), (30, 2))
    np.testing.assert_allclose(map_points(matrix, points), cv2.perspectiveTransform(points[None], solved)[0], atol=0.05)


def test_the_strongest_tilt_keeps_the_picture_in_front_of_the_viewer():
    step = Perspective(p=1, perspective=0.4)
    for seed in range(200):
        matrix, _ = step(SIZE, rng(seed))
        assert (np.c_[corners(SIZE), np.ones(4)] @ matrix[2] > 0.19).all()


def test_a_chain_is_one_step_after_the_other():
    first = np.diag([2.0, 2.0, 1.0]), (180, 240)
    second = shift(-30, -20), (100, 120)
    third = HorizontalFlip(p=1)((100, 120), rng())
    matrix, size = chain([first, second, third])
    assert size == (100, 120)
    assert map_points(matrix, np.array([[20.0, 15.0]])).tolist() == [[120 - (20 * 2 - 30), 15 * 2 - 20]]


def test_same_generator_same_placement():
    steps = [
        HorizontalFlip(p=0.5),
        RandomCrop(p=0.5),
        MultiScale(min_sizes=[30, 60], max_size=100),
        Perspective(p=0.5, degrees=30, perspective=0.1),
    ]

    def placements(seed):
        draws = rng(seed)
        return [step(SIZE, draws)[0].tolist() for step in steps]

    found = [placements(seed) for seed in range(20)]
    assert found == [placements(seed) for seed in range(20)]
    assert len({str(one) for one in found}) > 12


NAN = float("nan")


@pytest.mark.parametrize(
    ("make", "name", "values"),
    [
        *((step, "p", (-0.1, 1.1, NAN)) for step in (HorizontalFlip, RandomCrop, LargeScaleJitter, Perspective)),
        (RandomCrop, "min_share", (0, -1, 1.1, NAN)),
        (LargeScaleJitter, "scale", ((0, 1), (2, 1), (-1, 1), (1,), (1, 2, 3), (NAN, 1))),
        (Perspective, "scale", ((0, 1), (2, 1), ())),
        (Perspective, "degrees", (-1, 181, NAN)),
        (Perspective, "shear", (-1, 61, NAN)),
        (Perspective, "translate", (-0.1, 1.1, NAN)),
        (Perspective, "perspective", (-0.1, 0.5, NAN)),
    ],
)
def test_invalid_arguments_are_named(make, name, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"^{name} must be .*, got .*\Z"):
            make(**{name: value})

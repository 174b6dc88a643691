"""Where a picture lands on its canvas and what is drawn there, against a warp of the whole picture."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn.data import patch as patch_module
from maskrcnn.data.outline import IDENTITY, map_points, shift, warp
from maskrcnn.data.patch import FILL, fit, new_canvas

PROPERTY = settings(deadline=None, derandomize=True, max_examples=150)
EVERYTHING = (0, 0, 10_000, 10_000)


def scaled(x, y=None):
    return np.diag([x, x if y is None else y, 1.0])


def flip(width):
    return np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]])


def turned(degrees, about):
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return shift(*about) @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ shift(-about[0], -about[1])


def smooth(size):
    """Waves of about 60 pixels, other ones in each channel."""
    y, x = np.mgrid[: size[0], : size[1]]
    waves = np.sin(x / 11), np.cos(y / 9), np.sin((x + 2 * y) / 23)
    return np.round(127 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)


def reduced(image, shrink):
    """Means of blocks, of what there is of the last ones."""
    padded = np.pad(image, [(0, -side % shrink) for side in image.shape[:2]] + [(0, 0)], mode="edge")
    blocks = padded.reshape(padded.shape[0] // shrink, shrink, padded.shape[1] // shrink, shrink, 3)
    return np.round(blocks.mean(axis=(1, 3))).astype(np.uint8)


def drawn(patch, image, size):
    """A filled canvas with the picture on it, and a warp of the same pixels by the patch's own matrix."""
    decoded = reduced(image, patch.shrink)
    canvas = np.full((*size, 3), FILL, np.uint8)
    patch.draw(canvas, patch.needed(decoded))
    whole = warp(decoded, patch.matrix @ scaled(patch.shrink), size, fill=None if patch.upright else FILL)
    return canvas, whole


def inside(window, size):
    mask = np.zeros(size, dtype=bool)
    x1, y1, x2, y2 = window
    mask[y1:y2, x1:x2] = True
    return mask


@st.composite
def placements(draw):
    """An upright matrix, the size of its picture, and a window of the canvas."""
    size = draw(st.integers(1, 400)), draw(st.integers(1, 400))
    scale = draw(st.floats(0.03, 4))
    matrix = shift(draw(st.floats(-300, 150)), draw(st.floats(-300, 150))) @ scaled(
        scale, scale * draw(st.floats(0.9, 1.1))
    )
    corner = draw(st.integers(0, 100)), draw(st.integers(0, 100))
    window = (*corner, corner[0] + draw(st.integers(0, 200)), corner[1] + draw(st.integers(0, 200)))
    return matrix, size, window


# --- upright pictures


@given(placement=placements(), mirrored=st.booleans())
@PROPERTY
def test_an_upright_picture_hardly_moves(placement, mirrored):
    """Half a pixel of the canvas, or of the decoded picture where that is larger; if only one is seen, within it."""
    matrix, size, window = placement
    matrix = flip(300) @ matrix if mirrored else matrix
    patch = fit(matrix, size, window)
    corners = map_points(matrix, np.array([(0.0, 0.0), size[::-1]]))
    low = np.maximum(np.round(corners.min(axis=0)), window[:2])
    high = np.minimum(np.round(corners.max(axis=0)), window[2:])
    if (low >= high).any():
        assert patch is None
        return
    assert patch.window == (*low, *high)
    assert patch.upright
    x1, y1, x2, y2 = patch.source
    assert 0 <= x1 < x2 <= -(-size[1] // patch.shrink)
    assert 0 <= y1 < y2 <= -(-size[0] // patch.shrink)
    # The matrix says what is drawn: the ends of the source are the ends of the window.
    ends = map_points(patch.matrix, np.array([(x1, y1), (x2, y2)], dtype=float) * patch.shrink)
    np.testing.assert_allclose(np.sort(ends, axis=0).ravel(), patch.window, atol=1e-9)
    assert (patch.matrix[0, 0] < 0) == mirrored
    assert patch.matrix[1, 1] > 0
    visible = map_points(np.linalg.inv(matrix), np.array([low, high])).clip(0, size[::-1])
    scale = np.maximum(np.abs(matrix.diagonal()[:2]), np.abs(patch.matrix.diagonal()[:2]))
    moved = np.abs(map_points(patch.matrix, visible) - map_points(matrix, visible))
    share = np.where(np.array((x2 - x1, y2 - y1)) > 1, 0.5, 1)
    assert (moved <= np.maximum(0.5, scale * patch.shrink * share) + 1e-9).all()


@given(placement=placements(), mirrored=st.booleans())
@PROPERTY
def test_what_is_drawn_is_what_the_matrix_says(placement, mirrored):
    matrix, size, window = placement
    matrix = flip(300) @ matrix if mirrored else matrix
    patch = fit(matrix, size, window)
    if patch is None:
        return
    canvas, whole = drawn(patch, smooth(size), (300, 300))
    mask = inside(patch.window, (300, 300))
    assert (canvas[~mask] == FILL).all()
    difference = np.abs(canvas[mask].astype(float) - whole[mask])
    # Only the pixels at the border of a part know less than those of the whole.
    assert difference.mean() < 2.5
    x1, y1, x2, y2 = patch.window
    margin = int(np.ceil(max(1, *np.abs(patch.matrix.diagonal()[:2]) * patch.shrink)))
    inner = np.abs(canvas.astype(float) - whole)[y1 + margin : y2 - margin, x1 + margin : x2 - margin]
    assert inner.size == 0 or inner.max() <= 5


@pytest.mark.parametrize(
    ("matrix", "size", "window", "covered", "source"),
    [
        (IDENTITY, (60, 80), EVERYTHING, (0, 0, 80, 60), (0, 0, 80, 60)),
        (IDENTITY, (60, 80), (10, 20, 30, 50), (10, 20, 30, 50), (10, 20, 30, 50)),
        (shift(-20, -10), (60, 80), (0, 0, 100, 100), (0, 0, 60, 50), (20, 10, 80, 60)),
        (shift(5.4, 6.6), (60, 80), EVERYTHING, (5, 7, 85, 67), (0, 0, 80, 60)),
        (scaled(2), (60, 80), (21, 0, 100, 120), (21, 0, 100, 120), (10, 0, 50, 60)),
        (flip(80), (60, 80), (0, 0, 30, 60), (0, 0, 30, 60), (50, 0, 80, 60)),
        (flip(160) @ scaled(2), (60, 80), (100, 20, 160, 120), (100, 20, 160, 120), (0, 10, 30, 60)),
    ],
)
def test_windows_and_sources_by_hand(matrix, size, window, covered, source):
    patch = fit(matrix, size, window)
    assert patch.window == covered
    assert patch.source == source
    assert patch.shrink == 1


def test_whole_pixels_are_copied():
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    canvas = np.zeros((70, 90, 3), np.uint8)
    patch = fit(shift(3, 4), (60, 80), (0, 0, 90, 70))
    patch.draw(canvas, patch.needed(image))
    assert np.array_equal(canvas[4:64, 3:83], image)
    assert not canvas[:4].any()
    assert not canvas[:, :3].any()
    part = fit(flip(80), (60, 80), (10, 5, 30, 40))
    canvas[:] = 0
    part.draw(canvas, part.needed(image))
    assert np.array_equal(canvas[5:40, 10:30], image[:, ::-1][5:40, 10:30])
    assert canvas.any(axis=2).sum() <= 35 * 20


@pytest.mark.parametrize("scale", [0.15, 0.3, 0.7, 1.0, 2.5])
def test_a_mirrored_picture_is_the_mirror_image(scale):
    size, width = (90, 120), round(120 * scale)
    image = smooth(size)
    one = fit(scaled(width / 120, scale), size, (0, 0, width // 2, 300))
    other = fit(flip(width) @ scaled(width / 120, scale), size, (width - width // 2, 0, width, 300))
    assert other.source == one.source
    canvases = np.zeros((2, 300, width, 3), np.uint8)
    for canvas, patch in zip(canvases, (one, other), strict=True):
        patch.draw(canvas, patch.needed(reduced(image, patch.shrink)))
    assert np.array_equal(canvases[0], canvases[1][:, ::-1])
    assert canvases[0].any()


# --- how much is decoded


@pytest.mark.parametrize(
    ("scale", "shrink"),
    [(2, 1), (1, 1), (0.51, 1), (0.5, 2), (0.26, 2), (0.25, 4), (0.126, 4), (0.125, 8), (0.05, 8)],
)
def test_decoded_pixels_are_no_smaller_than_those_of_the_canvas(scale, shrink):
    for matrix in (scaled(scale), flip(100) @ scaled(scale), turned(30, (50, 50)) @ scaled(scale)):
        assert fit(matrix, (400, 400), EVERYTHING).shrink == shrink


def test_where_a_tilt_magnifies_most_decides():
    """Its centre shrinks to a quarter, the near border to less than a half."""
    tilted = np.array([[1, 0, 0], [0, 1, 0], [0.3 / 200, 0, 1]])
    matrix = shift(100, 100) @ scaled(0.25) @ tilted @ shift(-200, -200)
    corner = map_points(matrix, np.array([(0, 0), (0.01, 0), (0, 0.01)]))
    factor = (abs(np.linalg.det(corner[1:] - corner[0])) / 0.01**2) ** 0.5
    assert 0.4 < factor < 0.45
    assert fit(matrix, (400, 400), EVERYTHING).shrink == 2
    assert fit(shift(100, 100) @ scaled(0.25) @ shift(-200, -200), (400, 400), EVERYTHING).shrink == 4


@pytest.mark.parametrize("size", [(331, 467), (17, 9), (8, 8), (9, 33), (3, 3), (1, 7)])
@pytest.mark.parametrize("side", [0.12, 0.2, 0.45])
def test_sides_that_are_no_multiples_of_the_reduction(size, side):
    """The last decoded pixel holds fewer of the picture's; the rest keeps its place."""
    canvas_size = tuple(max(round(length * side), 1) for length in size)
    matrix = scaled(canvas_size[1] / size[1], canvas_size[0] / size[0])
    patch = fit(matrix, size, (0, 0, canvas_size[1], canvas_size[0]))
    assert patch.window == (0, 0, canvas_size[1], canvas_size[0])
    x = np.repeat(np.arange(size[1], dtype=float)[None], size[0], axis=0)
    ramp = np.repeat((x * 250 / max(size[1] - 1, 1))[..., None], 3, axis=2).astype(np.uint8)
    canvas = np.empty((*canvas_size, 3), np.uint8)
    patch.draw(canvas, patch.needed(reduced(ramp, patch.shrink)))
    expected = cv2.resize(ramp, canvas_size[::-1], interpolation=cv2.INTER_AREA)
    # Half a pixel of the canvas, in levels of the ramp.
    assert np.abs(canvas.astype(float) - expected).max() <= 0.5 * 250 / canvas_size[1] + 3


# --- what is hardly there


def test_a_single_pixel_may_be_everything():
    image = np.array([[(10, 20, 30)]], dtype=np.uint8)
    for matrix in (scaled(64), flip(64) @ scaled(64), scaled(64.4, 63.6)):
        patch = fit(matrix, (1, 1), (0, 0, 64, 64))
        assert patch.window == (0, 0, 64, 64)
        assert patch.source == (0, 0, 1, 1)
        canvas = np.zeros((64, 64, 3), np.uint8)
        patch.draw(canvas, patch.needed(image))
        assert (canvas == (10, 20, 30)).all()
    part = fit(scaled(64), (1, 1), (60, 10, 70, 12))
    assert part.window == (60, 10, 64, 12)
    assert part.source == (0, 0, 1, 1)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (5, 3)])
def test_tiny_pictures_fill_a_pixel_or_none(size):
    for scale in (0.05, 0.125, 0.3, 0.6):
        patch = fit(shift(10.2, 10.2) @ scaled(scale), size, EVERYTHING)
        if patch is None:
            assert min(size) * scale < 1
            continue
        canvas = np.zeros((220, 220, 3), np.uint8)
        patch.draw(canvas, patch.needed(np.full((*(-(-side // patch.shrink) for side in size), 3), 9, np.uint8)))
        x1, y1, x2, y2 = patch.window
        assert (canvas[y1:y2, x1:x2] == 9).all()
        assert (canvas > 0).sum() == 3 * (x2 - x1) * (y2 - y1)


@pytest.mark.parametrize(
    "window",
    [(0, 0, 10, 100), (90, 0, 100, 100), (0, 50, 100, 100), (0, 0, 100, 10), (30, 20, 30, 40), (40, 20, 30, 40)],
)
@pytest.mark.parametrize("turn", [0, 30])
def test_windows_that_miss_the_picture(window, turn):
    """It lies in 20..80 x 20..40, or within a pixel of it if turned."""
    matrix = shift(20, 20) if not turn else shift(50, 30) @ turned(turn, (0, 0)) @ scaled(0.3) @ shift(-30, -10)
    assert fit(matrix, (20, 60), window) is None
    assert fit(matrix, (20, 60), (0, 0, 100, 100)) is not None


def test_less_than_half_a_pixel_inside_is_a_miss():
    assert fit(shift(0.4, 0), (20, 20), (20, 0, 40, 40)) is None
    assert fit(shift(0.6, 0), (20, 20), (20, 0, 40, 40)).window == (20, 0, 21, 20)


# --- turned pictures


@pytest.mark.parametrize("degrees", [1, 30, 90.5, 200])
@pytest.mark.parametrize("scale", [0.3, 0.8, 1.7])
@pytest.mark.parametrize("tilt", [0.0, 0.001])
def test_a_turned_picture_is_warped_by_its_matrix(degrees, scale, tilt):
    size, canvas_size = (90, 121), (150, 200)
    perspective = np.array([[1, 0, 0], [0, 1, 0], [tilt, 0, 1]])
    matrix = shift(100, 75) @ turned(degrees, (0, 0)) @ scaled(scale) @ perspective @ shift(-60, -45)
    for window in ((0, 0, 200, 150), (40, 30, 120, 80)):
        patch = fit(matrix, size, window)
        assert not patch.upright
        assert np.array_equal(patch.matrix, matrix)
        canvas, whole = drawn(patch, smooth(size), canvas_size)
        mask = inside(window, canvas_size)
        assert np.abs(canvas[mask].astype(float) - whole[mask]).mean() < 0.2
        assert (canvas[~mask] == FILL).all()
        # Of the reduced picture each pixel still knows where it was in the whole one.
        full = warp(smooth(size), matrix, canvas_size, fill=FILL)
        assert np.abs(canvas[mask].astype(float) - full[mask]).mean() < 2
    corners = map_points(matrix, np.array([(0, 0), (121, 0), (121, 90), (0, 90)], dtype=float))
    tight = np.r_[corners.min(axis=0), corners.max(axis=0)].clip(0, [200, 150, 200, 150])
    assert np.abs(np.array(fit(matrix, size, (0, 0, 200, 150)).window) - tight).max() <= 1.5


# --- canvases


def test_a_canvas_is_filled_only_where_something_shows_through(monkeypatch):
    fills = []
    draw = cv2.rectangle
    monkeypatch.setattr(patch_module.cv2, "rectangle", lambda *args, **kwargs: (fills.append(1), draw(*args, **kwargs)))
    size = (40, 60)
    left, right = fit(IDENTITY, (40, 30), (0, 0, 30, 40)), fit(shift(30, 0), (40, 30), (30, 0, 60, 40))
    assert new_canvas(size, [left, right]).shape == (40, 60, 3)
    assert new_canvas(size, [left, right]).dtype == np.uint8
    assert not fills
    whole = fit(turned(5, (30, 20)) @ scaled(3) @ shift(-20, -10), size, (0, 0, 60, 40))
    assert whole.window == (0, 0, 60, 40)
    for patches in ([], [left], [whole]):  # a turned one may not reach into the corners of its window
        fills.clear()
        assert (new_canvas(size, patches) == FILL).all()
        assert fills

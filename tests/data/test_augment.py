"""A drawn square says where the pixels went; its outline must say the same."""

import numpy as np
import pytest

from maskrcnn.data.augment import Augment, HorizontalFlip, TrainTransform
from maskrcnn.data.pixels import ColorJitter
from maskrcnn.data.sample import Outline, Sample

SQUARE = (20, 30, 50, 60)  # x1 y1 x2 y2
FLIP = HorizontalFlip(p=1)


def square_sample(height=90, width=120):
    x1, y1, x2, y2 = SQUARE
    image = np.zeros((height, width, 3), np.uint8)
    image[y1:y2, x1:x2] = 255
    corners = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], dtype=np.float64)
    outlines = [Outline((corners,)), Outline(bitmap=(image[..., 0] > 0).astype(np.uint8))]
    return Sample(image, outlines, np.array([1, 2]), image_id=3)


def transform(*, min_sizes=(90,), max_size=1000, flip=None, color=None):
    return TrainTransform(min_sizes=min_sizes, max_size=max_size, augment=Augment(flip=flip, color=color))


def rng(seed=0):
    return np.random.default_rng(seed)


def bright_box(image):
    rows, columns = (np.flatnonzero((image[..., 0] > 127).any(axis=axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def test_flip_maps_left_to_right():
    matrix = FLIP.matrix((90, 120), rng())
    for x in (0, 1, 60, 120):
        assert (matrix @ [x, 7, 1]).tolist() == [120 - x, 7, 1]


def test_flip_happens_as_often_as_asked():
    draws = rng()
    flips = [HorizontalFlip(p=0.25).matrix((9, 9), draws)[0, 0] < 0 for _ in range(2000)]
    assert abs(np.mean(flips) - 0.25) < 0.04
    assert not any(HorizontalFlip(p=0).matrix((9, 9), draws)[0, 0] < 0 for _ in range(100))
    assert all(FLIP.matrix((9, 9), draws)[0, 0] < 0 for _ in range(100))


@pytest.mark.parametrize("size", [45, 90, 135, 180, 200])
@pytest.mark.parametrize("flip", [None, FLIP])
def test_pixels_and_outlines_go_the_same_way(size, flip):
    sample = transform(min_sizes=[size], flip=flip)(square_sample(), rng())
    assert min(sample.size) == size
    found = bright_box(sample.image)
    for outline in sample.outlines:
        assert np.abs(outline.box(sample.size) - found).max() <= 0.7
    factor = size / 90
    x1, y1, x2, y2 = np.array(SQUARE) * factor
    expected = [x1, y1, x2, y2] if flip is None else [sample.size[1] - x2, y1, sample.size[1] - x1, y2]
    assert np.abs(sample.outlines[0].box(sample.size) - expected).max() <= 0.7


def test_labels_and_id_stay():
    sample = transform(flip=FLIP)(square_sample(), rng())
    assert sample.labels.tolist() == [1, 2]
    assert sample.image_id == 3


def test_nothing_to_do_changes_nothing():
    sample = square_sample()
    assert np.array_equal(transform()(sample, rng()).image, sample.image)


def test_the_argument_is_left_as_it_is():
    sample = square_sample()
    transform(min_sizes=[64], flip=FLIP, color=ColorJitter(p=1))(sample, rng())
    assert np.array_equal(sample.image, square_sample().image)
    assert sample.outlines[0].box(sample.size).tolist() == list(SQUARE)
    assert sample.outlines[1].box(sample.size).tolist() == list(SQUARE)


def test_long_side_never_passes_the_maximum():
    sample = transform(min_sizes=[90], max_size=100)(square_sample(60, 180), rng())
    assert max(sample.size) <= 100
    assert abs(sample.size[1] / sample.size[0] - 3) < 0.1


def test_every_size_is_drawn():
    resize, draws = transform(min_sizes=[30, 60, 90]), rng()
    assert {min(resize(square_sample(), draws).size) for _ in range(40)} == {30, 60, 90}


def test_same_generator_same_sample():
    augment = transform(min_sizes=[40, 60, 80, 100], flip=HorizontalFlip(), color=ColorJitter())
    samples = [augment(square_sample(), rng(seed)) for seed in range(12)]
    again = [augment(square_sample(), rng(seed)) for seed in reversed(range(12))][::-1]
    for one, other in zip(samples, again, strict=True):
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.outlines[0].box(one.size), other.outlines[0].box(other.size))
    assert len({sample.image.tobytes() for sample in samples}) > 6


def textured():
    image = rng(1).integers(60, 200, (40, 50, 3), dtype=np.uint8)
    image[10:20, 10:20] = (255, 0, 0)
    return image


def test_colour_changes_pixels_and_not_places():
    image = textured()
    changed = ColorJitter(p=1, brightness=0.3, contrast=0, saturation=0, hue=0)(image, rng(3))
    assert (changed.shape, changed.dtype) == (image.shape, np.uint8)
    assert not np.array_equal(changed, image)
    # A factor on every pixel: what was brighter stays brighter, wherever it is.
    assert np.corrcoef(image.ravel(), changed.ravel())[0, 1] > 0.98


def test_colour_follows_the_generator():
    image, jitter = textured(), ColorJitter(p=1)
    first, other = jitter(image, rng(5)), jitter(image, rng(6))
    assert np.array_equal(first, jitter(image, rng(5)))
    assert np.array_equal(first, ColorJitter(p=1)(image, rng(5)))
    assert not np.array_equal(first, other)


def test_colour_comes_as_often_as_asked():
    image, jitter, draws = textured(), ColorJitter(p=0.5), rng()
    share = np.mean([np.array_equal(jitter(image, draws), image) for _ in range(200)])
    assert 0.35 < share < 0.65
    assert np.array_equal(ColorJitter(p=0)(image, draws), image)


def test_colour_and_flip_are_drawn_apart():
    image, jitter, flip = textured(), ColorJitter(p=0.5), HorizontalFlip(p=0.5)
    seen = set()
    for seed in range(40):
        draws = rng(seed)
        flipped = flip.matrix((9, 9), draws)[0, 0] < 0
        seen.add((flipped, np.array_equal(jitter(image, draws), image)))
    assert len(seen) == 4


@pytest.mark.parametrize("make", [HorizontalFlip, ColorJitter])
@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_a_probability_beyond_its_range_is_named(make, p):
    with pytest.raises(ValueError, match="p must be between 0 and 1"):
        make(p=p)

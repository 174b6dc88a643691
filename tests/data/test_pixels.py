"""Colours change, places stay, and every draw comes from the generator that is handed in."""

import random

import cv2
import numpy as np
import pytest

from maskrcnn.data.pixels import Blur, ColorJitter, Noise

STEPS = [ColorJitter, Blur, Noise]


def rng(seed=0):
    return np.random.default_rng(seed)


def textured(seed=1):
    """Smooth noise with a red square; read-only, as a decoded file is."""
    image = cv2.resize(
        rng(seed).integers(40, 220, (10, 12, 3), dtype=np.uint8), (60, 50), interpolation=cv2.INTER_CUBIC
    )
    image[10:20, 10:20] = (255, 0, 0)
    image.flags.writeable = False
    return image


@pytest.mark.parametrize("make", STEPS)
def test_a_step_that_is_off_draws_nothing(make):
    draws, image = rng(), textured()
    before = draws.bit_generator.state
    assert make()(image, draws) is image
    assert draws.bit_generator.state == before


@pytest.mark.parametrize("make", STEPS)
def test_pixels_change_and_the_argument_does_not(make):
    image = textured()
    changed = make(p=1)(image, rng(3))
    assert (changed.shape, changed.dtype) == (image.shape, np.uint8)
    assert not np.array_equal(changed, image)
    assert np.array_equal(image, textured())


@pytest.mark.parametrize("make", STEPS)
def test_changes_follow_the_generator_and_nothing_else(make):
    image, step = textured(), make(p=1)
    expected = [step(image, rng(seed)) for seed in range(6)]
    assert len({one.tobytes() for one in expected}) == 6
    np.random.seed(7)
    random.seed(7)
    other = make(p=1)
    for seed in reversed(range(6)):
        other(image, rng(seed + 100))
        assert np.array_equal(other(image, rng(seed)), expected[seed])
    state = np.random.get_state()[1].tolist(), random.getstate()
    step(image, rng())
    assert (np.random.get_state()[1].tolist(), random.getstate()) == state


@pytest.mark.parametrize("make", STEPS)
def test_a_step_comes_as_often_as_asked(make):
    image, step, draws = textured(), make(p=0.25), rng()
    share = np.mean([step(image, draws) is not image for _ in range(400)])
    assert abs(share - 0.25) < 0.08


def test_steps_are_drawn_apart():
    """With one seed for all, two coin flips would always agree."""
    image, steps = textured(), [ColorJitter(p=0.5), Blur(p=0.5), Noise(p=0.5)]
    seen = set()
    for seed in range(60):
        draws = rng(seed)
        seen.add(tuple(step(image, draws) is image for step in steps))
    assert len(seen) == 8


def test_brightness_is_a_factor_on_every_pixel():
    image = textured() // 2
    factors = []
    for seed in range(60):
        changed = ColorJitter(p=1, brightness=0.3, contrast=0, saturation=0, hue=0)(image, rng(seed)).astype(float)
        factor = (changed * image).sum() / (image.astype(float) ** 2).sum()
        assert np.abs(changed - factor * image).max() <= 1.5
        factors.append(factor)
    assert 0.69 < min(factors) < 0.75
    assert 1.25 < max(factors) < 1.31


def test_each_colour_setting_changes_what_it_says():
    image = textured()
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(int)
    vivid = hsv[..., 1] > 60
    off = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
    assert np.abs(ColorJitter(p=1, **off)(image, rng()).astype(int) - image).max() <= 3  # to HSV and back

    turned = cv2.cvtColor(ColorJitter(p=1, **off | {"hue": 0.1})(image, rng(2)), cv2.COLOR_RGB2HSV).astype(int)
    shift = (turned[..., 0] - hsv[..., 0] + 90)[vivid] % 180 - 90  # OpenCV's circle has 180 steps
    assert 2 < abs(np.median(shift)) <= 18
    assert np.abs(shift - np.median(shift)).max() <= 6

    pale = ColorJitter(p=1, **off | {"saturation": 1.0})
    chroma = [np.ptp(pale(image, rng(seed)).astype(int), axis=2).mean() for seed in range(30)]
    assert min(chroma) < 0.4 * np.ptp(image, axis=2).mean() < 1.2 * np.ptp(image, axis=2).mean() < max(chroma)

    flat = ColorJitter(p=1, **off | {"contrast": 0.5})
    spread = [flat(image, rng(seed)).std() / image.std() for seed in range(30)]
    assert 0.45 < min(spread) < 0.7
    assert max(spread) > 1.15


def test_blur_is_a_gaussian_of_its_sigma():
    """A single bright pixel becomes the bell itself; its second moment is sigma squared."""
    point = np.zeros((61, 61, 3), np.uint8)
    point[28:33, 28:33] = 255
    offset = np.arange(61) - 30
    for sigma in (1.0, 2.0, 4.0):
        blurred = Blur(p=1, sigma=(sigma, sigma))(point, rng())[..., 0].astype(float)
        weight = blurred.sum(axis=0) / blurred.sum()
        assert (weight * offset).sum() == pytest.approx(0, abs=0.02)
        assert (weight * offset**2).sum() == pytest.approx(sigma**2 + 2, rel=0.12)  # a box of 5 has a variance of 2


def test_noise_has_its_deviation_in_each_channel_and_no_mean():
    grey = np.full((120, 120, 3), 128, np.uint8)
    for std in (0.02, 0.05):
        noise = Noise(p=1, std=(std, std))(grey, rng()).astype(float) - 128
        assert np.abs(noise.std(axis=(0, 1)) / (255 * std) - 1).max() < 0.1
        assert np.abs(noise.mean(axis=(0, 1))).max() < 0.6
        assert np.abs(np.corrcoef(noise.reshape(-1, 3).T) - np.eye(3)).max() < 0.03


NAN = float("nan")


@pytest.mark.parametrize(
    ("make", "name", "values"),
    [
        *((step, "p", (-0.1, 1.1, NAN)) for step in STEPS),
        (Blur, "sigma", ((0, 1), (2, 1), (1,), (NAN, 1), (1, float("inf")))),
        (Noise, "std", ((0, 1), (0.2, 0.1), (0.1,), (NAN, 0.1), (0.1, 2.0))),
        *((ColorJitter, name, (-0.1, 1.1, NAN)) for name in ("brightness", "contrast", "saturation")),
        (ColorJitter, "hue", (-0.1, 0.6, NAN)),
    ],
)
def test_invalid_arguments_are_named(make, name, values):
    """In one line of our words, not those of albumentations, which refuses some and misreads others."""
    for value in values:
        with pytest.raises(ValueError, match=rf"^{name} must be .*, got .*\Z"):
            make(**{name: value})


def test_what_is_just_allowed_works():
    for step in (
        ColorJitter(p=1, brightness=1, contrast=1, saturation=1, hue=0.5),
        Blur(p=1, sigma=(0.01, 8)),
        Noise(p=1, std=(0.001, 1)),
    ):
        assert step(textured(), rng()).shape == (50, 60, 3)

"""Pixel changes from albumentations: nothing moves."""

import os

import numpy as np

from maskrcnn.data.geometry import check_probability, check_range

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would look for a newer release on the network

import albumentations as A


class PixelTransform:
    """One of albumentations' transforms, with all of its draws from our generator.

    Args:
        transform: It is always applied.
        p: How often that is.
    """

    def __init__(self, transform: A.ImageOnlyTransform, p: float) -> None:
        check_probability(p)
        self.p = p
        self._transform = transform

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """uint8 [H, W, 3] -> uint8 [H, W, 3]."""
        if not self.p or rng.random() >= self.p:
            return image
        # Not in a Compose: it would give each of its transforms the same stream.
        self._transform.set_random_seed(int(rng.integers(2**31)))
        return self._transform(image=image)["image"]


class ColorJitter(PixelTransform):
    """Random hue, saturation, brightness (the value of HSV) and contrast.

    Args:
        p: Probability.
        brightness, contrast, saturation: Largest relative change.
        hue: Largest shift, as a share of the colour circle.
    """

    def __init__(
        self,
        *,
        p: float = 0.0,
        brightness: float = 0.2,
        contrast: float = 0.2,
        saturation: float = 0.2,
        hue: float = 0.02,
    ) -> None:
        limits = {
            "brightness": (brightness, 1),
            "contrast": (contrast, 1),
            "saturation": (saturation, 1),
            "hue": (hue, 0.5),
        }
        for name, (value, most) in limits.items():
            if not 0 <= value <= most:
                raise ValueError(f"{name} must be between 0 and {most}, got {value}")
        super().__init__(
            A.ColorJitter(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue, p=1), p
        )


class Blur(PixelTransform):
    """Gaussian blur.

    Args:
        p: Probability.
        sigma: Smallest and largest standard deviation in pixels.
    """

    def __init__(self, *, p: float = 0.0, sigma: tuple[float, float] = (0.5, 2.0)) -> None:
        check_range("sigma", sigma)
        super().__init__(A.GaussianBlur(blur_limit=0, sigma_limit=tuple(sigma), p=1), p)


class Noise(PixelTransform):
    """Gaussian noise, drawn for each pixel and channel.

    Args:
        p: Probability.
        std: Smallest and largest standard deviation, as a share of the full range.
    """

    def __init__(self, *, p: float = 0.0, std: tuple[float, float] = (0.01, 0.05)) -> None:
        check_range("std", std)
        if std[1] > 1:
            raise ValueError(f"std must be two shares of the full range, at most 1, got {list(std)}")
        super().__init__(A.GaussNoise(std_range=tuple(std), p=1), p)

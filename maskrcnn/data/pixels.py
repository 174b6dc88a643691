"""Pixel changes from albumentations: colour alone, nothing moves."""

import os

import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would look for a newer release on the network

import albumentations as A


class ColorJitter:
    """Random brightness, contrast, saturation and hue.

    Args:
        p: Probability that a picture is changed at all.
        brightness, contrast, saturation: Largest relative change.
        hue: Largest shift, as a share of the colour circle.
    """

    def __init__(
        self,
        *,
        p: float = 0.5,
        brightness: float = 0.2,
        contrast: float = 0.2,
        saturation: float = 0.2,
        hue: float = 0.02,
    ) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"p must be between 0 and 1, got {p}")
        self._transform = A.Compose(
            [A.ColorJitter(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue, p=p)]
        )

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """uint8 [H, W, 3] -> uint8 [H, W, 3]; every draw follows from `rng`."""
        self._transform.set_random_seed(int(rng.integers(2**31)))
        return self._transform(image=image)["image"]

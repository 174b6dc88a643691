"""Paint for the drawn pictures: colours and textured surfaces. Frozen with `maskrcnn.data.shapes`.

picture, surface  float32 [H, W, 3] in 0..255
colour            float32 [3]
"""

import colorsys

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def blend_shape(rng: np.random.Generator, picture: Floats, alpha: Floats, colour: Floats) -> None:
    """Paint a shape of coverage `alpha` [H, W] over `picture` [H, W, 3], in place."""
    left, top, width, height = cv2.boundingRect((alpha > 0).astype(np.uint8))
    box = np.s_[top : top + height, left : left + width]
    second = np.clip(colour + rng.uniform(-45, 45, 3), 0, 255).astype(np.float32)
    paint = surface(rng, height, width, colour, second)
    rim = np.minimum(1, 2 - 2 * cv2.GaussianBlur(alpha[box], (0, 0), 1.5))  # 1 at the edge, 0 well inside
    paint *= 1 - rng.uniform(0, 0.5) * rim[:, :, None]
    picture[box] += alpha[box][:, :, None] * (paint - picture[box])


def surface(rng: np.random.Generator, height: int, width: int, first: Floats, second: Floats) -> Floats:
    """A textured surface between two colours, unevenly lit and grainy."""
    pattern = _texture(rng, height, width)[:, :, None]
    light = rng.uniform(0.05, 0.3) * (_smooth_noise(rng, height, width) - 0.5)[:, :, None]
    grain = rng.uniform(2, 9) * rng.standard_normal((height, width, 1), np.float32)
    painted: Floats = (first + pattern * (second - first)) * (1 + light) + grain
    return painted.astype(np.float32)


def _texture(rng: np.random.Generator, height: int, width: int) -> Floats:
    """A field of values in [0, 1]: a gradient, smooth noise, stripes or checks."""
    kind = rng.integers(4)
    if kind == 0:
        return _smooth_noise(rng, height, width)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    if kind == 1:
        return np.asarray((along - along.min()) / max(np.ptp(along), 1), np.float32)
    frequency = 2 * np.pi / rng.uniform(5, 24)
    wave = np.sin(frequency * along + rng.uniform(0, 6))
    if kind == 3:
        wave = wave * np.sin(frequency * across)
    return np.asarray(np.clip(0.5 + rng.uniform(0.5, 2) * wave, 0, 1), np.float32)


def _smooth_noise(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Noise at three scales, within [0, 1]."""
    noise = np.zeros((height, width), np.float32)
    for cells, weight in ((3, 0.5), (7, 0.3), (20, 0.2)):
        noise += weight * cv2.resize(rng.random((cells, cells), np.float32), (width, height))
    return noise


def random_colour(rng: np.random.Generator, *, saturation: tuple[float, float], value: tuple[float, float]) -> Floats:
    """RGB [3] in 0..255 of a random hue."""
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))
    return np.array(rgb, np.float32) * 255


def distinct_colour(rng: np.random.Generator, palette: list[Floats]) -> Floats:
    """The one of four random colours that is the farthest from all colours of the picture."""
    candidates = [random_colour(rng, saturation=(0.3, 1.0), value=(0.35, 1.0)) for _ in range(4)]
    return max(candidates, key=lambda colour: min(float(np.linalg.norm(colour - other)) for other in palette))

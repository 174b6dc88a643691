import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskrcnn.ops.pil_resize import pil_resize

SIDE = st.integers(1, 90)


def check(picture: np.ndarray, shape: tuple[int, int]) -> None:
    """Against Pillow, whose version decides whether a picture that becomes lower is resized downwards first."""
    levels = torch.from_numpy(picture).permute(2, 0, 1)
    resized = Image.fromarray(picture).resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1).int()
    found = pil_resize(levels, shape)
    assert found.dtype == torch.int32
    if shape[0] < len(picture) and not torch.equal(found, expected):
        assert (found - expected).abs().max() <= 1
        found = pil_resize(levels.mT, shape[::-1]).mT
    assert torch.equal(found, expected)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(size=st.tuples(SIDE, SIDE), shape=st.tuples(SIDE, SIDE), seed=st.integers(0, 9))
def test_levels_are_those_of_pillow(size: tuple[int, int], shape: tuple[int, int], seed: int) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    check(picture, shape)


@pytest.mark.parametrize(
    ("size", "shape"),
    [((427, 640), (800, 1199)), ((1200, 1600), (800, 1067)), ((1000, 1500), (400, 600)), ((64, 64), (128, 128))],
)
@pytest.mark.parametrize("level", [None, 0, 255])
def test_usual_pictures(size: tuple[int, int], shape: tuple[int, int], level: int | None) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    picture = noise if level is None else np.full_like(noise, level)
    check(picture, shape)


def test_a_batch_is_resized_as_its_pictures_are() -> None:
    batch = torch.randint(0, 256, (2, 4, 3, 20, 31), dtype=torch.uint8)
    resized = pil_resize(batch, (33, 17))
    assert resized.shape == (2, 4, 3, 33, 17)
    assert torch.equal(resized[1, 2], pil_resize(batch[1, 2], (33, 17)))

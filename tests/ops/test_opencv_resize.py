import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn.ops.opencv_resize import opencv_resize

SIDE = st.integers(1, 90)


def check(picture: np.ndarray, shape: tuple[int, int]) -> None:
    expected = torch.from_numpy(cv2.resize(picture, (shape[1], shape[0]))).permute(2, 0, 1).int()
    found = opencv_resize(torch.from_numpy(picture).permute(2, 0, 1), shape)
    assert found.dtype == torch.int32
    assert torch.equal(found, expected)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(size=st.tuples(SIDE, SIDE), shape=st.tuples(SIDE, SIDE), seed=st.integers(0, 9))
def test_levels_are_those_of_opencv(size: tuple[int, int], shape: tuple[int, int], seed: int) -> None:
    check(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8), shape)


@pytest.mark.parametrize(
    ("size", "shape"),
    [((427, 640), (512, 768)), ((1200, 1600), (576, 768)), ((500, 333), (768, 511)), ((64, 64), (128, 32))],
)
@pytest.mark.parametrize("level", [None, 0, 255])
def test_usual_pictures(size: tuple[int, int], shape: tuple[int, int], level: int | None) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    check(noise if level is None else np.full_like(noise, level), shape)


def test_a_batch_is_resized_as_its_pictures_are() -> None:
    batch = torch.randint(0, 256, (2, 4, 3, 20, 31), dtype=torch.uint8)
    resized = opencv_resize(batch, (33, 17))
    assert resized.shape == (2, 4, 3, 33, 17)
    assert torch.equal(resized[1, 2], opencv_resize(batch[1, 2], (33, 17)))

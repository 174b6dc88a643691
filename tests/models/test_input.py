from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from maskrcnn.models.input import ModelInput
from maskrcnn.ops.image_batch import ImageBatch, pad_images

Factory = Callable[..., Any]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def noise(size: tuple[int, int], *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(
    "sizes",
    [
        [(480, 640)],
        [(97, 64)],
        [(30, 61), (75, 50)],
        [(20, 300)],
        [(80, 110)],
    ],
    ids=["smaller", "portrait", "batch", "long", "unscaled"],
)
def test_pixels_and_sizes_equal_torchvision(sizes: list[tuple[int, int]]) -> None:
    images = [noise(size, seed=i).float() / 255 for i, size in enumerate(sizes)]
    theirs = GeneralizedRCNNTransform(80, 133, list(MEAN), list(STD)).eval()
    expected, _ = theirs(images)
    found = ModelInput(min_size=80, max_size=133).prepare(images)
    assert found.sizes == [tuple(size) for size in expected.image_sizes]
    torch.testing.assert_close(found.pixels, expected.tensors, atol=1e-5, rtol=0)


def test_a_vga_picture_at_800_is_as_large_as_in_torchvision() -> None:
    picture = torch.zeros(3, 480, 640)
    theirs = GeneralizedRCNNTransform(800, 1333, list(MEAN), list(STD)).eval()
    expected, _ = theirs([picture])
    found = ModelInput(min_size=800, max_size=1333).prepare([picture])
    assert found.sizes == [tuple(expected.image_sizes[0])] == [(800, 1066)]
    assert found.pixels.shape == expected.tensors.shape == (1, 3, 800, 1088)


@pytest.mark.parametrize(
    ("rule", "scale", "size"),
    [("torchvision", 0.75, (60, 80)), ("pil", 1.25, (100, 133)), ("opencv", 1.25, (100, 133))],
)
def test_a_scale_moves_both_limits(rule: Any, scale: float, size: tuple[int, int]) -> None:
    small, wide = noise((120, 160)), noise((30, 300))
    batch = ModelInput(min_size=80, max_size=200, resize=rule).prepare([small, wide], scale=scale)
    assert batch.sizes == [size, (20 * scale, 200 * scale)]


@pytest.mark.parametrize("size", [(120, 161), (33, 40), (64, 64), (200, 90)])
def test_pil_rule_equals_pil(size: tuple[int, int]) -> None:
    picture = noise(size)
    model_input = ModelInput(min_size=64, max_size=100, resize="pil", mean=(0, 0, 0), std=(1, 1, 1), size_divisor=1)
    batch = model_input.prepare([picture])
    height, width = batch.sizes[0]
    resized = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((width, height), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float()
    found = batch.pixels[0] * 255
    torch.testing.assert_close(found, found.round(), atol=1e-3, rtol=0)
    # To the level, but where Pillow changes the order of rows and columns; see ops.pil_resize.
    torch.testing.assert_close(found, expected, atol=1.01 if height < size[0] else 1e-3, rtol=0)


@pytest.mark.parametrize("size", [(120, 161), (33, 40), (64, 64), (200, 90)])
def test_opencv_rule_equals_opencv(size: tuple[int, int]) -> None:
    picture = noise(size)
    model_input = ModelInput(min_size=64, max_size=100, resize="opencv", mean=(0, 0, 0), std=(1, 1, 1), size_divisor=1)
    batch = model_input.prepare([picture])
    height, width = batch.sizes[0]
    scale = min(64 / min(size), 100 / max(size))
    assert (height, width) == (round(size[0] * scale), round(size[1] * scale))
    expected = torch.from_numpy(cv2.resize(picture.permute(1, 2, 0).numpy(), (width, height))).permute(2, 0, 1).float()
    torch.testing.assert_close(batch.pixels[0] * 255, expected, atol=1e-3, rtol=0)


def test_a_letterbox_is_a_square_of_its_colour_that_counts_as_picture() -> None:
    pictures = [noise((60, 62)), noise((30, 80))]
    settings: dict[str, Any] = {"min_size": 60, "max_size": 80, "mean": MEAN, "std": STD, "size_divisor": 16}
    plain = [ModelInput(**settings).prepare([picture]) for picture in pictures]
    batch = ModelInput(letterbox=(255, 51, 0), **settings).prepare(pictures)
    assert [one.sizes for one in plain] == [[(60, 62)], [(30, 80)]]
    assert batch.sizes == [(64, 64), (80, 80)]
    assert batch.pixels.shape == (2, 3, 80, 80)
    assert batch.pixels[0, :, 64:].count_nonzero() == batch.pixels[0, :, :, 64:].count_nonzero() == 0
    colour = torch.tensor([(1 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (0 - 0.406) / 0.225])
    for canvas, one, (side, _) in zip(batch.pixels, plain, batch.sizes, strict=True):
        height, width = one.sizes[0]
        assert torch.equal(canvas[:, :height, :width], one.pixels[0, :, :height, :width])
        for beside in (canvas[:, height:side, :side], canvas[:, :side, width:side]):
            torch.testing.assert_close(beside, colour[:, None, None].expand_as(beside))


def test_the_colour_of_a_letterbox_is_rgb_whatever_the_order_of_channels() -> None:
    model_input = ModelInput(
        min_size=8, max_size=9, channel_order="bgr", mean=(0, 0, 0), std=(1, 1, 1), letterbox=(255, 51, 0)
    )
    batch = model_input.prepare([noise((8, 8))])
    torch.testing.assert_close(batch.pixels[0, :, -1, -1], torch.tensor([0.0, 0.2, 1.0]))


def test_training_has_no_letterbox() -> None:
    batch = pad_images([noise((40, 64))], divisor=32)
    assert torch.equal(ModelInput(letterbox=(9, 9, 9))(batch).pixels, ModelInput()(batch).pixels)


def test_boxes_come_back_by_the_sides() -> None:
    picture, model_input = torch.zeros(3, 427, 640), ModelInput(min_size=800, max_size=1333)
    assert model_input.resized_shape(picture) == (800, 1199)
    boxes = torch.tensor([[0.0, 0, 1199, 800], [119.9, 80, 239.8, 400]])
    expected = torch.tensor([[0.0, 0, 640, 427], [64, 42.7, 128, 213.5]])
    torch.testing.assert_close(model_input.restore(boxes, picture), expected)


def test_boxes_come_back_from_a_letterbox_by_one_factor() -> None:
    picture = torch.zeros(3, 333, 500)
    model_input = ModelInput(min_size=640, max_size=768, resize="opencv", letterbox=(0, 0, 0))
    assert model_input.resized_shape(picture) == (511, 768)  # 511.488
    boxes = torch.tensor([[76.8, 153.6, 307.2, 511], [384, 460.8, 768, 768], [0, 600, 384, 700]])
    expected = torch.tensor([[50.0, 100, 200, 511 / 1.536], [250, 300, 500, 333], [0, 333, 250, 333]])
    torch.testing.assert_close(model_input.restore(boxes, picture), expected)


def test_the_two_rules_differ_where_a_picture_shrinks() -> None:
    picture = noise((256, 256))
    settings: dict[str, Any] = {"min_size": 64, "max_size": 64, "mean": (0, 0, 0), "std": (1, 1, 1)}
    smooth = ModelInput(resize="pil", **settings).prepare([picture]).pixels
    coarse = ModelInput(resize="torchvision", **settings).prepare([picture]).pixels
    assert smooth.shape == coarse.shape
    # Antialiasing averages some 3 x 3 pixels of noise, two-tap interpolation only 2 x 2.
    assert smooth.std() < 0.75 * coarse.std()


def test_normalisation_by_hand() -> None:
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    pixels[:, 0], pixels[:, 1], pixels[:, 2] = 255, 51, 0
    found = ModelInput()(ImageBatch(pixels, [(32, 32)])).pixels
    expected = [(1 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (0 - 0.406) / 0.225]
    torch.testing.assert_close(found[0, :, 5, 5], torch.tensor(expected))
    assert found.dtype == torch.float32


@pytest.mark.parametrize("mean", [MEAN, (0.0, 0.0, 0.0)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_padding_is_exactly_zero_after_normalisation(mean: tuple[float, ...], dtype: torch.dtype) -> None:
    sizes = [(40, 64), (64, 30)]
    images = [noise(size, seed=i).clamp(min=1) for i, size in enumerate(sizes)]
    if dtype == torch.float32:
        images = [image.float() / 255 for image in images]
    batch = pad_images(images, divisor=32)
    for canvas, (height, width) in zip(batch.pixels, sizes, strict=True):
        canvas[:, height:] = 3
        canvas[:, :, width:] = 3
    before = batch.pixels.clone()
    found = ModelInput(mean=mean)(batch)
    assert torch.equal(batch.pixels, before)
    assert found.sizes == sizes
    for canvas, image, (height, width) in zip(found.pixels, images, sizes, strict=True):
        assert canvas[:, height:].count_nonzero() == 0
        assert canvas[:, :, width:].count_nonzero() == 0
        scaled = image.float() / (255 if dtype == torch.uint8 else 1)
        expected = (scaled - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        torch.testing.assert_close(canvas[:, :height, :width], expected, atol=1e-5, rtol=0)


def test_padding_of_prepared_pictures_is_exactly_zero() -> None:
    found = ModelInput(min_size=40, max_size=70).prepare([noise((40, 60)), noise((50, 40))])
    assert found.pixels.shape == (2, 3, 64, 64)
    for canvas, (height, width) in zip(found.pixels, found.sizes, strict=True):
        assert (height, width) != (64, 64)
        assert canvas[:, height:].count_nonzero() == canvas[:, :, width:].count_nonzero() == 0
        assert canvas[:, :height, :width].count_nonzero() > 0.99 * 3 * height * width


def test_bgr_swaps_the_channels_before_mean_and_std() -> None:
    picture = torch.zeros(3, 32, 32)
    picture[0], picture[1], picture[2] = 0.8, 0.4, 0.1
    model_input = ModelInput(min_size=32, max_size=32, channel_order="bgr", mean=(0.0, 0.1, 0.2), std=(1.0, 2.0, 4.0))
    expected = torch.tensor([0.1, (0.4 - 0.1) / 2, (0.8 - 0.2) / 4])
    torch.testing.assert_close(model_input.prepare([picture]).pixels[0, :, 3, 4], expected)
    found = model_input(ImageBatch(picture[None], [(32, 32)]))
    torch.testing.assert_close(found.pixels[0, :, 3, 4], expected)


@pytest.mark.parametrize("resize", ["torchvision", "pil", "opencv"])
def test_bytes_and_floats_agree(resize: Any) -> None:
    picture = noise((90, 120))
    model_input = ModelInput(min_size=64, max_size=100, resize=resize, mean=(0, 0, 0), std=(1, 1, 1))
    of_bytes, of_floats = (model_input.prepare([image]).pixels for image in (picture, picture.float() / 255))
    assert ((of_bytes - of_floats).abs() * 255).max() < 0.01


def test_prepared_and_forwarded_pictures_agree_where_nothing_is_resized() -> None:
    picture = noise((64, 90))
    model_input = ModelInput(min_size=64, max_size=100)
    prepared = model_input.prepare([picture])
    forwarded = model_input(pad_images([picture], divisor=32))
    assert prepared.sizes == forwarded.sizes == [(64, 90)]
    torch.testing.assert_close(prepared.pixels, forwarded.pixels, atol=1e-5, rtol=0)


def test_mean_and_std_belong_to_the_config_not_to_the_weights() -> None:
    assert ModelInput().state_dict() == {}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("min_size", {"min_size": 0}),
        ("max_size", {"min_size": 800, "max_size": 768}),
        ("resize", {"resize": "nearest"}),
        ("channel_order", {"channel_order": "rbg"}),
        ("mean", {"mean": (0.5, 0.5)}),
        ("std", {"std": (1.0,)}),
        ("std", {"std": (1.0, 0.0, 1.0)}),
        ("size_divisor", {"size_divisor": 0}),
        ("letterbox", {"letterbox": (114, 114)}),
        ("letterbox", {"letterbox": (0, 0, 256)}),
        ("letterbox", {"letterbox": (0.5, 0.5, 0.5)}),
    ],
)
def test_invalid_arguments_are_named(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=name):
        ModelInput(**arguments)

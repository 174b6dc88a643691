import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from maskrcnn.ops.image_batch import ImageBatch, clear_padding, pad_images, resized_shape


def torchvision_shape(shape: tuple[int, int], min_size: int, max_size: int) -> tuple[int, int]:
    transform = GeneralizedRCNNTransform(min_size, max_size, [0.0] * 3, [1.0] * 3).eval()
    image, _ = transform.resize(torch.zeros(1, *shape))
    return image.shape[-2], image.shape[-1]


def test_padding_keeps_the_pictures_at_the_top_left_and_is_zero() -> None:
    images = [torch.full((3, 30, 65), 0.5), torch.full((3, 40, 20), 0.25)]
    batch = pad_images(images, divisor=32)
    assert batch.pixels.shape == (2, 3, 64, 96)
    assert batch.sizes == [(30, 65), (40, 20)]
    for canvas, image, (height, width) in zip(batch.pixels, images, batch.sizes, strict=True):
        assert torch.equal(canvas[:, :height, :width], image)
        assert canvas.sum() == image.sum()


@pytest.mark.parametrize(
    ("size", "divisor", "padded"), [((64, 96), 32, (64, 96)), ((65, 1), 32, (96, 32)), ((5, 7), 1, (5, 7))]
)
def test_padded_sides_are_the_next_multiple(size: tuple[int, int], divisor: int, padded: tuple[int, int]) -> None:
    batch = pad_images([torch.ones(3, *size, dtype=torch.uint8)], divisor=divisor)
    assert batch.pixels.shape == (1, 3, *padded)
    assert batch.pixels.dtype == torch.uint8
    assert int(batch.pixels.sum()) == 3 * size[0] * size[1]


def test_padding_keeps_channels_that_lie_together_so() -> None:
    """As they come from a decoded file: [h, w, 3] seen as [3, h, w]."""
    images = [torch.randint(1, 256, (*size, 3), dtype=torch.uint8).permute(2, 0, 1) for size in ((30, 65), (40, 20))]
    batch = pad_images(images, divisor=32)
    assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
    plain = pad_images([image.contiguous() for image in images], divisor=32)
    assert plain.pixels.is_contiguous()
    assert torch.equal(batch.pixels, plain.pixels)
    assert batch.sizes == plain.sizes == [(30, 65), (40, 20)]
    mixed = pad_images([images[0], images[1].contiguous()], divisor=32)
    assert torch.equal(mixed.pixels, plain.pixels)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1)])
def test_padding_of_the_thinnest_pictures(size: tuple[int, int]) -> None:
    image = torch.randint(1, 256, (*size, 3), dtype=torch.uint8)
    for one in (image.permute(2, 0, 1), image.permute(2, 0, 1).contiguous()):
        batch = pad_images([one], divisor=4)
        assert torch.equal(batch.pixels[0, :, : size[0], : size[1]], one)
        assert batch.pixels.sum() == one.sum()


def test_clearing_touches_only_the_padding() -> None:
    pixels = torch.rand(2, 3, 8, 10) + 1
    before = pixels.clone()
    batch = clear_padding(ImageBatch(pixels, [(8, 10), (5, 7)]))
    assert torch.equal(batch.pixels[0], before[0])
    assert torch.equal(batch.pixels[1, :, :5, :7], before[1, :, :5, :7])
    assert batch.pixels[1].count_nonzero() == 3 * 5 * 7


@pytest.mark.parametrize(
    ("shape", "rounded_down", "rounded"),
    [
        ((480, 640), (800, 1066), (800, 1067)),
        ((640, 480), (1066, 800), (1067, 800)),
        ((427, 640), (800, 1199), (800, 1199)),
        ((333, 500), (800, 1201), (800, 1201)),
        ((612, 612), (800, 800), (800, 800)),
        ((1000, 3001), (444, 1333), (444, 1333)),
        ((1, 10_000), (1, 1333), (1, 1333)),
        ((11, 22), (666, 1333), (666, 1333)),  # 666.5, to which detectron2 comes in two steps, and a little less
    ],
)
def test_resized_shapes_of_both_rules(
    shape: tuple[int, int], rounded_down: tuple[int, int], rounded: tuple[int, int]
) -> None:
    assert resized_shape(shape, min_size=800, max_size=1333) == rounded_down
    assert resized_shape(shape, min_size=800, max_size=1333, rule="pil") == rounded
    if min(shape) > 1:
        assert torchvision_shape(shape, 800, 1333) == rounded_down


@pytest.mark.parametrize(
    ("shape", "to_even", "up"),
    [((512, 103), (768, 154), (768, 155)), ((512, 101), (768, 152), (768, 152)), ((375, 500), (576, 768), (576, 768))],
)
def test_halves_go_to_even_sides_by_one_rule_and_up_by_another(
    shape: tuple[int, int], to_even: tuple[int, int], up: tuple[int, int]
) -> None:
    assert resized_shape(shape, min_size=640, max_size=768, rule="opencv") == to_even
    assert resized_shape(shape, min_size=640, max_size=768, rule="pil") == up


@settings(deadline=None, derandomize=True, max_examples=300)
@given(
    height=st.integers(15, 300),
    width=st.integers(15, 300),
    sizes=st.sampled_from([(80, 133), (64, 76), (77, 200)]),
)
def test_resized_shape_equals_torchvision(height: int, width: int, sizes: tuple[int, int]) -> None:
    found = resized_shape((height, width), min_size=sizes[0], max_size=sizes[1])
    assert found == torchvision_shape((height, width), *sizes)

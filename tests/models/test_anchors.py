from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionAnchorGenerator
from torchvision.models.detection.image_list import ImageList

from maskrcnn.models.anchors import AnchorGenerator


def pyramid(height: int, width: int) -> list[Tensor]:
    """Maps p2..p6 of a padded picture; P6 takes every other cell of P5."""
    sizes = [(height // stride, width // stride) for stride in (4, 8, 16, 32)]
    sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return [torch.zeros(1, 1, *size) for size in sizes]


# 800 rows: P6 has 13 of them, 61 pixels apart.
@pytest.mark.parametrize("size", [(800, 1088), (640, 768), (224, 160), (32, 64)])
def test_derived_strides_and_rounding_equal_torchvision(size: tuple[int, int]) -> None:
    features = pyramid(*size)
    theirs = TorchvisionAnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
    expected = theirs(ImageList(torch.zeros(1, 3, *size), [size]), features)[0]
    found = AnchorGenerator(strides=None, round=True)(features, size)
    assert [len(level) for level in found] == [f.shape[-2] * f.shape[-1] * 3 for f in features]
    assert torch.equal(torch.cat(found), expected)


def test_scales_come_within_each_ratio_as_in_torchvision() -> None:
    size = (64, 96)
    features = pyramid(*size)[:2]
    theirs = TorchvisionAnchorGenerator(((32, 48), (64, 96)), ((0.5, 2.0),) * 2)
    expected = theirs(ImageList(torch.zeros(1, 3, *size), [size]), features)[0]
    generator = AnchorGenerator(sizes=(32, 64), scales=(1.0, 1.5), ratios=(0.5, 2.0), strides=(4, 8))
    assert generator.num_anchors == 4
    assert torch.equal(torch.cat(generator(features, size)), expected)


def test_unrounded_cell_by_hand() -> None:
    generator = AnchorGenerator(sizes=(32,), strides=(16,), round=False)
    (found,) = generator([torch.zeros(1, 1, 1, 2)], (16, 32))
    # 45.25 x 22.63, 32 x 32, 22.63 x 45.25 (width x height): all of 1024 square pixels.
    long, short = 32 * 2**0.5 / 2, 32 / 2**0.5 / 2
    cell = [[-long, -short, long, short], [-16, -16, 16, 16], [-short, -long, short, long]]
    next_cell = [[x0 + 16, y0, x1 + 16, y1] for x0, y0, x1, y1 in cell]
    torch.testing.assert_close(found, torch.tensor(cell + next_cell))
    sides = found[:, 2:] - found[:, :2]
    torch.testing.assert_close(sides.prod(dim=1), torch.full((6,), 1024.0))


def test_an_offset_moves_every_centre_by_that_part_of_its_stride() -> None:
    features, size = pyramid(64, 96), (64, 96)
    corner, middle = AnchorGenerator()(features, size), AnchorGenerator(offset=0.5)(features, size)
    for stride, before, after in zip((4, 8, 16, 32, 64), corner, middle, strict=True):
        assert torch.equal(after, before + stride / 2)


def test_explicit_strides_hold_whatever_the_picture() -> None:
    features, size = pyramid(800, 1088), (800, 1088)
    fixed = AnchorGenerator(strides=(4, 8, 16, 32, 64))(features, size)
    derived = AnchorGenerator(strides=None)(features, size)
    for level in range(4):
        assert torch.equal(fixed[level], derived[level])
    second_row = features[4].shape[-1] * 3
    assert (fixed[4][second_row] - fixed[4][0]).tolist() == [0, 64, 0, 64]
    assert (derived[4][second_row] - derived[4][0]).tolist() == [0, 61, 0, 61]
    # Cells run along the row first: 34 columns of P5.
    assert (fixed[3][3] - fixed[3][0]).tolist() == [32, 0, 32, 0]
    assert (fixed[3][34 * 3] - fixed[3][0]).tolist() == [0, 32, 0, 32]


def test_anchors_are_no_part_of_the_weights_but_move_with_the_model() -> None:
    generator = AnchorGenerator()
    assert generator.state_dict() == {}
    assert all(anchors.dtype == torch.float32 for anchors in generator(pyramid(64, 64), (64, 64)))
    assert generator.to("meta")([f.to("meta") for f in pyramid(64, 64)], (64, 64))[0].device.type == "meta"


def test_wrong_number_of_levels_names_the_key() -> None:
    with pytest.raises(ValueError, match=r"model\.anchors\.sizes has 5 levels, the neck gives 4"):
        AnchorGenerator()(pyramid(64, 64)[:4], (64, 64))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sizes", ()),
        ("sizes", (32, -64, 128, 256, 512)),
        ("scales", ()),
        ("scales", (0.0,)),
        ("ratios", ()),
        ("ratios", (-1.0,)),
        ("strides", (4, 8, 16, 32)),
        ("strides", ()),
        ("strides", (4, 8, 16, 32, 0)),
        ("offset", -0.5),
        ("offset", 1.0),
    ],
)
def test_invalid_arguments_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must"):
        AnchorGenerator(**{name: value})

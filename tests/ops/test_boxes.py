import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.transform import resize_boxes

from maskrcnn.ops.boxes import check_boxes, decode_boxes, encode_boxes, flip_boxes, scale_boxes

WEIGHTS = [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0), (1.0, 2.0, 3.0, 4.0)]


@st.composite
def boxes(draw: st.DrawFn) -> list[float]:
    x, y = (draw(st.floats(-100, 1300, width=32)) for _ in range(2))
    width, height = (draw(st.floats(1, 800, width=32)) for _ in range(2))
    return [x, y, x + width, y + height]


def random_boxes(count: int, *, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 400
    return torch.cat((corner, corner + 1 + torch.rand(count, 2, generator=generator) * 300), dim=1)


def test_encoding_by_hand() -> None:
    # Reference: centre (5, 10), 10 x 20. Box: centre (10, 15), 10 x 10.
    box, reference = torch.tensor([[5.0, 10, 15, 20]]), torch.tensor([[0.0, 0, 10, 20]])
    expected = torch.tensor([[10 * 5 / 10, 10 * 5 / 20, 0, 5 * math.log(0.5)]])
    torch.testing.assert_close(encode_boxes(box, reference, (10.0, 10.0, 5.0, 5.0)), expected)


def test_decoding_by_hand() -> None:
    reference = torch.tensor([[0.0, 0, 10, 20]])
    deltas = torch.tensor([[1.0, -1.0, math.log(2) * 3, math.log(0.5) * 4]])
    # Centre (5 + 1 / 1 * 10, 10 - 1 / 2 * 20) = (15, 0), 20 x 10.
    expected = torch.tensor([[5.0, -5, 25, 5]])
    torch.testing.assert_close(decode_boxes(deltas, reference, (1.0, 2.0, 3.0, 4.0)), expected)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(box=boxes(), reference=boxes(), weights=st.sampled_from(WEIGHTS))
def test_decoding_reverses_encoding(box: list[float], reference: list[float], weights: tuple[float, ...]) -> None:
    # A delta cannot enlarge a box beyond 62.5 times; sides of 1 to 800 can differ by more.
    reference[2] = max(reference[2], reference[0] + (box[2] - box[0]) / 62)
    reference[3] = max(reference[3], reference[1] + (box[3] - box[1]) / 62)
    wanted, references = torch.tensor([box]), torch.tensor([reference])
    found = decode_boxes(encode_boxes(wanted, references, weights), references, weights)
    torch.testing.assert_close(found, wanted, atol=0.02, rtol=1e-5)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_both_directions_equal_torchvision(weights: tuple[float, float, float, float]) -> None:
    wanted, references = random_boxes(200, seed=0), random_boxes(200, seed=1)
    coder = BoxCoder(weights)
    deltas = encode_boxes(wanted, references, weights)
    torch.testing.assert_close(deltas, coder.encode_single(wanted, references), atol=1e-5, rtol=1e-5)
    per_class = torch.randn(200, 7, 4, generator=torch.Generator().manual_seed(2)) * 3
    found = decode_boxes(per_class, references, weights)
    assert found.shape == (200, 7, 4)
    expected = coder.decode_single(per_class.flatten(1), references)
    torch.testing.assert_close(found.flatten(1), expected, atol=1e-3, rtol=1e-5)


def test_decoding_computes_in_float32() -> None:
    references = random_boxes(50, seed=3) + 1000.3
    deltas = (torch.randn(50, 4, generator=torch.Generator().manual_seed(4)) * 0.5).bfloat16()
    found = decode_boxes(deltas, references, WEIGHTS[1])
    assert found.dtype == torch.float32
    assert torch.equal(found, decode_boxes(deltas.float(), references, WEIGHTS[1]))
    exact = decode_boxes(deltas.double().float(), references, WEIGHTS[1])
    assert (found - exact).abs().max() < 1e-3


@pytest.mark.parametrize("delta", [math.log(1000 / 16), 10.0, 1000.0])
def test_a_delta_enlarges_at_most_62_times(delta: float) -> None:
    deltas = torch.tensor([[0.0, 0.0, delta, delta * 2]])
    found = decode_boxes(deltas, torch.tensor([[10.0, 10, 14, 12]]), (1.0, 1.0, 1.0, 1.0))
    torch.testing.assert_close(found, torch.tensor([[12 - 125.0, 11 - 62.5, 12 + 125.0, 11 + 62.5]]))


def test_no_boxes_give_no_boxes() -> None:
    assert decode_boxes(torch.zeros(0, 4), torch.zeros(0, 4), WEIGHTS[0]).shape == (0, 4)
    assert decode_boxes(torch.zeros(0, 5, 4), torch.zeros(0, 4), WEIGHTS[0]).shape == (0, 5, 4)
    assert encode_boxes(torch.zeros(0, 4), torch.zeros(0, 4), WEIGHTS[0]).shape == (0, 4)


def test_scaling_boxes_by_hand_and_as_torchvision() -> None:
    found = scale_boxes(torch.tensor([[1.0, 2, 30, 40]]), old_size=(100, 50), new_size=(200, 25))
    assert found.tolist() == [[0.5, 4.0, 15.0, 80.0]]
    boxes = random_boxes(50, seed=5)
    found = scale_boxes(boxes, old_size=(799, 1066), new_size=(480, 641))
    assert torch.equal(found, resize_boxes(boxes, [799, 1066], [480, 641]))


def test_flipping_by_hand() -> None:
    box = torch.tensor([[10.0, 5, 40, 25]])
    assert flip_boxes(box, 100).tolist() == [[60, 5, 90, 25]]
    assert torch.equal(flip_boxes(flip_boxes(box, 100), 100), box)


@pytest.mark.parametrize("box", [[5.0, 5.0, 9.0, 5.0], [5.0, 5.0, 4.0, 9.0], [5.0, 5.0, float("nan"), 9.0]])
def test_boxes_without_a_size_are_refused_on_the_host(box: list[float]) -> None:
    boxes = [torch.zeros(0, 4), torch.tensor([[5.0, 5.0, 9.0, 9.0], box])]
    with pytest.raises(ValueError, match=r"invalid box .* for target at index 1") as caught:
        check_boxes(boxes)
    assert str(box) in str(caught.value)
    check_boxes(boxes[:1])
    check_boxes([one.to("meta") for one in boxes])  # where to look would mean to wait

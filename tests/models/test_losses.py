import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou, complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

from maskrcnn.models.losses import (
    BoxLossName,
    box_regression_loss,
    check_box_loss,
    check_coder_weights,
    ciou_loss,
    iou_loss,
)
from maskrcnn.ops.boxes import encode_boxes

NAMES: list[BoxLossName] = ["l1", "smooth_l1", "iou", "giou", "diou", "ciou"]
WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def loss_of(name: BoxLossName, predicted: list[float], box: list[float]) -> float:
    """The loss of one decoded box against another."""
    predictions, boxes = torch.tensor([predicted]), torch.tensor([box])
    references = torch.tensor([[0.0, 0, 5, 5]])
    deltas = encode_boxes(predictions, references, WEIGHTS)
    loss = box_regression_loss(name, deltas, references=references, boxes=boxes, weights=WEIGHTS, beta=1 / 9)
    return loss.item()


# Two 4 x 2 boxes, one shifted by 2 in x: overlap 4, union 12, hull 6 x 2 = 12, centres 2 apart, hull
# diagonal squared 40. A 2 x 4 box with the same centre: overlap 4, union 12, hull 4 x 4, no distance.
# Two unit squares 2 apart in x and y: hull 3 x 3.
SHIFTED = ([0.0, 0, 4, 2], [2.0, 0, 6, 2])
TURNED = ([0.0, 1, 4, 3], [1.0, 0, 3, 4])
APART = ([0.0, 0, 1, 1], [2.0, 2, 3, 3])
ASPECT = 4 / math.pi**2 * (math.atan(2) - math.atan(0.5)) ** 2


@pytest.mark.parametrize(
    ("name", "pair", "expected"),
    [
        ("iou", SHIFTED, 1 - 1 / 3),
        ("giou", SHIFTED, 1 - 1 / 3),
        ("diou", SHIFTED, 1 - 1 / 3 + 4 / 40),
        ("ciou", SHIFTED, 1 - 1 / 3 + 4 / 40),
        ("iou", TURNED, 1 - 1 / 3),
        ("giou", TURNED, 1 - 1 / 3 + (16 - 12) / 16),
        ("diou", TURNED, 1 - 1 / 3),
        ("ciou", TURNED, 1 - 1 / 3 + ASPECT**2 / (2 / 3 + ASPECT)),
        ("iou", APART, 1),
        ("giou", APART, 1 + (9 - 2) / 9),
        ("diou", APART, 1 + 8 / 18),
        ("ciou", APART, 1 + 8 / 18),
        ("iou", (SHIFTED[0], SHIFTED[0]), 0),
        ("giou", (SHIFTED[0], SHIFTED[0]), 0),
        ("diou", (SHIFTED[0], SHIFTED[0]), 0),
        ("ciou", (SHIFTED[0], SHIFTED[0]), 0),
    ],
)
def test_iou_losses_by_hand(name: BoxLossName, pair: tuple[list[float], list[float]], expected: float) -> None:
    assert loss_of(name, *pair) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("beta", [1 / 9, 1.0, 0.0])
def test_smooth_l1_by_hand(beta: float) -> None:
    references = torch.tensor([[0.0, 0, 10, 20], [5.0, 5, 15, 15]])
    boxes = torch.tensor([[5.0, 10, 15, 20], [5.0, 5, 25, 15]])
    # Targets: (10 * 0.5, 10 * 0.25, 0, 5 ln 0.5) and (10 * 0.5, 0, 5 ln 2, 0).
    targets = [5, 2.5, 0, 5 * math.log(0.5), 5, 0, 5 * math.log(2), 0]
    deltas = [5.05, 2.5, -0.3, 0, 5, 2, 5 * math.log(2) - 0.1, 0]
    expected = 0.0
    for target, delta in zip(targets, deltas, strict=True):
        x = abs(target - delta)
        expected += 0.5 * x * x / beta if x < beta else x - 0.5 * beta
    loss = box_regression_loss(
        "smooth_l1",
        torch.tensor(deltas).view(2, 4),
        references=references,
        boxes=boxes,
        weights=WEIGHTS,
        beta=beta,
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_l1_by_hand_whatever_beta_is() -> None:
    references, boxes = torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[5.0, 10, 15, 20]])
    # Targets: 10 * 0.5, 10 * 0.25, 0, 5 ln 0.5.
    deltas = torch.tensor([[5.05, 2.0, -0.3, 0.0]], requires_grad=True)
    loss = box_regression_loss("l1", deltas, references=references, boxes=boxes, weights=WEIGHTS, beta=1.0)
    assert loss.item() == pytest.approx(0.05 + 0.5 + 0.3 + 5 * math.log(2), rel=1e-5)
    loss.backward()
    assert deltas.grad is not None
    assert deltas.grad.tolist() == [[1, -1, -1, 1]]


def test_iou_equals_torchvision() -> None:
    predicted, boxes = random_pairs(100)
    predicted[:20] = boxes[:20]
    predicted[20:40] += 200  # apart
    expected = 1 - box_iou(predicted, boxes).diagonal()
    assert (expected == 1).sum() >= 20
    torch.testing.assert_close(iou_loss(predicted, boxes), expected, rtol=1e-5, atol=1e-6)


def random_pairs(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for _ in range(2):
        corner = torch.rand(count, 2, generator=generator) * 30
        pairs.append(torch.cat((corner, corner + 1 + torch.rand(count, 2, generator=generator) * 60), dim=1))
    return pairs[0], pairs[1]


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("giou", generalized_box_iou_loss), ("diou", distance_box_iou_loss), ("ciou", complete_box_iou_loss)],
)
def test_losses_and_gradients_equal_torchvision(name: BoxLossName, theirs: Callable[..., Tensor]) -> None:
    predicted, boxes = random_pairs(100)
    references = predicted + torch.tensor([-3.0, -1, 2, 4])
    deltas = encode_boxes(predicted, references, WEIGHTS).requires_grad_()
    ours = box_regression_loss(name, deltas, references=references, boxes=boxes, weights=WEIGHTS, beta=1 / 9)
    torch.testing.assert_close(ours, theirs(predicted, boxes, reduction="sum"), rtol=1e-5, atol=1e-4)
    if name != "ciou":
        return
    found, expected = (predicted.clone().requires_grad_() for _ in range(2))
    ciou_loss(found, boxes).sum().backward()
    theirs(expected, boxes, reduction="sum").backward()
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("function", [iou_loss, generalized_box_iou_loss, distance_box_iou_loss, ciou_loss])
def test_gradients_agree_with_finite_differences(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    predicted, boxes = (t.double() for t in random_pairs(20))
    predicted.requires_grad_()
    if function is not ciou_loss:
        torch.autograd.gradcheck(lambda p: function(p, boxes), (predicted,))
        return
    # The weight of the aspect term is a constant to the gradient (CIoU, eq. 11): move the boxes without
    # moving it.
    gradient = torch.autograd.grad(function(predicted, boxes).sum(), predicted)[0]
    base = predicted.detach()
    weight = aspect_weight(base, boxes)
    numeric = torch.zeros_like(base)
    for k in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[k] = 1e-6
        above, below = (with_weight(base + sign * step, boxes, weight) for sign in (1, -1))
        numeric[:, k] = (above - below) / 2e-6
    torch.testing.assert_close(gradient, numeric, rtol=1e-4, atol=1e-7)


def aspect(predicted: Tensor, boxes: Tensor) -> Tensor:
    angles = [torch.atan((b[:, 2] - b[:, 0]) / (b[:, 3] - b[:, 1])) for b in (predicted, boxes)]
    return 4 / math.pi**2 * (angles[0] - angles[1]) ** 2


def aspect_weight(predicted: Tensor, boxes: Tensor) -> Tensor:
    v = aspect(predicted, boxes)
    return v / (iou_loss(predicted, boxes) + v)


def with_weight(predicted: Tensor, boxes: Tensor, weight: Tensor) -> Tensor:
    return distance_box_iou_loss(predicted, boxes) + weight * aspect(predicted, boxes)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "deltas",
    [
        [0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, -1000.0, 0.0],  # no width
        [0.0, 0.0, 0.0, -1000.0],  # no height
        [0.0, 0.0, -1000.0, -1000.0],  # a point
        [0.0, 0.0, -60.0, -50.0],  # vanishes in float32 away from the origin
        [0.0, 0.0, -280.0, -280.0],  # the squares of its sides vanish everywhere
        [500.0, 500.0, 0.0, 0.0],  # far off
        [1e6, -1e6, -30.0, -30.0],
        [0.0, 0.0, 1000.0, 1000.0],  # as large as can be
    ],
)
@pytest.mark.parametrize("centre", [0.0, 120.0])
def test_losses_and_gradients_stay_finite(name: BoxLossName, deltas: list[float], centre: float) -> None:
    values = torch.tensor([deltas], requires_grad=True)
    loss = box_regression_loss(
        name,
        values,
        references=torch.tensor([[-20.0, -25, 20, 25]]) + centre,
        boxes=torch.tensor([[-19.0, -22, 19, 30]]) + centre,
        weights=WEIGHTS,
        beta=1 / 9,
    )
    loss.backward()
    assert loss.isfinite()
    assert loss >= 0
    assert values.grad is not None
    assert values.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "box",
    [
        [10.0, 20.0, 50.0, 70.0],  # the reference itself
        [10.0, 20.0, 50.0, 70.00001],
        [10.0, 20.0, 10.001, 20.001],  # as small as a box may be
        [10.0, 20.0, 10.001, 1e4],
        [50.0, 70.0, 90.0, 90.0],  # corners meet
        [50.0, 20.0, 90.0, 70.0],  # sides meet
        [9e3, 9e3, 9.9e3, 9.9e3],  # far off
        [20.0, 30.0, 30.0, 40.0],  # inside
    ],
)
def test_losses_and_gradients_stay_finite_for_any_box(name: BoxLossName, box: list[float]) -> None:
    deltas = torch.zeros(1, 4, requires_grad=True)
    references = torch.tensor([[10.0, 20.0, 50.0, 70.0]])
    loss = box_regression_loss(
        name, deltas, references=references, boxes=torch.tensor([box]), weights=WEIGHTS, beta=1 / 9
    )
    loss.backward()
    assert loss.isfinite()
    assert loss >= 0
    if box == references[0].tolist():
        assert loss.item() == pytest.approx(0, abs=1e-6)
    assert deltas.grad is not None
    assert deltas.grad.isfinite().all()
    if name in ("giou", "diou", "ciou") and box[0] >= 50:
        assert deltas.grad.any()  # they pull boxes together that do not overlap


@pytest.mark.parametrize("name", NAMES)
def test_descending_the_gradient_finds_the_box(name: BoxLossName) -> None:
    references, boxes = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[3.0, 2, 11, 16]])
    deltas = torch.zeros(1, 4, requires_grad=True)
    optimizer = torch.optim.Adam([deltas], lr=0.05)
    arguments = {"references": references, "boxes": boxes, "weights": (1.0,) * 4, "beta": 1 / 9}
    start = box_regression_loss(name, deltas, **arguments).item()
    for _ in range(150):
        optimizer.zero_grad()
        loss = box_regression_loss(name, deltas, **arguments)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 * start


@pytest.mark.parametrize("name", NAMES)
def test_the_sum_is_taken_and_no_boxes_give_zero(name: BoxLossName) -> None:
    predicted, boxes = random_pairs(6)
    deltas = encode_boxes(predicted, predicted.flip(0), WEIGHTS)

    def total(rows: slice) -> Tensor:
        return box_regression_loss(
            name,
            deltas[rows],
            references=predicted.flip(0)[rows],
            boxes=boxes[rows],
            weights=WEIGHTS,
            beta=1 / 9,
        )

    parts = sum(total(slice(i, i + 1)) for i in range(6))
    torch.testing.assert_close(total(slice(0, 6)), parts)
    assert total(slice(0, 0)).item() == 0


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_deltas_are_computed_in_float32(name: BoxLossName) -> None:
    predicted, boxes = random_pairs(10)
    predicted, boxes = predicted + 1000, boxes + 1000
    deltas = encode_boxes(predicted, boxes, WEIGHTS).bfloat16()
    arguments = {"references": boxes, "boxes": boxes + 0.5, "weights": WEIGHTS, "beta": 1 / 9}
    loss = box_regression_loss(name, deltas, **arguments)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, box_regression_loss(name, deltas.float(), **arguments))


@pytest.mark.parametrize("name", ["l2", "GIoU", ""])
def test_an_unknown_loss_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match="box_loss must be one of l1, smooth_l1, iou, giou, diou, ciou"):
        check_box_loss(name, "sampled")


def test_an_unknown_normalizer_is_refused() -> None:
    with pytest.raises(ValueError, match="box_loss_normalizer must be sampled or positive, got 'all'"):
        check_box_loss("giou", "all")


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 1.0, 0.0, 1.0), (1.0, 1.0, 1.0, -1.0)])
def test_invalid_coder_weights_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="coder_weights must be four positive numbers"):
        check_coder_weights(weights)


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_are_not_real_have_no_loss_and_no_gradient(name: BoxLossName) -> None:
    """Though what stands in them is nothing that a loss could be computed of."""
    predicted, boxes = random_pairs(6)
    references = predicted + torch.tensor([-3.0, -1, 2, 4])
    deltas = encode_boxes(predicted, references, WEIGHTS)
    real = torch.tensor([True, False, True, False, False, True])
    references[1], boxes[3], deltas[4] = 0.0, 0.0, torch.nan
    found, expected = deltas.clone().requires_grad_(), deltas[real].requires_grad_()
    losses = [
        box_regression_loss(name, found, references=references, boxes=boxes, weights=WEIGHTS, beta=1 / 9, real=real),
        box_regression_loss(
            name, expected, references=references[real], boxes=boxes[real], weights=WEIGHTS, beta=1 / 9
        ),
    ]
    sum(losses).backward()
    torch.testing.assert_close(losses[0], losses[1])
    assert found.grad is not None
    assert torch.equal(found.grad[real], expected.grad)
    assert not found.grad[~real].any()

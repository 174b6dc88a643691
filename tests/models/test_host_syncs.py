"""How often the host waits for an accelerator in a training step, counted without one.

Tensors on devices that compute nothing know only shapes: the `cuda` of torch's FakeTensorMode, and `meta`, which has a
backward pass too, but is handed numbers of the host unseen.
"""

import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import maskrcnn
from maskrcnn.ops.image_batch import ImageBatch, pad_images

PACKAGE = Path(maskrcnn.__file__).parent
SIZES = [(64, 96), (50, 70), (64, 64)]

# What reads numbers, or has a shape that depends on them; the backward pass of a product looks for zeros first.
READS = {
    f"aten::{name}"
    for name in (
        *("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "masked_scatter", "prod"),
        *("_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount", "repeat_interleave", "histc"),
    )
} | {"torchvision::nms"}


class Waits(TorchDispatchMode):
    """Counts where the host would wait.

    Attributes:
        places: "file:line" in the package -> number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, tensors = func._schema.name, [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        away = any(x.device.type != "cpu" for x in tensors)
        masks = name in ("aten::index", "aten::index_put", "aten::index_put_") and any(
            x.dtype in (torch.bool, torch.uint8) for x in tree_leaves(args[1]) if isinstance(x, Tensor)
        )
        whole = name == "aten::prod" and not args[0].is_floating_point()
        if away and (name in READS or masks) and not whole:
            self.places[place()] += 1
            if name in ("aten::equal", "aten::_local_scalar_dense"):
                return True  # there are no numbers to look at
        result = func(*args, **kwargs)
        if name in ("aten::_to_copy", "aten::copy_") and not (kwargs.get("non_blocking") or True in args[2:]):
            ends = {x.device.type for x in (*tensors, result)}
            # A single number travels with the call.
            if len(ends) > 1 and not (name == "aten::copy_" and args[1].dim() == 0 and args[1].is_cpu):
                self.places[place()] += 1
        return result


def place() -> str:
    """The innermost line of the package."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(PACKAGE):
            return f"{path.relative_to(PACKAGE)}:{frame.lineno}"
    return "elsewhere"


@pytest.mark.parametrize("device", ["cuda", "meta"])
@pytest.mark.parametrize(
    "case",
    [
        ((3, 0, 1),),
        ((0, 0, 0),),
        ((3, 0, 1), "model/roi=cascade"),
        ((3, 0, 1), "model.box_head.class_agnostic=false", "model.rpn.box_loss=l1", "model.box_head.box_loss=ciou"),
        ((3, 0, 1), "model.box_head.num_convs=1", "model.box_head.norm=bn", "model.mask_head.norm=bn"),
    ],
    ids=["recipe", "empty", "cascade", "per_class", "norms"],
)
def test_a_training_step_makes_the_host_wait_once(
    make_tiny_model: Callable[..., Any],
    make_images: Callable[..., Any],
    make_targets: Callable[..., Any],
    device: str,
    case: tuple[Any, ...],
) -> None:
    """For the proposals; nowhere in the heads."""
    counts, *overrides = case
    with FakeTensorMode() if device == "cuda" else nullcontext():
        with torch.device(device):
            model = make_tiny_model(*overrides).train()
        batch, targets = pad_images(make_images(SIZES), divisor=32), make_targets(SIZES, counts)
        batch = ImageBatch(batch.pixels.to(device), batch.sizes)
        targets = [{name: value.to(device) for name, value in target.items()} for target in targets]
        with Waits() as waits:
            losses = model(batch, targets)
            loss = torch.stack(list(losses.values())).sum()
            if device == "meta":
                loss.backward()
    assert {name: loss.device.type for name, loss in losses.items()} == dict.fromkeys(losses, device)
    assert list(waits.places.values()) == [1], waits.places
    assert [name.partition(":")[0] for name in waits.places] == ["ops/nms.py"]
    if device == "meta":
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_counter_sees_what_waits() -> None:
    with FakeTensorMode():
        values, mask = torch.ones(3, device="cuda"), torch.ones(3, dtype=torch.bool, device="cuda")
        for wait in (
            lambda: values.sum().item(),
            lambda: bool(mask.any()),
            lambda: torch.equal(values, values),
            lambda: values[mask],
            lambda: torch.where(mask)[0],
            lambda: torch.tensor([1.0], device="cuda"),
            values.cpu,
            lambda: values.copy_(torch.ones(3)),
        ):
            with Waits() as waits:
                try:
                    wait()
                except RuntimeError:  # a shape that nobody knows
                    assert waits.places
            assert sum(waits.places.values()) == 1
        with Waits() as waits:
            values[:2] = 0
            values.copy_(torch.ones(3), non_blocking=True)
            torch.where(mask, values, 0).topk(2)
        assert not waits.places

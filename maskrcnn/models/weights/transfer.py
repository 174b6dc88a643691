"""From a weight file into a model: of the same classes, or of others."""

import re

from torch import nn

from maskrcnn.errors import UserError
from maskrcnn.models.weights.contents import Weights

# Parameters whose rows belong to classes, background first, and how many rows each class has.
_CLASS_ROWS = re.compile(r"roi_heads\.(?:box_heads\.\d|mask_head)\.(scores|deltas|logits)\.(?:weight|bias)")
_ROWS_PER_CLASS = {"scores": 1, "deltas": 4, "logits": 1}


def load_weights(model: nn.Module, weights: Weights, *, key: str = "ckpt") -> None:
    """Load weights whose classes are the model's own.

    Raises:
        UserError: Names or shapes differ.
    """
    expected = model.state_dict()
    missing = sorted(set(expected) - set(weights.state))
    unknown = sorted(set(weights.state) - set(expected))
    shapes = [
        f"{name} is {list(value.shape)} there, {list(expected[name].shape)} here"
        for name, value in weights.state.items()
        if name in expected and value.shape != expected[name].shape
    ]
    problems = [*shapes, *(f"{n} is missing there" for n in missing), *(f"{n} is unknown here" for n in unknown)]
    if problems:
        more = f" (and {len(problems) - 2} more)" if len(problems) > 2 else ""
        raise UserError(f"{key}={weights.path}: does not fit this model: {'; '.join(problems[:2])}{more}")
    model.load_state_dict(weights.state)


def init_weights(model: nn.Module, weights: Weights, *, class_names: list[str]) -> list[str]:
    """Start `model` from weights that may be of other classes or other heads.

    Head rows are carried over by class name; whatever does not fit keeps its fresh initialisation.

    Returns:
        Names of the parameters that were not, or not wholly, taken from the file.

    Raises:
        UserError: Not even the backbone fits.
    """
    old_names = ["background"] + [category["name"] for category in weights.categories]
    rows = {name: i for i, name in enumerate(old_names)}
    pairs = [(new, rows[name]) for new, name in enumerate(["background", *class_names]) if name in rows]
    same_classes = old_names == ["background", *class_names]
    state = model.state_dict()
    fresh = []
    for name, current in state.items():
        value = weights.state.get(name)
        per_class = _rows_per_class(name)
        if value is None:
            fresh.append(name)
        elif per_class and not same_classes and len(value) == per_class * len(old_names):
            if current.shape != (per_class * (len(class_names) + 1), *value.shape[1:]):
                fresh.append(name)
                continue
            for new, old in pairs:
                current.unflatten(0, (-1, per_class))[new] = value.unflatten(0, (-1, per_class))[old]
            if len(pairs) <= len(class_names):
                fresh.append(f"{name} (rows of new classes)")
        elif value.shape == current.shape:
            current.copy_(value)
        else:
            fresh.append(name)
    if not any(name.startswith("backbone.") and name not in fresh for name, _ in model.named_parameters()):
        raise UserError(f"init={weights.path}: no weight of its backbone fits; choose the model.backbone that it has")
    return fresh


def _rows_per_class(name: str) -> int:
    """How many rows of a parameter belong to each class, 0 where rows are not classes."""
    match = _CLASS_ROWS.fullmatch(name)
    return _ROWS_PER_CLASS[match[1]] if match else 0

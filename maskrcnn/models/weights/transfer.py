"""From a weight file into a model: of the same classes, or of others."""

import re
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from maskrcnn.errors import UserError
from maskrcnn.models.weights.contents import Weights

# Parameters whose rows belong to classes, background first, and how many rows each class has.
_CLASS_ROWS = re.compile(r"roi_heads\.(?:box_heads\.\d|mask_head)\.(scores|deltas|logits)\.(?:weight|bias)")
_ROWS_PER_CLASS = {"scores": 1, "deltas": 4, "logits": 1}

# Steps that a BatchNorm has seen: of no account where they are missing.
_COUNTER = ".num_batches_tracked"


@dataclass(frozen=True)
class Transfer:
    """What a model took over from a weight file, by the names of its parameters and buffers.

    Attributes:
        path: The file.
        kept: Taken over as they are.
        mapped: Whose rows followed the names of their classes; rows of new classes are freshly initialised.
        fresh: Freshly initialised, and why.
        unused: In the file, of no use here.
        old_classes, new_classes: Names of labels 1..K there and here.
        groups: Config group options of the model that the file is made for, {} for a checkpoint of ours.
    """

    path: Path
    kept: list[str]
    mapped: list[str]
    fresh: dict[str, str]
    unused: list[str]
    old_classes: list[str]
    new_classes: list[str]
    groups: dict[str, str]

    @property
    def complete(self) -> bool:
        """Whether nothing here is fresh and nothing there is left."""
        return not (self.mapped or self.fresh or self.unused)


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


def init_weights(model: nn.Module, weights: Weights, *, class_names: list[str]) -> Transfer:
    """Start `model` from weights that may be of other classes or other heads.

    Rows of the heads follow the names of their classes, letter by letter; whatever does not fit keeps its fresh
    initialisation.

    Raises:
        UserError: Not even the backbone fits.
    """
    old_names = ["background"] + [category["name"] for category in weights.categories]
    new_names = ["background", *class_names]
    rows = {name: i for i, name in enumerate(old_names)}
    pairs = [(new, rows[name]) for new, name in enumerate(new_names) if name in rows]
    state = model.state_dict()
    kept: list[str] = []
    mapped: list[str] = []
    fresh: dict[str, str] = {}
    for name, current in state.items():
        value = weights.state.get(name)
        per_class = _rows_per_class(name) if old_names != new_names else 0
        if value is None:
            if not name.endswith(_COUNTER):
                fresh[name] = "missing there"
        elif (
            per_class
            and len(value) == per_class * len(old_names)
            and current.shape == (per_class * len(new_names), *value.shape[1:])
        ):
            for new, old in pairs:
                current.unflatten(0, (-1, per_class))[new] = value.unflatten(0, (-1, per_class))[old]
            mapped.append(name)
        elif value.shape == current.shape:
            current.copy_(value)
            kept.append(name)
        else:
            fresh[name] = f"{list(value.shape)} there, {list(current.shape)} here"
    if not {name for name, _ in model.named_parameters() if name.startswith("backbone.")} - set(fresh):
        raise UserError(f"init={weights.path}: no weight of its backbone fits; choose the model.backbone that it has")
    unused = [name for name in weights.state if name not in state and not name.endswith(_COUNTER)]
    return Transfer(weights.path, kept, mapped, fresh, unused, old_names[1:], class_names, weights.groups)


def _rows_per_class(name: str) -> int:
    """How many rows of a parameter belong to each class, 0 where rows are not classes."""
    match = _CLASS_ROWS.fullmatch(name)
    return _ROWS_PER_CLASS[match[1]] if match else 0

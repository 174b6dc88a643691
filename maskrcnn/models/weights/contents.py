"""What a weight file holds, and the way from another project's names to ours."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from maskrcnn.errors import UserError

# Pattern of a whole name there -> our name, or "" where we have no use for it. The first that matches counts.
NameTable = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Weights:
    """What a weight file holds, in our names.

    Attributes:
        path: The file.
        state: State dict of `MaskRCNN`.
        categories: Category of each label 1..K as {"id", "name"}.
        config: The training config of our own checkpoint, {} otherwise.
        groups: Config group options that a file from elsewhere needs, such as {"model": "torchvision"}.
        settings: Dotted keys of `model` that it needs on top of them.
    """

    path: Path
    state: dict[str, Tensor]
    categories: list[dict[str, Any]]
    config: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def translate(state: Mapping[str, Tensor], table: NameTable, *, source: str) -> dict[str, Tensor]:
    """The same tensors under our names.

    Args:
        state: State dict of another project's model.
        table: Its names and ours; every name must be in it.
        source: Config key, file and kind of model, for messages.

    Raises:
        UserError: A name is not in the table, or two share one of ours.
    """
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        found = next((re.sub(pattern, new, name) for pattern, new in table if re.fullmatch(pattern, name)), None)
        if found is None:
            raise UserError(f"{source}: {name} is not a parameter of such a model that is known here")
        if found in ours:
            raise UserError(f"{source}: {name} is there twice, under an older name too")
        if found:
            ours[found] = value
    return ours


def numbered_categories(count: int) -> list[dict[str, Any]]:
    """Categories 1..count of a file that names none."""
    return [{"id": label, "name": str(label)} for label in range(1, count + 1)]


def coco_categories(count: int) -> list[dict[str, Any]]:
    """COCO's 80 categories in the order of their ids, which leave numbers out; numbered ones for any other count."""
    names = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    coco = [{"id": i, "name": name} for i, name in enumerate(names) if name not in ("__background__", "N/A")]
    return coco if count == len(coco) else numbered_categories(count)

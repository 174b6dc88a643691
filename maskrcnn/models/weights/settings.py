"""What a model was made for besides its weights: the picture it expects, its anchors, its pooling."""

import re
from collections.abc import Iterator
from typing import Any

# Dotted key of `model` -> (value there, value here).
Differences = dict[str, tuple[Any, Any]]

# Keys of `model` with which the same weights compute something else; what changes shapes shows in the shapes.
_DECISIVE = re.compile(
    r"(?:input|anchors|roi_align)\.(?!_)\w+"
    r"|backbone\.(?:norm|norm_eps|stride_in_1x1)"
    r"|neck\.(?:upsampling|top_down)"
    r"|(?:rpn|roi\.stages\.\d)\.coder_weights"
    r"|(?:box_head|mask_head)\.resolution"
    r"|mask_head\.paste"
)


def differing_settings(there: dict[str, Any], here: dict[str, Any]) -> Differences:
    """Keys that both of two plain `model` nodes have, and with which the same weights compute something else."""
    theirs, ours = dict(_leaves(there)), dict(_leaves(here))
    return {
        key: (value, ours[key])
        for key, value in theirs.items()
        if _DECISIVE.fullmatch(key) and key in ours and value != ours[key]
    }


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of all values but nodes; a list of nodes counts them."""
    if isinstance(node, dict):
        children = list(node.items())
    elif isinstance(node, list) and any(isinstance(item, dict) for item in node):
        children = list(enumerate(node))
    else:
        yield path, node
        return
    for key, child in children:
        yield from _leaves(child, f"{path}.{key}".lstrip("."))

"""Weights of a backbone alone: torchvision's and timm's classifiers."""

import re
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from maskrcnn.errors import UserError
from maskrcnn.models.weights.files import load_file


def load_backbone_weights(backbone: nn.Module, *, name: str, weights: str, optional: str = "") -> None:
    """Load ImageNet weights into a backbone whose parameters are named as in the file.

    Args:
        backbone: A classifier of torchvision or timm without its end; what the file has beyond it is left out.
        name: Of the network, in torchvision where `weights` is `default`.
        weights: `default` for torchvision's best, or a state-dict file.
        optional: Pattern of the names that the file may lack.

    Raises:
        UserError: The file is missing or does not fit, or the download fails.
    """
    key = "model.backbone.weights"
    state = _download(name, key) if weights == "default" else load_file(Path(weights).expanduser(), key)
    # timm flattens stages.0 to stages_0 where a network gives feature maps.
    found = {n.replace(".", "_"): v for n, v in state.items() if isinstance(v, Tensor)} if _is_state(state) else {}
    chosen, wrong = {}, []
    for n, current in backbone.state_dict().items():
        value = found.get(n.replace(".", "_"))
        if value is not None and value.shape == current.shape:
            chosen[n] = value
        elif value is not None or not (n.endswith("num_batches_tracked") or re.fullmatch(optional, n)):
            wrong.append(n)
    if wrong:
        raise UserError(f"{key}={weights}: does not fit {name}: {wrong[0]} is missing or of another shape")
    backbone.load_state_dict(chosen, strict=False)


def _is_state(content: Any) -> bool:
    return isinstance(content, dict) and all(isinstance(name, str) for name in content)


def _download(name: str, key: str) -> dict[str, Any]:
    choice = get_model_weights(name).DEFAULT
    try:
        return choice.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"{key}=default: cannot download {choice.url} ({error}); put {Path(choice.url).name} into {folder}, "
            f"or set {key} to a local file, or to null for random weights"
        ) from None

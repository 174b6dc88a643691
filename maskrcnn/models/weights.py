"""Weights from files: our checkpoints, torchvision's detection models, ImageNet backbones.

Every file is read with `weights_only=True`: tensors and plain types, nothing that could run code.
"""

import hashlib
import pickle
import re
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from maskrcnn.errors import UserError

# Where our checkpoints keep what is ours, beside Lightning's own entries.
CHECKPOINT_KEY = "maskrcnn"
_MODULE_PREFIX = "model."

# torchvision switches the BatchNorm epsilon off for exactly this published file.
_TORCHVISION_COCO_V1_SHA256 = "bf2d0c1e"

# torchvision's name -> ours, with the names from before torchvision 0.14 as they stand in the published file.
_TORCHVISION_NAMES = [
    (r"backbone\.body\.(.+)", r"backbone.\1"),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.(?:0\.)?(weight|bias)", r"neck.lateral.\1.0.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.(?:0\.)?(weight|bias)", r"neck.output.\1.0.\2"),
    (r"rpn\.head\.conv\.(?:0\.0\.)?(weight|bias)", r"rpn.convs.0.\1"),
    (r"rpn\.head\.cls_logits\.(weight|bias)", r"rpn.objectness.\1"),
    (r"rpn\.head\.bbox_pred\.(weight|bias)", r"rpn.deltas.\1"),
    (r"roi_heads\.box_head\.fc6\.(weight|bias)", r"roi_heads.box_heads.0.fc1.\1"),
    (r"roi_heads\.box_head\.fc7\.(weight|bias)", r"roi_heads.box_heads.0.fc2.\1"),
    (r"roi_heads\.box_predictor\.cls_score\.(weight|bias)", r"roi_heads.box_heads.0.scores.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(weight|bias)", r"roi_heads.box_heads.0.deltas.\1"),
    (r"roi_heads\.mask_head\.(\d)\.0\.(weight|bias)", r"roi_heads.mask_head.convs.\1.\2"),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(weight|bias)", r"roi_heads.mask_head.upsample.\1"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(weight|bias)", r"roi_heads.mask_head.logits.\1"),
]
_TORCHVISION_OLD_MASK_CONV = re.compile(r"roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)")

# Parameters whose rows belong to classes, background first, and how many rows each class has.
_CLASS_ROWS = re.compile(r"roi_heads\.(?:box_heads\.\d|mask_head)\.(scores|deltas|logits)\.(?:weight|bias)")
_ROWS_PER_CLASS = {"scores": 1, "deltas": 4, "logits": 1}


@dataclass(frozen=True)
class Weights:
    """What a weight file holds, in our names.

    Attributes:
        path: The file.
        source: `maskrcnn` or `torchvision`.
        state: State dict of `MaskRCNN`.
        categories: Category of each label 1..K as {"id", "name"}.
        config: The training config of our own checkpoint, {} otherwise.
        settings: Dotted keys of `model` that this file needs, beyond what its source implies.
    """

    path: Path
    source: str
    state: dict[str, Tensor]
    categories: list[dict[str, Any]]
    config: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def read_weights(path: str | Path, *, key: str = "ckpt") -> Weights:
    """Read a checkpoint of ours or a torchvision `maskrcnn_resnet50_fpn` state dict.

    Args:
        path: The file.
        key: The config key that named it, for messages.

    Raises:
        UserError: The file is missing, is not a checkpoint, or holds weights of neither kind.
    """
    path = Path(path).expanduser()
    content = load_file(path, key)
    if isinstance(content, dict) and isinstance(content.get(CHECKPOINT_KEY), dict):
        ours = content[CHECKPOINT_KEY]
        if not isinstance(content.get("state_dict"), dict) or not {"categories", "config"} <= set(ours):
            raise UserError(f"{key}={path}: a checkpoint of this project that lacks its weights, categories or config")
        state = {
            name.removeprefix(_MODULE_PREFIX): value
            for name, value in content["state_dict"].items()
            if name.startswith(_MODULE_PREFIX)
        }
        return Weights(path, "maskrcnn", state, ours["categories"], ours["config"])
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if isinstance(content, dict) and "roi_heads.box_predictor.cls_score.weight" in content:
        return _read_torchvision(path, content, key)
    raise UserError(
        f"{key}={path}: holds no Mask R-CNN weights that are known here; "
        "give a checkpoint of this project or a state dict of torchvision's maskrcnn_resnet50_fpn"
    )


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


def load_file(path: Path, key: str, *, mmap: bool = False) -> Any:
    """What `torch.save` wrote, or a `.safetensors` file: tensors and plain types alone.

    Args:
        path: The file.
        key: The config key that named it, for messages.
        mmap: Leave the tensors on the disk until they are used.

    Raises:
        UserError: The file is missing, is not a checkpoint, or is damaged.
    """
    if not path.is_file():
        raise UserError(f"{key}={path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return _load_safetensors(path, key)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:
        raise UserError(
            f"{key}={path}: not a checkpoint, or one that holds more than tensors and plain types; "
            "such a file could run code and is not read"
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError, KeyError, IndexError, AttributeError, UnicodeDecodeError) as e:
        reason = (str(e) or type(e).__name__).splitlines()[0][:100]
        raise UserError(f"{key}={path}: not a checkpoint, or a damaged one ({reason})") from None


def _load_safetensors(path: Path, key: str) -> dict[str, Tensor]:
    if find_spec("safetensors") is None:
        raise UserError(f"{key}={path}: safetensors is not installed; pip install 'maskrcnn-lightning[timm]'")
    try:
        return import_module("safetensors.torch").load_file(path)
    except import_module("safetensors").SafetensorError as error:
        raise ValueError(error) from None


def _read_torchvision(path: Path, content: dict[str, Tensor], key: str) -> Weights:
    state = {}
    for name, value in content.items():
        if name.endswith("num_batches_tracked"):
            continue  # frozen BatchNorm has no use for it
        ours = _torchvision_name(name)
        if ours is None:
            raise UserError(
                f"{key}={path}: {name} is not a parameter of torchvision's maskrcnn_resnet50_fpn, "
                "the one torchvision model that is read here"
            )
        state[ours] = value
    num_classes = len(state["roi_heads.box_heads.0.scores.weight"]) - 1
    names = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    if num_classes != len(names) - 1:
        names = [str(label) for label in range(num_classes + 1)]
    categories = [{"id": label, "name": names[label]} for label in range(1, num_classes + 1)]
    settings: dict[str, Any] = {}
    if hashlib.sha256(path.read_bytes()).hexdigest().startswith(_TORCHVISION_COCO_V1_SHA256):
        settings["backbone.norm_eps"] = 0.0
    return Weights(path, "torchvision", state, categories, settings=settings)


def _torchvision_name(name: str) -> str | None:
    """Our name of a torchvision parameter, None where there is none."""
    old = _TORCHVISION_OLD_MASK_CONV.fullmatch(name)
    if old:
        return f"roi_heads.mask_head.convs.{int(old[1]) - 1}.{old[2]}"
    for pattern, ours in _TORCHVISION_NAMES:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, ours, name)
    return None

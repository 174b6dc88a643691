"""From plain config nodes to objects: allowed targets only, values of the right type only."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from inspect import Parameter, signature
from typing import Any, get_type_hints

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import SchemaError
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from maskrcnn.errors import UserError

# Everything that a config may build. Exact names: a whole package would let torch.load or torch.hub.load through.
BUILDABLE = frozenset(
    {
        "maskrcnn.data.augment.Augment",
        "maskrcnn.data.coco.CocoDataset",
        "maskrcnn.data.datamodule.DetectionDataModule",
        "maskrcnn.data.geometry.HorizontalFlip",
        "maskrcnn.data.geometry.LargeScaleJitter",
        "maskrcnn.data.geometry.Perspective",
        "maskrcnn.data.geometry.RandomCrop",
        "maskrcnn.data.mixing.CopyPaste",
        "maskrcnn.data.mixing.MixUp",
        "maskrcnn.data.mixing.Mosaic",
        "maskrcnn.data.pixels.Blur",
        "maskrcnn.data.pixels.ColorJitter",
        "maskrcnn.data.pixels.Noise",
        "maskrcnn.data.shapes.ShapesDrawing",
        "maskrcnn.data.voc.VocDataset",
        "maskrcnn.models.anchors.AnchorGenerator",
        "maskrcnn.models.backbones.MobileNet",
        "maskrcnn.models.backbones.ResNet",
        "maskrcnn.models.backbones.Timm",
        "maskrcnn.models.bifpn.BiFPN",
        "maskrcnn.models.input.ModelInput",
        "maskrcnn.models.mask_rcnn.MaskRCNN",
        "maskrcnn.models.matching.BalancedSampler",
        "maskrcnn.models.matching.Matcher",
        "maskrcnn.models.necks.FPN",
        "maskrcnn.models.necks.PANet",
        "maskrcnn.models.roi_align.RoIAlign",
        "maskrcnn.models.roi_heads.BoxHead",
        "maskrcnn.models.roi_heads.MaskHead",
        "maskrcnn.models.roi_heads.RoISettings",
        "maskrcnn.models.roi_heads.RoIStage",
        "maskrcnn.models.rpn.RPN",
        "maskrcnn.models.tta.AugmentedMaskRCNN",
        "maskrcnn.training.checkpoints.LastCheckpoint",
        "maskrcnn.training.early_stopping.EarlyStopping",
        "maskrcnn.training.ema.EMA",
        "maskrcnn.training.guard.Guard",
        "maskrcnn.training.interruption.Interruption",
        "maskrcnn.training.loggers.CSVCurves",
        "maskrcnn.training.loggers.TensorBoardCurves",
        "maskrcnn.training.optimizers.adam",
        "maskrcnn.training.optimizers.adamw",
        "maskrcnn.training.optimizers.sgd",
        "maskrcnn.training.pictures.Pictures",
        "maskrcnn.training.progress.ProgressBar",
        "maskrcnn.training.report.ClassTable",
        "maskrcnn.training.report.ScoreLine",
        "maskrcnn.training.schedules.cosine",
        "maskrcnn.training.schedules.multistep",
        "maskrcnn.training.speed.Speed",
        "maskrcnn.training.summary.Summary",
        "maskrcnn.training.trackers.MLflowCurves",
        "maskrcnn.training.trackers.WandbCurves",
        "pytorch_lightning.Trainer",
        "pytorch_lightning.callbacks.ModelCheckpoint",
    }
)

_SCALARS = (bool, int, float, str, type(None))


def build(node: Any, *, key: str, trust: Sequence[str] = (), **extra: Any) -> Any:
    """Build what a config node describes: `_target_` is called with its other entries.

    Args:
        node: A plain dict, list or value.
        key: Where the node stands in the config, for messages.
        trust: Packages besides ours that may be built from.
        extra: More arguments for the outermost call.

    Raises:
        UserError: A target is not allowed, or refuses an argument; names the key.
    """
    if isinstance(node, list):
        return [build(item, key=f"{key}.{i}", trust=trust) for i, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    arguments = {
        name: build(value, key=f"{key}.{name}", trust=trust)
        for name, value in node.items()
        if name not in ("_target_", "_partial_") and name not in extra
    }
    if "_target_" not in node:
        return arguments
    target = _locate(node["_target_"], key, trust)
    _check_types(target, arguments, key)
    arguments |= extra
    if node.get("_partial_"):
        return _Deferred(target, arguments, key)
    return _call(target, arguments, key)


def one_line(error: BaseException) -> str:
    """The message alone, on one line."""
    # A worker process sends its traceback along; what the user needs is behind it.
    text = str(error).rsplit("UserError: ", 1)[-1]
    return " ".join(text.split())


class _Deferred:
    """A call that still lacks arguments, such as a neck that needs the backbone's channels."""

    def __init__(self, target: Callable[..., Any], arguments: dict[str, Any], key: str) -> None:
        self._target, self._arguments, self._key = target, arguments, key

    def __call__(self, *args: Any, **more: Any) -> Any:
        return _call(self._target, self._arguments | more, self._key, *args)


def _call(target: Callable[..., Any], arguments: Mapping[str, Any], key: str, *args: Any) -> Any:
    try:
        return target(*args, **arguments)
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise UserError(f"{key}: {one_line(error)}") from error


def _locate(name: str, key: str, trust: Sequence[str]) -> Callable[..., Any]:
    packages = [trust] if isinstance(trust, str) else trust
    trusted = any(str(name).startswith(f"{package}.") for package in packages)
    if str(name) not in BUILDABLE and not trusted:
        raise UserError(
            f"{key}._target_={name}: is not among the classes that a config may build; "
            "for code of your own that you trust, add trust=[its_package]"
        )
    try:
        module, _, attribute = name.rpartition(".")
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{key}._target_={name}: cannot be imported ({one_line(error)})") from error


def _check_types(target: Callable[..., Any], arguments: Mapping[str, Any], key: str) -> None:
    """Hold plain values against the annotations of the target, so that `Ture` is not taken for true."""
    constructor = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    try:
        parameters = signature(target).parameters
        hints = get_type_hints(constructor)
    except (TypeError, ValueError, NameError):
        return  # code of the user's own that says nothing about its arguments
    open_ended = any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values())
    for name, value in arguments.items():
        if name not in parameters:
            if open_ended:
                continue
            known = ", ".join(p for p in parameters if p != "self")
            raise UserError(f"{key}.{name}: unknown key; {key} takes {known}")
        problem = _misfit(value, hints[name]) if name in hints and _is_plain(value) else None
        if problem:
            raise UserError(f"{key}.{name}={value}: {problem}")


def _misfit(value: Any, hint: Any) -> str | None:
    """What is wrong with a plain value for a parameter of this annotation, or None."""
    try:
        fits = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python
        fits(value, strict=True)
    except ValidationError as error:
        if isinstance(value, list) and _misfit(tuple(value), hint) is None:
            return None  # YAML has no tuples
        problems = error.errors()
        if all(problem["type"] == "literal_error" for problem in problems):  # of a union of choices
            return f"input should be {', '.join(problem['ctx']['expected'] for problem in problems)}"
        return problems[0]["msg"].lower()
    except (PydanticUserError, SchemaError):
        return None  # an annotation of a library that says nothing about plain values
    return None


def _is_plain(value: Any) -> bool:
    return isinstance(value, _SCALARS) or (isinstance(value, list) and all(map(_is_plain, value)))

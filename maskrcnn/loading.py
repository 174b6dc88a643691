"""From the file that `ckpt=` names to a model that predicts, whatever kind of file it is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maskrcnn.building import build
from maskrcnn.errors import UserError
from maskrcnn.models.exported.onnx_model import OnnxModel, open_session, session_metadata
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.models.weights import Weights, load_weights, read_weights


def is_exported(path: str | Path) -> bool:
    """Whether the file is an exported model, whose settings are fixed."""
    return Path(path).suffix == ".onnx"


def read_checkpoint(path: str | Path) -> Weights:
    """What a checkpoint, another project's weights or an exported model holds; the last without its tensors.

    Raises:
        UserError: The file cannot be read, or is of no known kind.
    """
    path = Path(path).expanduser()
    if path.suffix == ".pt2":
        raise UserError(
            f"ckpt={path}: a torch.export program could run code when it is read; "
            "give the checkpoint that it was made of, or export that with format=onnx"
        )
    if not is_exported(path):
        return read_weights(path)
    about = session_metadata(open_session(path), path)
    config = {"model": about["model"], "data": about["data"], "trainer": {"precision": "32-true"}}
    return Weights(path, {}, about["categories"], config)


def load_model(
    path: str | Path, node: Mapping[str, Any], *, trust: Sequence[str] = ()
) -> tuple[MaskRCNN | OnnxModel, list[dict[str, Any]]]:
    """The model, and {"id", "name"} of each label 1..K.

    Args:
        path: What `ckpt=` names.
        node: The plain `model` node that the file needs; of an exported model it is not looked at.
        trust: Packages besides ours that may be built from.

    Raises:
        UserError: The file cannot be read, or does not fit the model.
    """
    path = Path(path).expanduser()
    if is_exported(path):
        exported = OnnxModel(path)
        return exported, exported.categories
    weights = read_checkpoint(path)
    backbone = node["backbone"] | {"weights": None}  # they are in the checkpoint
    own = {**node, "num_classes": len(weights.categories), "backbone": backbone}
    model: MaskRCNN = build(own, key="model", trust=trust)
    load_weights(model, weights)
    return model, weights.categories

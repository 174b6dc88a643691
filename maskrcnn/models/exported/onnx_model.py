"""An exported ONNX file in the place of a model: for evaluation and prediction."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maskrcnn.errors import UserError
from maskrcnn.models.exported.metadata import INPUTS, OUTPUTS, read_metadata
from maskrcnn.models.input import ModelInput

_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


class OnnxModel(nn.Module):
    """Predicts as `MaskRCNN` does, with onnxruntime, on its GPU where the installed onnxruntime has one.

    Args:
        path: What `python -m maskrcnn.export format=onnx` wrote.

    Attributes:
        categories: {"id", "name"} of each label 1..K.
        paste: How a mask is laid into the picture, see `ops.masks`.

    Raises:
        UserError: onnxruntime is missing, or the file is not such a one.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._session = open_session(path)
        about = session_metadata(self._session, path)
        self.categories: list[dict[str, Any]] = about["categories"]
        self.paste: str = about["masks"]["paste"]
        # The network normalises by itself: here pixels are only brought to 0..255.
        self.input = ModelInput(**about["input"], mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))

    @torch.no_grad()
    def predict(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Detections in pixels of the given pictures, best first."""
        batch = self.input.prepare(images)
        sizes = np.array(batch.sizes, dtype=np.int64)
        arrays = dict(zip(INPUTS, (batch.pixels.float().cpu().contiguous().numpy(), sizes), strict=True))
        found = {
            name: torch.from_numpy(array).to(images[0].device)
            for name, array in zip(OUTPUTS, self._session.run(OUTPUTS, arrays), strict=True)
        }
        counts = found.pop("image_index").bincount(minlength=len(images)).tolist()
        parts = {name: values.split(counts) for name, values in found.items()}
        detections = []
        for i, image in enumerate(images):
            detection = {name: part[i] for name, part in parts.items()}
            detection["boxes"] = self.input.restore(detection["boxes"], image)
            detections.append(detection)
        return detections


def open_session(path: Path) -> Any:
    """The file, ready to run.

    Raises:
        UserError: onnxruntime is missing, or the file cannot be read.
    """
    if not path.is_file():
        raise UserError(f"ckpt={path}: no such file")
    if find_spec("onnxruntime") is None:
        raise UserError(f"ckpt={path}: onnxruntime cannot be found; pip install 'maskrcnn-lightning[export]'")
    runtime = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    providers = [name for name in _PROVIDERS if name in runtime.get_available_providers()]
    try:
        return runtime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # onnxruntime's have no base of their own
        raise UserError(f"ckpt={path}: onnxruntime cannot read it ({str(error).splitlines()[0]})") from error


def session_metadata(session: Any, path: Path) -> dict[str, Any]:
    """What the file says about itself, see `metadata.py` beside this."""
    return read_metadata(session.get_modelmeta().custom_metadata_map, path)

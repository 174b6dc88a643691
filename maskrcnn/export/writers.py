"""From a model to a file of another format."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from maskrcnn.errors import UserError
from maskrcnn.export.network import ExportNetwork
from maskrcnn.export.suppression import Suppress, onnx_translations, suppress, suppress_op
from maskrcnn.models.exported.metadata import INPUTS, OUTPUTS
from maskrcnn.models.mask_rcnn import MaskRCNN

SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}
_EXTRAS = ("onnx", "onnxscript")


def write_model(model: MaskRCNN, output: Path, metadata: Mapping[str, str], *, format: str, half: bool) -> None:
    """Write a model for any number of pictures of any size.

    Args:
        model: The network; with `half` its weights are rounded to float16.
        output: The file, replaced at once when all of it is there.
        metadata: Key -> text, carried in the file.
        format: `onnx`, or `torch_export` for what `torch.export.load` reads.
        half: Convolutions and fully connected layers in float16.

    Raises:
        UserError: A package is missing, or the model holds something that cannot be exported.
    """
    missing = [name for name in _EXTRAS if format == "onnx" and find_spec(name) is None]
    if missing:
        raise UserError(f"format=onnx: {', '.join(missing)} cannot be found; pip install 'maskrcnn-lightning[export]'")
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(f"{output.stem}.part{output.suffix}")
    try:
        with _quietly():
            if format == "onnx":
                _write_onnx(_trace(model, suppress_op, half=half), part, metadata)
            else:
                program = _trace(model, suppress, half=half)
                torch.export.save(program, part, extra_files=dict(metadata))
        part.replace(output)
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"format={format}: this model cannot be exported ({reason})") from error
    finally:
        part.unlink(missing_ok=True)


def _trace(model: MaskRCNN, suppress: Suppress, *, half: bool) -> ExportedProgram:
    network = ExportNetwork(model.eval(), suppress=suppress, half=half).eval().requires_grad_(False)
    # Sides that none of the levels divides down to 1, and a batch of more than 1: torch.export takes a 1 for fixed.
    images, sizes = torch.zeros(2, 3, 256, 320), torch.tensor([[256, 320], [250, 300]])
    free = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}, {0: Dim.DYNAMIC})
    with torch.no_grad():
        return torch.export.export(network, (images, sizes), dynamic_shapes=free)


def _write_onnx(program: ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    exported = torch.onnx.export(
        program,
        input_names=INPUTS,
        output_names=OUTPUTS,
        dynamic_shapes=({0: "batch", 2: "height", 3: "width"}, {0: "batch"}),
        custom_translation_table=onnx_translations(),
        verbose=False,
    )
    assert exported is not None
    for output in exported.model.graph.outputs:
        assert output.shape is not None
        output.shape[0] = "detections"
    exported.model.metadata_props.update(metadata)
    exported.save(path, external_data=False)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporters' chatter about themselves."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)

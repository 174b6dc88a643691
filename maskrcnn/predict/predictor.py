"""A trained model, ready to be shown pictures."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from PIL import Image
from torch import Tensor

from maskrcnn.config import Config, build, compose_config, plain
from maskrcnn.data.images import REMEDY, read_image, to_rgb_array
from maskrcnn.data.sample import to_tensor
from maskrcnn.errors import UserError
from maskrcnn.loading import load_model
from maskrcnn.models.exported.onnx_model import OnnxModel
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.models.tta import AugmentedMaskRCNN
from maskrcnn.ops.masks import masks_to_rle
from maskrcnn.predict.result import Result

Picture = np.ndarray | Image.Image | str | Path


class Predictor:
    """Finds instances in pictures.

    Args:
        model: The network, with its weights.
        categories: {"id", "name"} of each label 1..K.
        accelerator, devices, precision: As of Lightning's Trainer; the devices are one.

    Raises:
        UserError: There is no such device or precision.
    """

    def __init__(
        self,
        *,
        model: MaskRCNN | AugmentedMaskRCNN | OnnxModel,
        categories: list[dict[str, Any]],
        accelerator: str = "auto",
        devices: int | str | list[int] = 1,
        precision: Any = "32-true",
    ) -> None:
        logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)  # chatter
        try:
            fabric = Fabric(
                accelerator=accelerator, devices=devices, precision=precision, plugins=LightningEnvironment()
            )
        except (MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"trainer.accelerator, trainer.devices, trainer.precision: {error}") from error
        if fabric.world_size != 1:
            raise UserError(f"trainer.devices={devices}: pictures are predicted on one device; set 1, or [its number]")
        self.categories = categories
        self.paste = model.paste
        self.device = fabric.device
        self._model = fabric.setup_module(model.eval())
        self._model.mark_forward_method("predict")

    @property
    def class_names(self) -> list[str]:
        """Name of each label 1..K."""
        return [category["name"] for category in self.categories]

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is a sequence of str too
        self, image: Picture, *, threshold: float = ..., classes: Iterable[str] | None = ..., batch_size: int = ...
    ) -> Result: ...
    @overload
    def predict(
        self,
        image: Sequence[Picture],
        *,
        threshold: float = ...,
        classes: Iterable[str] | None = ...,
        batch_size: int = ...,
    ) -> list[Result]: ...
    def predict(
        self,
        image: Picture | Sequence[Picture],
        *,
        threshold: float = 0.5,
        classes: Iterable[str] | None = None,
        batch_size: int = 4,
    ) -> Result | list[Result]:
        """Find instances in a picture, or in each of a list of pictures.

        Args:
            image: A file, a PIL image, or uint8 [H, W, 3] in RGB; files and PIL images are turned upright. Or a list.
            threshold: Instances with a lower score are left out; the model has its own `score_thresh` below it.
            classes: Names of those to find; None for all.
            batch_size: Pictures that the network sees at a time.

        Returns:
            What was found, for a list of pictures a list in their order.

        Raises:
            UserError: A file cannot be read, the model knows no such class, or a value is out of range.
            TypeError: An array is not uint8 [H, W, 3].
        """
        if not 0 <= threshold <= 1:
            raise UserError(f"threshold={threshold}: must be between 0 and 1")
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}: must be at least 1")
        labels = self.labels_of(classes)
        if isinstance(image, np.ndarray | Image.Image | str | Path):
            return self._predict([to_array(image)], threshold, labels)[0]
        return [
            result
            for start in range(0, len(image), batch_size)
            for result in self._predict([to_array(one) for one in image[start : start + batch_size]], threshold, labels)
        ]

    def labels_of(self, classes: Iterable[str] | None) -> list[int]:
        """Labels of these class names, of all where it is None.

        Raises:
            UserError: The model knows no such class.
        """
        names = self.class_names
        if classes is None:
            return list(range(1, len(names) + 1))
        chosen = [classes] if isinstance(classes, str) else list(classes)
        unknown = [name for name in chosen if name not in names]
        if unknown or not chosen:
            known = ", ".join(names)
            raise UserError(f"classes: the model knows {known}; not {', '.join(map(str, unknown)) or 'an empty list'}")
        return [label for label, name in enumerate(names, start=1) if name in chosen]

    @torch.inference_mode()
    def _predict(self, images: list[np.ndarray], threshold: float, labels: list[int]) -> list[Result]:
        tensors = [to_tensor(image).contiguous().to(self.device) for image in images]
        detections = self._model.predict(tensors)
        return [
            self._result(detection, image, threshold, labels)
            for detection, image in zip(detections, images, strict=True)
        ]

    def _result(self, found: dict[str, Tensor], image: np.ndarray, threshold: float, labels: list[int]) -> Result:
        wanted = torch.isin(found["labels"], torch.tensor(labels, device=self.device))
        kept = {name: values[wanted & (found["scores"] >= threshold)].cpu() for name, values in found.items()}
        size = (image.shape[0], image.shape[1])
        rles = masks_to_rle(kept["mask_probs"], kept["boxes"], size=size, paste=self.paste)
        categories = [self.categories[label - 1] for label in kept["labels"].tolist()]
        return Result(
            size=size,
            boxes=kept["boxes"].float().numpy(),
            scores=kept["scores"].float().numpy(),
            labels=kept["labels"].numpy(),
            names=[category["name"] for category in categories],
            category_ids=[category["id"] for category in categories],
            rles=[{"size": rle["size"], "counts": rle["counts"].decode()} for rle in rles],
        )


def load(
    path: str | Path,
    *,
    accelerator: str = "auto",
    devices: int | str | list[int] = 1,
    precision: str | None = None,
    overrides: Sequence[str] = (),
) -> Predictor:
    """Load a trained model from any file that `evaluate.py ckpt=` takes.

    Args:
        path: The checkpoint.
        accelerator: As of Lightning's Trainer, such as "cpu" or "gpu".
        devices: Likewise, but one of them; [1] is the second GPU.
        precision: As of Lightning's Trainer; None for that of the training.
        overrides: As on the command line, such as "model.score_thresh=0.01" or "tta=flip".

    Raises:
        UserError: The file holds no model, or an argument is not understood.
    """
    chosen = [] if precision is None else [f"trainer.precision={precision}"]
    devices = str(devices).replace(" ", "")
    settings = [f"trainer.accelerator={accelerator}", f"trainer.devices={devices}", *chosen]
    return build_predictor(compose_config("predict", [f"ckpt={path}", *settings, *overrides]))


def build_predictor(cfg: Config) -> Predictor:
    """The predictor of a config like `conf/predict.yaml`, with the model of its checkpoint `ckpt`.

    Raises:
        UserError: The checkpoint does not fit the model, or there is no such device.
    """
    model, categories = load_model(cfg.ckpt, plain(cfg.model), trust=cfg.trust)
    augmented = build(cfg.tta, key="tta", trust=cfg.trust, model=model)
    return Predictor(model=augmented or model, categories=categories, **build(cfg.trainer, key="trainer"))


def to_array(image: Picture) -> np.ndarray:
    """A picture as uint8 [H, W, 3], RGB.

    Raises:
        UserError: The file cannot be read.
        TypeError: An array is not uint8 [H, W, 3].
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise TypeError(f"image should be uint8 [H, W, 3] in RGB, is {image.dtype} {list(image.shape)}")
        return np.require(image, requirements=["C", "W"])  # torch takes no reversed axes and warns of read-only arrays
    if isinstance(image, Image.Image):
        return to_rgb_array(image)
    try:
        return read_image(Path(image).expanduser())
    except UserError as error:
        raise UserError(str(error).removesuffix(f"; {REMEDY}")) from None

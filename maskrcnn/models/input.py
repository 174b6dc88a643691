"""From decoded pictures to what the network sees.

images  list of B tensors [3, h, w], RGB, uint8 or float in 0..1, as they come from their files
pixels  float [B, 3, H, W], normalised, exactly 0 outside the pictures
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn.ops.image_batch import ImageBatch, clear_padding, pad_images, resized_shape
from maskrcnn.ops.pil_resize import pil_resize

RESIZE_RULES = ("torchvision", "pil", "opencv")


class ModelInput(nn.Module):
    """The picture that a model expects; weights from elsewhere differ in it.

    Args:
        min_size: Short side in pixels at evaluation and prediction.
        max_size: The long side never passes this.
        resize: `torchvision`: bilinear on floats without antialiasing; `pil`: on whole levels with antialiasing, as
            PIL (and with it detectron2) does; `opencv`: rounded to whole levels, without antialiasing.
        channel_order: `rgb` or `bgr`.
        mean, std: Per channel in `channel_order`, for pixels in 0..1.
        size_divisor: Padded sides are multiples of this.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        min_size: int = 640,
        max_size: int = 768,
        resize: Literal["torchvision", "pil", "opencv"] = "torchvision",
        channel_order: Literal["rgb", "bgr"] = "rgb",
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        size_divisor: int = 32,
    ) -> None:
        super().__init__()
        if not 1 <= min_size <= max_size:
            raise ValueError(
                f"min_size and max_size must satisfy 1 <= min_size <= max_size, got {min_size}, {max_size}"
            )
        if resize not in RESIZE_RULES:
            raise ValueError(f"resize must be one of {', '.join(RESIZE_RULES)}, got {resize!r}")
        if channel_order not in ("rgb", "bgr"):
            raise ValueError(f"channel_order must be rgb or bgr, got {channel_order!r}")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean and std must have three numbers, std above 0, got {list(mean)}, {list(std)}")
        if size_divisor < 1:
            raise ValueError(f"size_divisor must be at least 1, got {size_divisor}")
        self.min_size = min_size
        self.max_size = max_size
        self.resize = resize
        self.channel_order = channel_order
        self.size_divisor = size_divisor
        self.register_buffer("mean", torch.tensor(list(mean)).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(3, 1, 1), persistent=False)

    def forward(self, batch: ImageBatch) -> ImageBatch:
        """Normalise padded pictures, then set the padding to exactly 0."""
        return clear_padding(ImageBatch(self._normalise(batch.pixels), batch.sizes))

    def prepare(self, images: list[Tensor], *, scale: float = 1.0) -> ImageBatch:
        """Normalise pictures of any size, resize them and pad them to one batch.

        Args:
            images: Each [3, h, w].
            scale: Factor of `min_size` and `max_size`.
        """
        batch = pad_images([self._prepare(image, scale) for image in images], divisor=self.size_divisor)
        if images[0].stride(0) == 1:  # resizing lost the layout of decoded pictures, which convolutions are fast with
            batch = batch._replace(pixels=batch.pixels.contiguous(memory_format=torch.channels_last))
        return batch

    def _prepare(self, image: Tensor, scale: float) -> Tensor:
        size = (image.shape[-2], image.shape[-1])
        min_size, max_size = self.min_size * scale, self.max_size * scale
        if self.resize == "torchvision":
            shape = resized_shape(size, min_size=min_size, max_size=max_size)
            return F.interpolate(self._normalise(image)[None], size=shape, mode="bilinear", align_corners=False)[0]
        shape = resized_shape(size, min_size=min_size, max_size=max_size, round_half_up=True)
        levels = (image * 255).round() if image.is_floating_point() else image
        if self.resize == "pil":
            return self._normalise(pil_resize(levels, shape))
        levels = F.interpolate(levels.float()[None], size=shape, mode="bilinear", align_corners=False)[0]
        return self._normalise(levels.round().clamp(0, 255) / 255)

    def _normalise(self, pixels: Tensor) -> Tensor:
        if not pixels.is_floating_point():
            pixels = pixels.float() / 255
        if self.channel_order == "bgr":
            pixels = pixels.flip(-3)
        return (pixels - self.mean) / self.std

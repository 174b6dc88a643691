"""From decoded pictures to what the network sees.

images  list of B tensors [3, h, w], RGB, uint8 or float in 0..1, as they come from their files
pixels  float [B, 3, H, W], normalised, exactly 0 outside the pictures
boxes   float [N, 4], x1 y1 x2 y2
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import clip_boxes_to_image

from maskrcnn.ops.boxes import scale_boxes
from maskrcnn.ops.image_batch import ImageBatch, clear_padding, pad_images, resized_shape
from maskrcnn.ops.opencv_resize import opencv_resize
from maskrcnn.ops.pil_resize import pil_resize

RESIZE_RULES = ("torchvision", "pil", "opencv")


class ModelInput(nn.Module):
    """The picture that a model expects; weights from elsewhere differ in it.

    Args:
        min_size: Short side in pixels at evaluation and prediction.
        max_size: The long side never passes this.
        resize: `torchvision`: bilinear on floats without antialiasing; `pil`: on whole levels with antialiasing, as
            PIL (and with it detectron2) does; `opencv`: on whole levels without antialiasing, as OpenCV does.
        channel_order: `rgb` or `bgr`.
        mean, std: Per channel in `channel_order`, for pixels in 0..1.
        size_divisor: Padded sides are multiples of this.
        letterbox: RGB levels in 0..255, or None. At evaluation and prediction each picture is laid into the top left of
            a square of this colour, and the whole square counts as picture: boxes may reach beyond the picture in it,
            and are cut only when they are back in the file's pixels, by one factor for both sides.
    """

    mean: Tensor
    std: Tensor
    letterbox: Tensor | None

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
        letterbox: Sequence[int] | None = None,
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
        if letterbox is not None and (len(letterbox) != 3 or not all(level in range(256) for level in letterbox)):
            raise ValueError(f"letterbox must be three whole levels in 0..255 or null, got {list(letterbox)}")
        self.min_size = min_size
        self.max_size = max_size
        self.resize = resize
        self.channel_order = channel_order
        self.size_divisor = size_divisor
        self.register_buffer("mean", torch.tensor(list(mean)).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(3, 1, 1), persistent=False)
        colour = None if letterbox is None else torch.tensor(list(letterbox), dtype=torch.uint8).view(3, 1, 1)
        self.register_buffer("letterbox", colour, persistent=False)

    def forward(self, batch: ImageBatch) -> ImageBatch:
        """Normalise padded pictures, then set the padding to exactly 0."""
        return clear_padding(ImageBatch(self._normalise(batch.pixels), batch.sizes))

    def prepare(self, images: list[Tensor], *, scale: float = 1.0) -> ImageBatch:
        """Normalise pictures of any size, resize them and pad them to one batch.

        Args:
            images: Each [3, h, w].
            scale: Factor of `min_size` and `max_size`.
        """
        resized = [self._resize(image, scale) for image in images]
        if self.letterbox is not None:
            resized = [self._lay_on_square(image, self.letterbox) for image in resized]
        batch = pad_images(resized, divisor=self.size_divisor)
        if images[0].stride(0) == 1:  # resizing lost the layout of decoded pictures, which convolutions are fast with
            batch = batch._replace(pixels=batch.pixels.contiguous(memory_format=torch.channels_last))
        return batch

    def resized_shape(self, image: Tensor, *, scale: float = 1.0) -> tuple[int, int]:
        """(height, width) that `prepare` gives a picture [3, h, w] itself, without a square around it."""
        size = (image.shape[-2], image.shape[-1])
        return resized_shape(size, min_size=self.min_size * scale, max_size=self.max_size * scale, rule=self.resize)

    def restore(self, boxes: Tensor, image: Tensor) -> Tensor:
        """Boxes [N, 4] on what `prepare` makes of a picture [3, h, w], in that picture's own pixels."""
        size = (image.shape[-2], image.shape[-1])
        if self.letterbox is None:
            return scale_boxes(boxes, old_size=self.resized_shape(image), new_size=size)
        factor = min(self.min_size / min(size), self.max_size / max(size))
        return clip_boxes_to_image(boxes / factor, size)

    def _resize(self, image: Tensor, scale: float) -> Tensor:
        shape = self.resized_shape(image, scale=scale)
        if self.resize == "torchvision":
            return F.interpolate(self._normalise(image)[None], size=shape, mode="bilinear", align_corners=False)[0]
        levels = (image * 255).round() if image.is_floating_point() else image
        return self._normalise((pil_resize if self.resize == "pil" else opencv_resize)(levels, shape))

    def _lay_on_square(self, image: Tensor, colour: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        side = -(-max(height, width) // self.size_divisor) * self.size_divisor
        square = self._normalise(colour).repeat(1, side, side)
        square[:, :height, :width] = image
        return square

    def _normalise(self, pixels: Tensor) -> Tensor:
        if not pixels.is_floating_point():
            pixels = pixels.float() / 255
        if self.channel_order == "bgr":
            pixels = pixels.flip(-3)
        return (pixels - self.mean) / self.std

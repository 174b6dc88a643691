"""Pictures of different sizes in one tensor.

pixels  [B, 3, H, W]; picture i covers the top left `sizes[i]`, the rest is padding
sizes   B pairs (height, width) in pixels
"""

from typing import NamedTuple

from torch import Tensor


class ImageBatch(NamedTuple):
    """Padded pictures [B, 3, H, W] and the (height, width) that each of them really covers."""

    pixels: Tensor
    sizes: list[tuple[int, int]]


def pad_images(images: list[Tensor], *, divisor: int) -> ImageBatch:
    """Pad pictures [3, h, w] at the right and bottom with zeros to one size, a multiple of `divisor`.

    Pictures whose channels lie together in memory stay so: torch calls it channels_last.
    """
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    height, width = (-(-max(side) // divisor) * divisor for side in zip(*sizes, strict=True))
    if images[0].stride(0) == 1:
        pixels = images[0].new_empty((len(images), height, width, 3)).permute(0, 3, 1, 2)
    else:
        pixels = images[0].new_empty((len(images), 3, height, width))
    for canvas, image, (h, w) in zip(pixels, images, sizes, strict=True):
        canvas[:, :h, :w] = image
    return clear_padding(ImageBatch(pixels, sizes))


def clear_padding(batch: ImageBatch) -> ImageBatch:
    """Set everything outside the pictures to exactly 0, in place."""
    for canvas, (h, w) in zip(batch.pixels, batch.sizes, strict=True):
        canvas[:, h:] = 0
        canvas[:, :, w:] = 0
    return batch


def resized_shape(
    shape: tuple[int, int], *, min_size: float, max_size: float, rule: str = "torchvision"
) -> tuple[int, int]:
    """(height, width) with the short side at `min_size`, or less where the long side would pass `max_size`.

    By `rule`, sides are cut to whole pixels (`torchvision`), rounded with halves up (`pil`, for detectron2) or rounded
    with halves to even (`opencv`, for those who call it with Python's `round`).
    """
    if rule == "pil":
        # In detectron2's two steps: with one scale a half may fall to the other side.
        short = min(shape)
        sides = [float(min_size) if side == short else min_size / short * side for side in shape]
        shrink = min(max_size / max(sides), 1.0)
        height, width = (int(side * shrink + 0.5) for side in sides)
    else:
        scale = min(min_size / min(shape), max_size / max(shape))
        whole = round if rule == "opencv" else int
        height, width = (whole(side * scale) for side in shape)
    return max(height, 1), max(width, 1)

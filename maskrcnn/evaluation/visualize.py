"""Pictures of instances: masks, boxes and labels drawn over an image."""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
import torch
from faster_coco_eval import mask as mask_utils
from PIL import Image, ImageDraw, ImageFont
from torchvision.utils import draw_bounding_boxes

from maskrcnn.data.sample import Sample
from maskrcnn.evaluation.regions import to_rle
from maskrcnn.ops.masks import crop_rle

Color = tuple[int, int, int]
_Rectangle = tuple[int, int, int, int]  # left, top, right, bottom

_MIN_SIDE = 320  # px; labels are legible from here on
_MAX_SIDE = 8192  # px that a strip is enlarged to at most
_MASK_ALPHA = 0.45
_MARGIN = 3  # px around the text of a label
_SMALL = 0.75  # of the font, where a label finds no room in full size
_MIN_FONT = 11  # px
FONT = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"  # knows more letters than Pillow's own
_LONGEST_NAME = 24  # characters
_HIDDEN = 0.5  # share of a box that no label may cover
_GAP = 8  # px between pictures
_BACKGROUND: Color = (32, 32, 32)
_FOREGROUND: Color = (240, 240, 240)


def class_color(name: str) -> Color:
    """The RGB color of a class, the same in every run."""
    digest = zlib.crc32(name.encode())
    hue = digest % 360 / 360
    saturation, value = ((0.95, 1.0), (0.65, 1.0), (0.9, 0.8))[digest // 360 % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_instances(
    image: np.ndarray,
    *,
    boxes: np.ndarray,
    masks: Sequence[dict[str, Any]],
    names: Sequence[str],
    scores: Sequence[float] | None = None,
) -> np.ndarray:
    """Draws instances in the colors of their classes.

    Args:
        image: uint8 [H, W, 3], RGB.
        boxes: [N, 4], x1, y1, x2, y2 in pixels of the image.
        masks: N compressed RLEs of size [H, W].
        names: N class names.
        scores: N scores in [0, 1] for the labels, or None for labels without one.

    Returns:
        uint8 [H', W', 3], a new picture. It is k times as large as the image, where k is the smallest integer
        that makes the short side at least 320 px, or less for a strip.
    """
    scale = max(1, min(-(-_MIN_SIDE // min(image.shape[:2])), _MAX_SIDE // max(image.shape[:2])))
    canvas = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    if not names:
        return canvas
    unit = min(canvas.shape[:2])
    line = max(2, unit // 240)
    colors = [class_color(name) for name in names]
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4) * scale

    canvas = _draw_masks(canvas, masks, colors, scale, line)
    drawn = _to_tensor(canvas)
    rims = [_contrast(color) for color in colors]
    for shades, width in ((rims, line + 2 * _rim(line)), (colors, line)):
        rim = (width - line) // 2  # lines grow inwards
        outer = torch.from_numpy(corners + np.array([-rim, -rim, rim, rim]))
        drawn = draw_bounding_boxes(drawn, outer, colors=list(shades), width=width)
    labels = [name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…" for name in names]
    if scores is not None:
        labels = [f"{label} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
    return _draw_labels(_to_array(drawn), corners, labels, colors, font_size=max(14, unit // 30))


def side_by_side(
    left: np.ndarray, right: np.ndarray, *, titles: tuple[str, str] = ("prediction", "ground truth")
) -> np.ndarray:
    """Puts two uint8 [H, W, 3] pictures side by side, each below its title; pads the lower one."""
    font = ImageFont.truetype(FONT, 18)
    strip = 30
    height = max(left.shape[0], right.shape[0]) + strip
    width = left.shape[1] + _GAP + right.shape[1]
    sheet = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for picture, title, x in ((left, titles[0], 0), (right, titles[1], left.shape[1] + _GAP)):
        sheet.paste(Image.fromarray(picture), (x, strip))
        draw.text((x + picture.shape[1] // 2, strip // 2), title, fill=_FOREGROUND, font=font, anchor="mm")
    return np.array(sheet)


def draw_results(sample: Sample, results: list[dict[str, Any]], categories: list[dict[str, Any]]) -> np.ndarray:
    """Draws what was found in a picture, see `draw_instances`.

    Args:
        sample: The picture.
        results: COCO results of it; those without a segmentation are drawn as their box.
        categories: {"id", "name"} of each label 1..K.
    """
    name_of = {category["id"]: category["name"] for category in categories}
    x, y, width, height = np.array([_box(result) for result in results], dtype=float).reshape(-1, 4).T
    return draw_instances(
        sample.image,
        boxes=np.stack((x, y, x + width, y + height), axis=1),
        masks=[to_rle(result, sample.size) for result in results],
        names=[name_of[result["category_id"]] for result in results],
        scores=[result["score"] for result in results],
    )


def draw_truth(sample: Sample, categories: list[dict[str, Any]]) -> np.ndarray:
    """Draws what is annotated in a picture, see `draw_instances`.

    Args:
        sample: The picture.
        categories: {"id", "name"} of each label 1..K.
    """
    return draw_instances(
        sample.image,
        boxes=np.array([outline.box for outline in sample.outlines]),
        masks=[outline.rle(sample.size) for outline in sample.outlines],
        names=[categories[label - 1]["name"] for label in sample.labels],
    )


def _box(result: dict[str, Any]) -> Sequence[float]:
    """x, y, width, height of a COCO result, that of its mask if it has no other."""
    return result["bbox"] if "bbox" in result else mask_utils.toBbox(result["segmentation"]).tolist()


def _to_tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)


def _to_array(picture: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(picture.permute(1, 2, 0).numpy())


def _draw_masks(
    canvas: np.ndarray, rles: Sequence[dict[str, Any]], colors: list[Color], scale: int, line: int
) -> np.ndarray:
    """Tints the masks and draws their contours; of two that overlap the smaller is on top."""
    order = np.argsort([-int(mask_utils.area(rle)) for rle in rles], kind="stable")
    tint = canvas.copy()
    crops = []
    for i in order:
        mask, (left, top) = _crop(rles[i], scale)  # whole masks of thousands of instances would fill the memory
        tint[top : top + mask.shape[0], left : left + mask.shape[1]][mask > 0] = colors[i]
        crops.append((mask, (left, top), colors[i]))
    picture = cv2.addWeighted(canvas, 1 - _MASK_ALPHA, tint, _MASK_ALPHA, 0)
    for mask, corner, color in crops:
        contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=corner)
        thin = max(1, line // 2)
        if thin > 1:
            cv2.drawContours(picture, contours, -1, _contrast(color), thin + 2 * _rim(thin), cv2.LINE_AA)
        cv2.drawContours(picture, contours, -1, color, thin, cv2.LINE_AA)
    return picture


def _rim(line: int) -> int:
    """Width of the edge on either side of a line, which would be lost on a background of its own color."""
    return max(1, line // 3)


def _contrast(color: Color) -> Color:
    """Black for a light color, white for a dark one."""
    return (0, 0, 0) if np.dot(color, (0.299, 0.587, 0.114)) > 128 else (255, 255, 255)


def _crop(rle: dict[str, Any], scale: int) -> tuple[np.ndarray, tuple[int, int]]:
    """A mask cut to its extent and enlarged, and the corner of that."""
    mask, (left, top) = crop_rle(rle)
    return mask.repeat(scale, axis=0).repeat(scale, axis=1), (left * scale, top * scale)


def _draw_labels(
    picture: np.ndarray, corners: np.ndarray, labels: list[str], colors: list[Color], font_size: int
) -> np.ndarray:
    """Writes the labels on plates in their colors, where these hide neither each other nor an instance.

    Where instances are so small and close that not each label has such a place, the first ones have theirs.
    """
    sizes = (font_size, max(_MIN_FONT, round(font_size * _SMALL)))
    fonts = [(ImageFont.truetype(FONT, size), size) for size in sizes]
    sheet = Image.fromarray(picture)
    draw = ImageDraw.Draw(sheet)
    plates, count = np.zeros((len(labels), 4)), 0
    for box, label, color in zip(corners, labels, colors, strict=True):
        for font, size in fonts:
            width = round(draw.textlength(label, font=font)) + 2 * _MARGIN
            places = _places(box, width, size + 2 * _MARGIN, sheet.size)
            hidden = (_covered(plates[:count], places) > 0).any(axis=1) | (_covered(corners, places) > _HIDDEN).any(
                axis=1
            )
            if not hidden.all():
                plate = places[int(hidden.argmin())]
                plates[count], count = plate, count + 1
                draw.rectangle(plate, fill=color)
                text = (plate[0] + _MARGIN, (plate[1] + plate[3]) // 2)
                draw.text(text, label, fill=_contrast(color), font=font, anchor="lm")
                break
    return np.array(sheet)


def _places(box: np.ndarray, width: int, height: int, size: tuple[int, int]) -> list[_Rectangle]:
    """Where a plate can go, best first, in a picture of (width, height): above its box, inside, below, beside it."""
    x1, y1, x2, y2 = (round(value) for value in box.tolist())
    corners = [(x, y) for y in (y1 - height, y1, y2, y2 - height) for x in (x1, x2 - width)]
    corners += [(x, y) for x in (x2, x1 - width) for y in (y1, y2 - height)]
    places = []
    for x, y in corners:
        left, top = max(0, min(x, size[0] - width)), max(0, min(y, size[1] - height))
        places.append((left, top, left + width, top + height))
    return places


def _covered(boxes: np.ndarray, plates: Sequence[_Rectangle]) -> np.ndarray:
    """The share of each of N boxes [N, 4] that each of P plates covers, [P, N]."""
    left, top, right, bottom = np.array(plates, dtype=float).T[..., None]
    x1, y1, x2, y2 = boxes.T
    width, height = np.minimum(x2, right) - np.maximum(x1, left), np.minimum(y2, bottom) - np.maximum(y1, top)
    return width.clip(0) * height.clip(0) / ((x2 - x1) * (y2 - y1)).clip(1)

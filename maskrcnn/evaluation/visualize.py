"""Pictures of instances: masks, boxes and labels drawn over an image."""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from faster_coco_eval import mask as mask_utils
from faster_coco_eval import mask_api_new_cpp
from PIL import Image, ImageDraw, ImageFont
from torchvision.utils import draw_bounding_boxes

from maskrcnn.data.sample import Sample
from maskrcnn.evaluation.regions import to_rle

Color = tuple[int, int, int]
_Rectangle = tuple[int, int, int, int]  # left, top, right, bottom

_MIN_SIDE = 320  # px; labels are legible from here on
_MASK_ALPHA = 0.45
_MARGIN = 3  # px around the text of a label
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
        that makes the short side at least 320 px.
    """
    scale = -(-_MIN_SIDE // min(image.shape[:2]))
    canvas = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    if not names:
        return canvas
    unit = min(canvas.shape[:2])
    line = max(2, unit // 240)
    colors = [class_color(name) for name in names]
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4) * scale

    canvas = _draw_masks(canvas, masks, colors, scale, line)
    drawn = draw_bounding_boxes(_to_tensor(canvas), torch.from_numpy(corners), colors=list(colors), width=line)
    labels = list(names)
    if scores is not None:
        labels = [f"{name} {score:.2f}" for name, score in zip(names, scores, strict=True)]
    return _draw_labels(_to_array(drawn), corners, labels, colors, font_size=max(14, unit // 30))


def side_by_side(
    left: np.ndarray, right: np.ndarray, *, titles: tuple[str, str] = ("prediction", "ground truth")
) -> np.ndarray:
    """Puts two uint8 [H, W, 3] pictures side by side, each below its title; pads the lower one."""
    font = ImageFont.load_default(size=18)
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
        cv2.drawContours(picture, contours, -1, color, max(1, line // 2), cv2.LINE_AA)
    return picture


def _crop(rle: dict[str, Any], scale: int) -> tuple[np.ndarray, tuple[int, int]]:
    """A mask cut to its extent and enlarged, and the corner of that."""
    left, top, width, height = (int(value) for value in mask_utils.toBbox(rle))
    rows = rle["size"][0]
    ends = np.cumsum(mask_api_new_cpp.toUncompressedRLE([rle])[0]["counts"])  # down the columns
    runs = np.diff(ends.clip(left * rows, (left + width) * rows), prepend=left * rows)
    mask = (np.arange(len(runs)) % 2).astype(np.uint8).repeat(runs).reshape(width, rows).T[top : top + height]
    return mask.repeat(scale, axis=0).repeat(scale, axis=1), (left * scale, top * scale)


def _draw_labels(
    picture: np.ndarray, corners: np.ndarray, labels: list[str], colors: list[Color], font_size: int
) -> np.ndarray:
    """Writes the labels on plates in their colors, clear of each other where there is room."""
    font = ImageFont.load_default(size=font_size)
    sheet = Image.fromarray(picture)
    draw = ImageDraw.Draw(sheet)
    plates = np.zeros((len(labels), 4), dtype=int)
    for i, (box, label) in enumerate(zip(corners, labels, strict=True)):
        width = round(draw.textlength(label, font=font)) + 2 * _MARGIN
        plates[i] = _place(box, width, font_size + 2 * _MARGIN, sheet.size, plates[:i])
    for plate, label, color in reversed(list(zip(plates.tolist(), labels, colors, strict=True))):
        draw.rectangle(plate, fill=color)
        ink = "black" if np.dot(color, (0.299, 0.587, 0.114)) > 128 else "white"
        draw.text((plate[0] + _MARGIN, (plate[1] + plate[3]) // 2), label, fill=ink, font=font, anchor="lm")
    return np.array(sheet)


def _place(box: np.ndarray, width: int, height: int, size: tuple[int, int], taken: np.ndarray) -> _Rectangle:
    """The plate of a label: above its box, else inside, else below, within a picture of (width, height)."""
    x1, y1, x2, y2 = (round(value) for value in box.tolist())
    plates = []
    for y in (y1 - height, y1, y2, y2 - height):
        for x in (x1, x2 - width):
            left, top = max(0, min(x, size[0] - width)), max(0, min(y, size[1] - height))
            plates.append((left, top, left + width, top + height))
    return next((plate for plate in plates if not _overlaps(plate, taken)), plates[0])


def _overlaps(plate: _Rectangle, others: np.ndarray) -> bool:
    """Whether a rectangle overlaps one of others [N, 4]."""
    left, top, right, bottom = plate
    return bool(((left < others[:, 2]) & (others[:, 0] < right) & (top < others[:, 3]) & (others[:, 1] < bottom)).any())

"""Pictures with their annotations, and beside each what augmentation makes of it."""

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskrcnn.check_data.splits import CheckedSplit, printable
from maskrcnn.data.datamodule import DetectionDataModule
from maskrcnn.data.outline import Outline, shift
from maskrcnn.data.sample import Sample
from maskrcnn.data.split import Split
from maskrcnn.evaluation.visualize import FONT, class_color, draw_instances

_CELL = (320, 428)  # height, width of a picture on the sheet
_GAP = 10
_TITLE = 26  # px, the line above a picture
_BACKGROUND = (32, 32, 32)
_FOREGROUND = (235, 235, 235)
_LABELLED = 8  # instances with a label in a picture; more would hide it
_LONGEST_NAME = 30
_DRAWS = 2


def draw_contact_sheet(data: DetectionDataModule, splits: list[CheckedSplit], *, count: int) -> np.ndarray | None:
    """Draw some pictures of the training split, uint8 [H, W, 3], each in a row: as it is, and two draws of it.

    The pictures are drawn with `data.seed`, spread over the set; the one with most instances is among them. The
    draws are those of the first two epochs.

    Args:
        data: Holds the augmentation.
        splits: As checked; pictures that cannot be read are left out.
        count: How many pictures.

    Returns:
        None if there is nothing to draw.
    """
    checked = next((split for split in splits if split.name.startswith("train")), None)
    if checked is None or count < 1:
        return None
    source = checked.content.subset(np.flatnonzero(checked.used & checked.whole))
    if not len(source):
        return None
    rows = [_row(data, source, index) for index in _choose(source, count, seed=data.seed)]
    return np.concatenate(rows)


def _choose(source: Split, count: int, *, seed: int) -> list[int]:
    """One picture from each of `count` equal parts of the set, in the busiest part the one with most instances."""
    rng = np.random.default_rng(seed)
    busiest = int(source.instances_per_image.argmax())
    limits = np.linspace(0, len(source), min(count, len(source)) + 1).astype(int)
    chosen = []
    for low, high in zip(limits[:-1].tolist(), limits[1:].tolist(), strict=True):
        index = int(rng.integers(low, high))
        chosen.append(busiest if low <= busiest < high else index)
    return chosen


def _row(data: DetectionDataModule, source: Split, index: int) -> np.ndarray:
    names = [printable(category["name"])[:_LONGEST_NAME] for category in source.categories]
    title = printable(source.dataset.annotations.file_name(int(source.positions[index])))
    cells = [_cell(source[index], names, title)]
    for epoch in range(_DRAWS):
        rng = np.random.default_rng([data.seed, epoch, index])
        cells.append(_cell(data.transform(source, index, rng), names, f"draw {epoch + 1}"))
    return np.concatenate(cells, axis=1)


def _cell(sample: Sample, names: list[str], title: str) -> np.ndarray:
    """A picture, fitted into its place, with its instances and a title."""
    height, width = sample.size
    scale = min(_CELL[0] / height, _CELL[1] / width)
    fitted = max(round(height * scale), 1), max(round(width * scale), 1)
    top, left = (_CELL[0] - fitted[0]) // 2, (_CELL[1] - fitted[1]) // 2
    canvas = np.full((*_CELL, 3), _BACKGROUND, dtype=np.uint8)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    canvas[top : top + fitted[0], left : left + fitted[1]] = cv2.resize(sample.image, fitted[::-1], interpolation=how)
    place = shift(left, top) @ np.diag([fitted[1] / width, fitted[0] / height, 1.0])

    outlines = sorted(zip(sample.outlines, sample.labels, strict=True), key=lambda instance: -instance[0].area)
    placed = [(outline.transform(place), names[label - 1]) for outline, label in outlines]
    for outline, name in placed[_LABELLED:]:
        _trace(canvas, outline, name)
    largest = placed[:_LABELLED]
    drawn = draw_instances(
        canvas,
        boxes=np.array([outline.box for outline, _ in largest]),
        masks=[outline.rle(_CELL) for outline, _ in largest],
        names=[name for _, name in largest],
    )
    return _titled(drawn, f"{title}, {len(placed):,} instance{'s' * (len(placed) != 1)}")


def _trace(canvas: np.ndarray, outline: Outline, name: str) -> None:
    covered = outline.raster(outline.region).astype(np.uint8)
    corner = outline.region[:2].tolist()
    contours, _ = cv2.findContours(covered, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=corner)
    cv2.drawContours(canvas, contours, -1, class_color(name), 1, cv2.LINE_AA)


def _titled(picture: np.ndarray, title: str) -> np.ndarray:
    font = ImageFont.truetype(str(FONT), size=13)
    sheet = Image.new("RGB", (_CELL[1] + _GAP, _CELL[0] + _TITLE + _GAP), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    while draw.textlength(title, font=font) > _CELL[1] and len(title) > 1:
        title = f"…{title[2:]}"  # the end of a file name tells more
    draw.text((_GAP // 2 + _CELL[1] // 2, _TITLE // 2 + 2), title, fill=_FOREGROUND, font=font, anchor="mm")
    sheet.paste(Image.fromarray(picture), (_GAP // 2, _TITLE))
    return np.array(sheet)

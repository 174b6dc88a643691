"""PASCAL VOC 2007 and 2012 as downloaded: the instances of a picture are the colours of a palette PNG.

``VOCdevkit/VOC2012`` holds, of picture <name>: ``JPEGImages/<name>.jpg``; ``SegmentationObject/<name>.png``, whose
pixels number the instances 1, 2, ...; ``SegmentationClass/<name>.png``, whose pixels number the classes; and
``Annotations/<name>.xml``, whose i-th object is instance i. Pixels of 255 are void: they border the objects, or
nobody could say what they show.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image, UnidentifiedImageError
from pycocotools import mask as coco_mask

from maskrcnn.data.annotations import Annotations, to_annotations
from maskrcnn.data.dataset import InstanceDataset
from maskrcnn.data.entries import Entries, Problem
from maskrcnn.errors import UserError

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

_VOID = 255
_LEVELS = 256


class VocDataset(InstanceDataset):
    """A list of pictures (``ImageSets/Segmentation/*.txt``) and the folders beside that of its pictures.

    Images are numbered 1, 2, ... in the order of the list, classes 1 to 20.
    """

    def read_annotations(self) -> tuple[Annotations, list[Problem]]:
        """Read the list and the files of each picture in it.

        Returns:
            What could be read, and one problem for each file that could not.

        Raises:
            UserError: The list or a folder is missing, or the list is empty or no text.
        """
        names = self._names()
        root = self.images.parent
        for folder in ("SegmentationObject", "SegmentationClass"):
            if not (root / folder).is_dir():
                raise UserError(f"{root / folder}: no such folder; data.root must be a VOC year, as VOCdevkit/VOC2012")
        entries = Entries(self.source)
        for number, name in enumerate(CLASSES, start=1):
            entries.add_category({"id": number, "name": name})
        with ThreadPoolExecutor(max_workers=8) as pool:
            for image_id, picture in enumerate(pool.map(partial(_read_picture, root), names), start=1):
                if isinstance(picture, Problem):
                    entries.problems.append(picture)
                    continue
                entries.add_image(picture.image | {"id": image_id})
                for annotation in picture.annotations:
                    entries.add_annotation(annotation | {"image_id": image_id})
        return to_annotations(entries, annotated=True)

    def _names(self) -> list[str]:
        try:
            lines = self.source.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            keys = "data.root, data.train_annotations, data.val_annotations, data.test_annotations"
            raise UserError(f"{self.source}: no list of pictures ({reason}); set {keys}") from None
        names = [line.strip() for line in lines if line.strip()]
        if not names:
            raise UserError(f"{self.source}: lists no pictures; it should have one name on each line")
        name, count = Counter(names).most_common(1)[0]
        if count > 1:
            raise UserError(f"{self.source}: lists {name} {count} times; keep one")
        return names


@dataclass(frozen=True)
class _Picture:
    """COCO-style entries of one picture, without its id."""

    image: dict[str, Any]
    annotations: list[dict[str, Any]]


class _FileError(Exception):
    """What is wrong with a file, in one line that starts with its name."""


def _read_picture(root: Path, name: str) -> _Picture | Problem:
    object_file, class_file = (root / folder / f"{name}.png" for folder in ("SegmentationObject", "SegmentationClass"))
    try:
        objects, classes = _read_numbers(object_file), _read_numbers(class_file)
        difficult = _read_difficult(root / "Annotations" / f"{name}.xml")
        if objects.shape != classes.shape:
            sizes = " x ".join(map(str, classes.shape[::-1])), " x ".join(map(str, objects.shape[::-1]))
            raise _FileError(f"{class_file}: is {sizes[0]} pixels, {object_file} is {sizes[1]}; download both anew")
        class_of = _majorities(objects, classes, class_file)
    except _FileError as error:
        return Problem(str(error))
    annotations = []
    numbers = list(class_of)
    columns = np.ascontiguousarray(objects.T)  # run lengths go down the columns
    equal = columns == np.array(numbers, dtype=np.uint8)[:, None, None]
    masks = coco_mask.encode(equal.view(np.uint8).transpose(2, 1, 0))
    boxes, areas = coco_mask.toBbox(masks), coco_mask.area(masks)
    for number, mask, box, area in zip(numbers, masks, boxes, areas, strict=True):
        annotations.append(
            {
                "category_id": class_of[number],
                "bbox": box.tolist(),
                "area": int(area),
                "segmentation": mask,
                "difficult": number in difficult,
            }
        )
    height, width = objects.shape
    image = {"file_name": f"{name}.jpg", "height": height, "width": width}
    void = objects == _VOID
    if void.any():
        image["void"] = coco_mask.encode(np.asfortranarray(void, dtype=np.uint8))
    return _Picture(image, annotations)


def _read_numbers(path: Path) -> np.ndarray:
    """Uint8 [H, W], the index of each pixel's colour.

    Raises:
        _FileError: There is no such file, or it is not a picture of colour indices.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L"):
                raise _FileError(
                    f"{path}: has pixels of mode {image.mode}, not indices of colours; use the file as downloaded"
                )
            return np.asarray(image)
    except FileNotFoundError:
        raise _FileError(f"{path}: no such file; add it or take the picture off the list") from None
    except UnidentifiedImageError:
        raise _FileError(f"{path}: not a picture file; download it anew") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _FileError(f"{path}: cannot be read ({error}); download it anew") from None


def _read_difficult(path: Path) -> set[int]:
    """The numbers of the difficult objects; none where there is no such file.

    Raises:
        _FileError: It is not an annotation file.
    """
    try:
        objects = ElementTree.parse(path).getroot().findall("object")
    except FileNotFoundError:
        return set()
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise _FileError(f"{path}: cannot be read ({error}); download it anew or remove it") from None
    flags = (entry.findtext("difficult", default="0").strip() for entry in objects)
    return {number for number, flag in enumerate(flags, start=1) if flag == "1"}


def _majorities(objects: np.ndarray, classes: np.ndarray, class_file: Path) -> dict[int, int]:
    """The class that most pixels of each instance have, by ascending number of the instance.

    Raises:
        _FileError: An instance has none of the 20 classes.
    """
    pairs = np.bincount(objects.ravel().astype(np.int64) * _LEVELS + classes.ravel(), minlength=_LEVELS**2)
    counts = pairs.reshape(_LEVELS, _LEVELS)[1:_VOID]  # [instance, class], without background and void
    votes = counts[:, 1:_VOID]
    class_of = {}
    for row in np.flatnonzero(counts.any(axis=1)).tolist():
        winner = int(votes[row].argmax()) + 1
        if not votes[row].any() or winner > len(CLASSES):
            what = f"class {winner}" if votes[row].any() else "no class"
            raise _FileError(f"{class_file}: instance {row + 1} has {what}, not 1 to {len(CLASSES)}")
        class_of[row + 1] = winner
    return class_of

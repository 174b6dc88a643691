"""The embedded data set: pictures of shapes, drawn from a seed into real files in the COCO 2017 layout.

``draw_shapes`` writes ``train2017/``, ``val2017/`` and ``annotations/instances_{train,val}2017.json``, so
everything that reads COCO reads this set by the same code.

Pictures. One side measures ``image_size``, the other between 0.75 and 1 times that. The background mixes
two colours by a gradient, smooth noise, stripes or checks, then uneven light and grain. Each shape has a
texture, light, rim and grain of its own, and the most distinct of four random colours; a colour says nothing
about the class. Every tenth picture is a PNG file, the others are JPEG files.

Classes. ``CLASSES``: ellipse, triangle, star (five points), ring (a real hole: what lies behind shows) and
cross, all turned by any angle and stretched. The category ids have gaps, as they have in COCO.

Sizes. The square root of a shape's area follows ``SIDE_RANGES``: with pictures of 160 pixels almost four in
ten instances are small in the COCO sense (less than 32 * 32 visible pixels) and one in seventeen is large
(more than 96 * 96). About 6 % of the pictures are empty, the others hold one to ten instances, four on
average. At least ``MIN_INSIDE_SHARE`` of a shape lies inside the picture.

Occlusion. A shape covers those drawn before it, and the annotation is the part that stays visible. Three in
ten shapes may cover others and are placed beside one, the rest keep clear of all: somewhat more than a third
of the instances end up partly hidden. A shape that would leave less than ``MIN_VISIBLE_SHARE``,
``MIN_VISIBLE_AREA`` or ``MIN_VISIBLE_SIDE`` of an earlier one, or only graze it, is placed elsewhere or left
out, so there are no slivers. Being cut off by the border does not count as hidden.

Annotations. A whole shape without a hole is a polygon (its exact outline, clipped to the picture; a pixel
(0, 0) covers [0, 1] x [0, 1]). The rest is run-length encoded: compressed where the annotation id is odd,
a plain list of counts where it is even. ``area`` and ``bbox`` measure what the segmentation rasterises to.

Frozen. A picture is a function of (seed, split, index, image_size) alone, so a smaller set is a prefix of a
larger one. Quoted results depend on every constant and on the order of the random draws here and in `shapes_paint`:
a change to either is a new data set, and raises ``VERSION``.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from maskrcnn.data.shapes_paint import Floats, blend_shape, distinct_colour, random_colour, surface

VERSION = "1"
CLASSES = {1: "ellipse", 3: "triangle", 4: "star", 7: "ring", 9: "cross"}
SPLITS = {"train": 0, "val": 1}

EMPTY_SHARE = 0.06
COUNT_WEIGHTS = (0.02, 0.04, 0.07, 0.11, 0.15, 0.17, 0.16, 0.12, 0.09, 0.07)  # of 1, 2, ... 10 shapes
# Square root of a shape's area as a share of image_size, and how often: small, medium, large.
SIDE_RANGES = ((0.105, 0.195), (0.205, 0.40), (0.66, 0.73))
SIDE_WEIGHTS = (0.26, 0.67, 0.07)
MIN_SIDE = 13.0
OVERLAP_SHARE = 0.30
MIN_INSIDE_SHARE = 0.8
MIN_VISIBLE_SHARE = 0.5
MIN_VISIBLE_AREA = 60
MIN_VISIBLE_SIDE = 10
MIN_HIDDEN_AREA = 20
PLACEMENT_TRIES = 25
SUPERSAMPLE = 8
JPEG_QUALITY = 92

Points = NDArray[np.float64]
Mask = NDArray[np.bool_]
Image = NDArray[np.uint8]


@dataclass
class Instance:
    """One drawn shape; ``visible`` is its mask less what later shapes cover."""

    category_id: int
    contours: list[Points]
    full_area: int
    visible: Mask

    @property
    def hidden(self) -> bool:
        """Whether a later shape covers a part of it."""
        return int(np.count_nonzero(self.visible)) < self.full_area


def draw_shapes(
    root: Path, *, train_images: int = 1280, val_images: int = 128, image_size: int = 160, seed: int = 0
) -> None:
    """Draw the set into ``root``; a complete set that is already there is left as it is, whatever its size.

    The folder appears in one step when the set is complete, so an interrupted or a concurrent call never
    leaves a part of one; a killed one may leave a hidden folder beside it. Since the arguments are not
    compared with those of a set that is already there, the folder's name should tell different sets apart.
    """
    counts = {"train": train_images, "val": val_images}
    for name, value, least in (
        ("train_images", train_images, 0),
        ("val_images", val_images, 0),
        ("image_size", image_size, 64),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}, but must be at least {least}")
    root = Path(root)
    if _is_complete(root):
        return
    if root.exists() and any(root.iterdir()):
        raise ValueError(f"root is {root}, which exists and is not a complete set of shapes")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as holder:
        unfinished = Path(holder) / "set"
        for split, count in counts.items():
            _write_split(unfinished, split, count=count, image_size=image_size, seed=seed)
        try:
            unfinished.rename(root)
        except OSError:
            if not _is_complete(root):  # otherwise another process was faster with the same set
                raise


class ShapesDrawing:
    """A drawing that is asked for in the config, with a folder name of its own.

    Args:
        train_images, val_images: How many pictures are drawn.
        image_size: Long side in pixels.
        seed: Of the drawing.
    """

    def __init__(
        self, *, train_images: int = 1280, val_images: int = 128, image_size: int = 160, seed: int = 0
    ) -> None:
        self._arguments = {
            "train_images": train_images,
            "val_images": val_images,
            "image_size": image_size,
            "seed": seed,
        }
        self.name = f"v{VERSION}-{train_images}-{val_images}-{image_size}px-seed{seed}"

    def __call__(self, root: Path) -> None:
        """Draw into ``root`` unless the set is there already."""
        draw_shapes(root, **self._arguments)


def draw_image(*, seed: int, split: str, index: int, image_size: int) -> tuple[Image, list[Instance]]:
    """Draw one picture (height x width x RGB) and return it with its instances, the rearmost first."""
    rng = np.random.default_rng([seed, SPLITS[split], index])
    sides = [image_size, round(image_size * rng.uniform(0.75, 1))]
    rng.shuffle(sides)
    height, width = sides
    palette = [random_colour(rng, saturation=(0.05, 0.6), value=(0.2, 0.95))]
    palette.append(np.clip(palette[0] + rng.uniform(-70, 70, 3), 0, 255).astype(np.float32))
    picture = surface(rng, height, width, *palette)
    instances: list[Instance] = []
    for side in _sides(rng, image_size):
        shape = _place(rng, instances, side=side, height=height, width=width)
        if shape is None:
            continue
        instance, alpha = shape
        for earlier in instances:
            earlier.visible &= ~instance.visible
        instances.append(instance)
        palette.append(distinct_colour(rng, palette))
        blend_shape(rng, picture, alpha, palette[-1])
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8), instances


def _is_complete(root: Path) -> bool:
    return all((root / "annotations" / f"instances_{split}2017.json").is_file() for split in SPLITS)


def _write_split(root: Path, split: str, *, count: int, image_size: int, seed: int) -> None:
    (root / f"{split}2017").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        image, instances = draw_image(seed=seed, split=split, index=index, image_size=image_size)
        image_id = 1_000_000 * SPLITS[split] + index + 1
        suffix, options = (".png", []) if index % 10 == 9 else (".jpg", [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        file_name = f"{image_id:012d}{suffix}"
        encoded = cv2.imencode(suffix, image[:, :, ::-1], options)[1]
        (root / f"{split}2017" / file_name).write_bytes(encoded.tobytes())
        height, width = image.shape[:2]
        images.append({"file_name": file_name, "height": height, "id": image_id, "width": width})
        for instance in instances:
            annotations.append(annotate(instance, annotation_id=len(annotations) + 1, image_id=image_id))
    content = {
        "info": {"description": f"Shapes, {split}, seed {seed}, size {image_size}", "version": VERSION},
        "licenses": [{"id": 1, "name": "drawn by a program, free of rights", "url": ""}],
        "categories": [{"id": i, "name": name, "supercategory": "shape"} for i, name in CLASSES.items()],
        "images": images,
        "annotations": annotations,
    }
    (root / "annotations").mkdir(exist_ok=True)
    text = json.dumps(content, sort_keys=True)
    (root / "annotations" / f"instances_{split}2017.json").write_text(text, encoding="utf-8")


def annotate(instance: Instance, *, annotation_id: int, image_id: int) -> dict[str, Any]:
    """Return the COCO annotation of an instance."""
    height, width = instance.visible.shape
    segmentation: Any
    if instance.hidden or len(instance.contours) > 1:
        rle = coco_mask.encode(np.asfortranarray(instance.visible, dtype=np.uint8))
        counts = rle["counts"].decode("ascii") if annotation_id % 2 else _run_lengths(instance.visible)
        segmentation = {"counts": counts, "size": [height, width]}
    else:
        outline = _clip(instance.contours[0], width=width, height=height)
        segmentation = [outline.round(2).ravel().tolist()]
        rle = coco_mask.frPyObjects(segmentation, height, width)[0]
    return {
        "area": float(coco_mask.area(rle)),
        "bbox": coco_mask.toBbox(rle).tolist(),
        "category_id": instance.category_id,
        "id": annotation_id,
        "image_id": image_id,
        "iscrowd": 0,
        "segmentation": segmentation,
    }


def _run_lengths(mask: Mask) -> list[int]:
    """COCO's counts: runs of 0 and 1 in turn, columns first, beginning with a run of 0 that may be empty."""
    changes = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=False))
    return [int(run) for run in np.diff(changes, prepend=0, append=mask.size)]


def _clip(points: Points, *, width: int, height: int) -> Points:
    """Clip a polygon to the picture, one border after the other (Sutherland and Hodgman)."""
    for axis, bound, sign in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        kept: list[Points] = []
        for start, end in zip(np.roll(points, 1, axis=0), points, strict=True):
            before, after = sign * (start[axis] - bound), sign * (end[axis] - bound)
            if (before < 0) != (after < 0):
                kept.append(start + (end - start) * before / (before - after))
            if after >= 0:
                kept.append(end)
        points = np.array(kept).reshape(-1, 2)
    return points


def _sides(rng: np.random.Generator, image_size: int) -> list[float]:
    """Sizes of the shapes to draw, as square roots of their areas."""
    if rng.random() < EMPTY_SHARE:
        return []
    count = int(rng.choice(len(COUNT_WEIGHTS), p=COUNT_WEIGHTS)) + 1
    kinds = rng.choice(len(SIDE_RANGES), size=count, p=SIDE_WEIGHTS)
    # Large shapes go to the back: in front they would cover all else.
    kinds = np.concatenate([kinds[kinds == 2], kinds[kinds != 2]])
    low, high = np.log(SIDE_RANGES).T
    sides = image_size * np.exp(rng.uniform(low[kinds], high[kinds]))
    return [max(MIN_SIDE, float(side)) for side in sides]


def _place(
    rng: np.random.Generator, instances: list[Instance], *, side: float, height: int, width: int
) -> tuple[Instance, Floats] | None:
    """Find a class and a place for a shape that leaves enough of the earlier ones, or give up."""
    category_id = int(rng.choice(list(CLASSES)))
    outline = [side * contour for contour in _outline(rng, CLASSES[category_id])]
    inset = min(0.6 * side, 0.45 * width, 0.45 * height)
    overlap = bool(instances) and rng.random() < OVERLAP_SHARE
    for _ in range(PLACEMENT_TRIES):
        centre = rng.uniform(inset, [width - inset, height - inset])
        if overlap:
            neighbour = instances[rng.integers(len(instances))]
            reach = 0.5 * (side + neighbour.full_area**0.5) * rng.uniform(0.4, 1.1)
            angle = rng.uniform(0, 2 * np.pi)
            middle = neighbour.contours[0].mean(axis=0)
            centre = middle + reach * np.array([np.cos(angle), np.sin(angle)])
        contours = [contour + centre for contour in outline]
        rough = np.zeros((height, width), np.uint8)
        cv2.fillPoly(rough, [contour.round().astype(np.int32) for contour in contours], (1,))
        if not _fits(rough > 0, instances, side=side, overlap=overlap):
            continue  # found out cheaply
        alpha = _coverage(contours, height=height, width=width)
        mask = alpha >= 0.5
        if _fits(mask, instances, side=side, overlap=overlap):
            return Instance(category_id, contours, int(np.count_nonzero(mask)), mask), alpha
    return None


def _fits(mask: Mask, instances: list[Instance], *, side: float, overlap: bool) -> bool:
    """Whether enough of a shape of area ``side**2`` lies inside, and enough of the earlier ones stays visible."""
    return int(np.count_nonzero(mask)) >= MIN_INSIDE_SHARE * side**2 and all(
        _leaves_enough(mask, earlier, overlap=overlap) for earlier in instances
    )


def _leaves_enough(mask: Mask, earlier: Instance, *, overlap: bool) -> bool:
    rest = earlier.visible & ~mask
    area, before = int(np.count_nonzero(rest)), int(np.count_nonzero(earlier.visible))
    if area == before:
        return True
    return (
        overlap
        and before - area >= MIN_HIDDEN_AREA
        and area >= max(MIN_VISIBLE_AREA, MIN_VISIBLE_SHARE * earlier.full_area)
        and min(cv2.boundingRect(rest.astype(np.uint8))[2:]) >= MIN_VISIBLE_SIDE
    )


def _outline(rng: np.random.Generator, name: str) -> list[Points]:
    """Contours of a turned and stretched shape of area 1 around (0, 0); a second contour is a hole."""
    if name == "ellipse":
        contours = [_circle(48)]
    elif name == "ring":
        contours = [_circle(48), rng.uniform(0.45, 0.6) * _circle(48)]
    elif name == "triangle":
        contours = [_circle(3)]
    elif name == "star":
        contours = [_circle(10) * np.where(np.arange(10) % 2, rng.uniform(0.42, 0.5), 1.0)[:, None]]
    else:
        arm = rng.uniform(0.3, 0.42)
        quarter = np.array([[1, -arm], [1, arm], [arm, arm]])
        turns = [np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
        contours = [np.concatenate([quarter @ turn for turn in turns])]
    stretch = rng.uniform(0.6, 0.9) if name == "ellipse" else rng.uniform(0.8, 1.0)
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.diag([1, stretch]) @ np.array([[cos, sin], [-sin, cos]])
    areas = [cv2.contourArea(contour.astype(np.float32)) for contour in contours]
    scale = (stretch * (areas[0] - sum(areas[1:]))) ** -0.5
    return [scale * contour @ matrix for contour in contours]


def _circle(points: int) -> Points:
    angles = np.arange(points) * 2 * np.pi / points
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _coverage(contours: list[Points], *, height: int, width: int) -> Floats:
    """Share of each pixel that lies inside the contours, from a drawing at ``SUPERSAMPLE`` times the size."""
    alpha = np.zeros((height, width), np.float32)
    limit = [width, height]
    left, top = np.clip(np.floor(contours[0].min(axis=0)), 0, limit).astype(int)
    right, bottom = np.clip(np.ceil(contours[0].max(axis=0)), 0, limit).astype(int)
    if left >= right or top >= bottom:
        return alpha
    canvas = np.zeros(((bottom - top) * SUPERSAMPLE, (right - left) * SUPERSAMPLE), np.uint8)
    fine = [(contour - [left, top]) * SUPERSAMPLE - 0.5 for contour in contours]  # OpenCV counts from centres
    cv2.fillPoly(canvas, [(points * 16).round().astype(np.int32) for points in fine], (255,), shift=4)
    size = (int(right - left), int(bottom - top))
    alpha[top:bottom, left:right] = cv2.resize(canvas, size, interpolation=cv2.INTER_AREA) / np.float32(255)
    return alpha

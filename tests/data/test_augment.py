"""From source to sample: drawn shapes say where the pixels went, and their outlines must say the same."""

from collections import Counter

import cv2
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from maskrcnn.config import build, config_folder
from maskrcnn.data import patch as patch_module
from maskrcnn.data.augment import Augment, TrainTransform
from maskrcnn.data.geometry import HorizontalFlip, LargeScaleJitter, Perspective, RandomCrop
from maskrcnn.data.mixing import CopyPaste, MixUp, Mosaic
from maskrcnn.data.outline import Outline, shift
from maskrcnn.data.patch import FILL
from maskrcnn.data.pixels import Blur, ColorJitter, Noise
from maskrcnn.data.sample import to_target

PRESETS = ["none", "light", "lsj", "lsj_copy_paste", "mosaic_mixup"]


def rng(seed=0):
    return np.random.default_rng(seed)


def rectangle(x1, y1, x2, y2):
    return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], dtype=np.float64)


def blob(cx, cy, rx, ry, angle=0.0, lobes=2, dent=0.0):  # noqa: PLR0917
    """An ellipse of 48 vertices; with `dent` it is concave between its lobes."""
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    radius = 1 - dent * (1 + np.cos(lobes * t)) / 2
    x, y = rx * radius * np.cos(t), ry * radius * np.sin(t)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack((cx + cos * x - sin * y, cy + sin * x + cos * y), axis=1)


def pixels(outline, size):
    return coco_mask.decode(outline.rle(size)).astype(bool)


def around(mask):
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


class Pictures:
    """A source in memory: (image, outlines, labels) each; notes what is asked for."""

    def __init__(self, pictures):
        self.pictures = pictures
        self.reads = []
        self.touched = set()

    def __len__(self):
        return len(self.pictures)

    def size(self, index):
        self.touched.add(index)
        return self.pictures[index][0].shape[:2]

    def instances(self, index):
        height, width = self.size(index)
        outlines = [outline.clip((0, 0, width, height)) for outline in self.pictures[index][1]]
        return outlines, np.array(self.pictures[index][2], dtype=np.int64)

    def image_id(self, index):
        return 1000 + index

    def read(self, index, *, shrink=1):
        self.reads.append((index, shrink))
        image = self.pictures[index][0]
        padded = np.pad(image, [(0, -side % shrink) for side in image.shape[:2]] + [(0, 0)], mode="edge")
        blocks = padded.reshape(padded.shape[0] // shrink, shrink, padded.shape[1] // shrink, shrink, 3)
        reduced = np.round(blocks.mean(axis=(1, 3))).astype(np.uint8)
        reduced.flags.writeable = False  # as a decoded file is
        return reduced


def transform(*, min_sizes=(90,), max_size=1000, **steps):
    return TrainTransform(min_sizes=min_sizes, max_size=max_size, augment=Augment(**steps))


def compose_preset(name, *overrides):
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        cfg = compose(f"augment/{name}", overrides=[f"augment.{override}" for override in overrides])
    return build(cfg.augment, key="augment")


SQUARE = (20, 30, 50, 60)  # x1 y1 x2 y2


def square(height=90, width=120):
    x1, y1, x2, y2 = SQUARE
    image = np.zeros((height, width, 3), np.uint8)
    image[y1:y2, x1:x2] = 255
    outlines = [Outline((rectangle(*SQUARE),)), Outline(bitmap=(image[..., 0] > 0).astype(np.uint8))]
    return Pictures([(image, outlines, [1, 2])])


# --- a single picture, resized and mirrored


@pytest.mark.parametrize("size", [45, 90, 135, 180, 200])
@pytest.mark.parametrize("flip", [None, HorizontalFlip(p=1)])
def test_a_square_is_where_it_is_said_to_be(size, flip):
    sample = transform(min_sizes=[size], flip=flip)(square(), 0, rng())
    assert min(sample.size) == size
    found = around(sample.image[..., 0] > 127)
    for outline in sample.outlines:
        assert np.abs(outline.box - found).max() <= 0.7
    x1, y1, x2, y2 = np.array(SQUARE) * size / 90
    expected = [x1, y1, x2, y2] if flip is None else [sample.size[1] - x2, y1, sample.size[1] - x1, y2]
    assert np.abs(sample.outlines[0].box - expected).max() <= 0.7
    assert sample.labels.tolist() == [1, 2]
    assert sample.image_id == 1000


def test_nothing_to_do_changes_nothing():
    source = square()
    sample = transform()(source, 0, rng())
    assert np.array_equal(sample.image, source.pictures[0][0])
    flipped = transform(flip=HorizontalFlip(p=1))(source, 0, rng())
    assert np.array_equal(flipped.image, source.pictures[0][0][:, ::-1])
    for before, after in zip(sample.outlines, flipped.outlines, strict=True):
        assert np.array_equal(pixels(after, flipped.size), pixels(before, sample.size)[:, ::-1])


def test_long_side_never_passes_the_maximum():
    sample = transform(min_sizes=[90], max_size=100)(square(60, 180), 0, rng())
    assert max(sample.size) <= 100
    assert abs(sample.size[1] / sample.size[0] - 3) < 0.1


def test_a_picture_without_instances():
    source = Pictures([(np.full((40, 50, 3), 9, np.uint8), [], [])] * 3)
    for steps in ({}, {"mosaic": Mosaic(p=1)}, {"copy_paste": CopyPaste(p=1), "mixup": MixUp(p=1)}):
        sample = transform(min_sizes=[32], max_size=48, **steps)(source, 1, rng())
        assert sample.outlines == []
        assert (sample.labels.shape, sample.labels.dtype) == ((0,), np.int64)


# --- every instance is a shape of its own colour


def palette():
    """Twelve colours around the circle: half of one is as near to black as to itself, and further from the others."""
    hues = np.array([[(15 * i, 255, 255) for i in range(12)]], dtype=np.uint8)
    return cv2.cvtColor(hues, cv2.COLOR_HSV2RGB)[0]


COLOURS = palette()


def shapes_source():
    """Four pictures of a concave shape, one in two parts, and a bitmap with a hole; label i has colour i - 1."""
    pictures = []
    for i, (height, width) in enumerate(((160, 210), (210, 160), (120, 300), (180, 180))):
        draws = rng(i)
        cell = max(height, width) / 3
        image = np.zeros((height, width, 3), np.uint8)
        outlines = []
        for k in range(3):
            along, across = (k + 0.5) * cell, min(height, width) / 2
            x, y = (along, across) if width >= height else (across, along)
            size = 0.42 * cell
            angle = draws.uniform(0, 3)
            if k == i % 3:
                outline = Outline((blob(x, y, size, size, angle, lobes=3, dent=0.4),))
            elif k == (i + 1) % 3:
                arms = blob(x, y, size, 0.4 * size, angle), blob(x, y, 0.4 * size, size, angle)
                outline = Outline(arms if i % 2 else (arms[0] - (0, size / 2), arms[0] + (0, size / 2)))
            else:
                outer, inner = (pixels(Outline((blob(x, y, r, r),)), (height, width)) for r in (size, 0.5 * size))
                outline = Outline(bitmap=(outer & ~inner).astype(np.uint8))
            image[pixels(outline, (height, width))] = COLOURS[3 * i + k]
            outlines.append(outline)
        pictures.append((image, outlines, np.arange(3 * i + 1, 3 * i + 4)))
    return Pictures(pictures)


def overlaps(sample):
    """IoU of each large outline with the pixels of its colour in and around its box."""
    found = []
    counts = Counter(sample.labels.tolist())
    known = np.array([*COLOURS, (0, 0, 0), FILL], dtype=float)
    nearest = np.linalg.norm(sample.image[:, :, None] - known, axis=3).argmin(axis=2)
    for outline, label in zip(sample.outlines, sample.labels.tolist(), strict=True):
        mask = pixels(outline, sample.size)
        if mask.sum() < 200 or counts[label] > 1:  # the same picture came twice
            continue
        x1, y1, x2, y2 = np.round(outline.box).astype(int)
        near = np.zeros_like(mask)
        near[max(y1 - 5, 0) : y2 + 5, max(x1 - 5, 0) : x2 + 5] = True
        painted = near & (nearest == label - 1)
        found.append((mask & painted).sum() / (mask | painted).sum())
    return found


STRONG = ("perspective.p=1", "perspective.scale=[0.8,1.3]", "perspective.shear=10", "perspective.translate=0.1")


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        *((preset, ()) for preset in PRESETS),
        ("lsj_copy_paste", ("copy_paste.p=1", "copy_paste.share=1", "jitter.scale=[0.5,2]")),
        ("mosaic_mixup", ("mosaic.p=1",)),
        ("light", (*STRONG, "perspective.perspective=0.2")),
        ("light", (*STRONG, "crop.p=1")),
        ("lsj", (*STRONG, "perspective.degrees=180")),
    ],
)
def test_pixels_and_outlines_go_the_same_way(preset, overrides):
    steps = compose_preset(preset, "color.p=0", "mixup.p=0", *overrides)
    make = TrainTransform(min_sizes=[128, 160, 220], max_size=224, augment=steps)
    source = shapes_source()
    found = []
    for seed in range(16):
        found += overlaps(make(source, seed % 4, rng(seed)))
    assert len(found) >= 20
    assert np.mean(found) >= 0.97
    assert min(found) >= 0.85


def test_mixed_up_pictures_keep_the_outlines_of_both():
    steps = compose_preset("mosaic_mixup", "color.p=0", "mixup.p=1")
    make = TrainTransform(min_sizes=[160], max_size=200, augment=steps)
    source = shapes_source()
    for seed in range(6):
        draws = rng(seed)
        both = make(source, 0, draws)
        parts = TrainTransform(
            min_sizes=[160], max_size=200, augment=compose_preset("mosaic_mixup", "color.p=0", "mixup.p=0")
        )
        draws = rng(seed)
        first = parts(source, 0, draws)
        draws.random()  # whether to mix
        second = parts(source, int(draws.integers(4)), draws)
        assert both.labels.tolist() == [*first.labels, *second.labels]
        for outline, expected in zip(both.outlines, first.outlines + second.outlines, strict=True):
            assert np.array_equal(pixels(outline, both.size), pixels(expected, both.size))


@pytest.mark.parametrize("steps", [(), ("mosaic.p=1",), ("mosaic.p=1", "mixup.p=1")])
def test_sample_names_every_picture_that_it_is_made_of(steps):
    make = TrainTransform(min_sizes=[160], max_size=200, augment=compose_preset("mosaic_mixup", *("mixup.p=0", *steps)))
    for seed in range(4):
        source = shapes_source()
        sample = make(source, 1, rng(seed))
        assert sample.image_id == 1001
        assert {1001, *sample.partners} == {1001, *(1000 + index for index, _ in source.reads)}
        assert to_target(sample, mask_size=28)["image_ids"].tolist() == [1001, *sample.partners]


# --- any chain of steps


def picture(height, width, kinds, seed):
    """Noise with concave, split and box-only outlines, many partly outside."""
    draws = rng(seed)
    outlines = []
    for kind in kinds:
        rings = tuple(
            blob(*draws.uniform((-5, -5, 6, 6, 0), (width + 5, height + 5, 40, 40, 3)), 3, draws.uniform(0, 0.4))
            for _ in range(2 if kind == "parts" else 1)
        )
        outline = Outline(rings)
        if kind == "bitmap":
            outline = Outline(bitmap=coco_mask.decode(outline.rle((height, width))))
        elif kind == "box":
            outline = Outline((rectangle(*outline.box.astype(np.float64)),), box_only=True)
        outlines.append(outline)
    image = draws.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return image, outlines, np.arange(1, len(outlines) + 1)


scenes = st.lists(
    st.builds(
        picture,
        height=st.integers(24, 120),
        width=st.integers(24, 120),
        kinds=st.lists(st.sampled_from(["polygon", "parts", "bitmap", "box"]), max_size=5),
        seed=st.integers(0, 2**32),
    ),
    min_size=1,
    max_size=3,
)
chance = st.sampled_from([0.0, 0.5, 1.0])
scale = st.tuples(st.floats(0.2, 1), st.floats(1, 1.6))


def chains(**mixing):
    return st.builds(
        Augment,
        mosaic=st.builds(Mosaic, p=chance, scale=scale, translate=st.floats(0, 0.3)),
        jitter=st.builds(LargeScaleJitter, p=chance, scale=scale),
        crop=st.builds(RandomCrop, p=chance, min_share=st.floats(0.5, 1)),
        perspective=st.builds(
            Perspective,
            p=chance,
            degrees=st.floats(0, 180),
            scale=scale,
            shear=st.floats(0, 20),
            translate=st.floats(0, 0.5),
            perspective=st.sampled_from([0.0, 0.1]),
        ),
        flip=st.builds(HorizontalFlip, p=chance),
        min_visibility=st.sampled_from([0.0, 0.2, 0.6]),
        min_side=st.sampled_from([1.0, 2.0, 8.0]),
        max_aspect=st.sampled_from([None, 1.5, 20.0]),
        **mixing,
    )


mixtures = chains(
    mixup=st.builds(MixUp, p=chance), copy_paste=st.builds(CopyPaste, p=chance, share=chance.filter(bool))
)


def check_sample(sample, *, tight):
    height, width = sample.size
    target = to_target(sample, mask_size=28)
    assert {len(target[key]) for key in ("boxes", "labels", "masks", "has_mask")} == {len(sample.outlines)}
    assert target["has_mask"].tolist() == [not outline.box_only for outline in sample.outlines]
    assert np.array_equal(target["labels"].numpy(), sample.labels)
    for outline in sample.outlines:
        box = outline.box
        assert (box >= 0).all()
        assert (box <= (width, height, width, height)).all()
        mask = pixels(outline, sample.size)
        if min(box[2:] - box[:2]) > 4 and tight(outline):
            assert np.abs(box - around(mask)).max() <= 2  # the tip of a concave one may hold no pixel


def check_limits(sample, steps):
    for outline in sample.outlines:
        sides = np.sort(outline.box[2:].astype(float) - outline.box[:2])
        assert sides[0] >= steps.min_side
        assert steps.max_aspect is None or sides[1] <= steps.max_aspect * sides[0]


@given(scene=scenes, steps=chains(), seed=st.integers(0, 2**32))
@settings(deadline=None, derandomize=True, max_examples=120)
def test_after_any_chain_boxes_are_tight_and_nothing_small_is_kept(scene, steps, seed):
    sample = TrainTransform(min_sizes=[40, 64, 90], max_size=96, augment=steps)(Pictures(scene), 0, rng(seed))
    check_sample(sample, tight=lambda outline: True)
    check_limits(sample, steps)


@given(scene=scenes, steps=mixtures, seed=st.integers(0, 2**32))
@settings(deadline=None, derandomize=True, max_examples=100)
def test_after_any_mixture_everything_has_one_length_and_lies_inside(scene, steps, seed):
    sample = TrainTransform(min_sizes=[40, 64, 90], max_size=96, augment=steps)(Pictures(scene), 0, rng(seed))
    check_sample(sample, tight=lambda outline: False)
    assert sample.image.dtype == np.uint8


@given(scene=scenes, steps=chains(copy_paste=st.just(CopyPaste(p=1, share=1))), seed=st.integers(0, 2**32))
@settings(deadline=None, derandomize=True, max_examples=100, report_multiple_bugs=False)
def test_after_pasting_nothing_small_is_kept(scene, steps, seed):
    """What a pasted instance leaves of another is held to the same limits, and so is a pasted one at the border."""
    sample = TrainTransform(min_sizes=[40, 64, 90], max_size=96, augment=steps)(Pictures(scene), 0, rng(seed))
    check_limits(sample, steps)


def test_a_sliver_that_a_pasted_instance_leaves_is_too_small():
    base = np.zeros((48, 64, 3), np.uint8), [Outline((rectangle(10, 10, 30, 30),))], [1]
    other = np.zeros((48, 64, 3), np.uint8), [Outline((rectangle(13, 5, 40, 40),))], [2]
    make = transform(min_sizes=[48], copy_paste=CopyPaste(p=1, share=1), min_side=4.0)
    samples = [make(Pictures([base, other]), 0, rng(seed)) for seed in range(8)]
    # A picture may be its own partner, and then covers itself.
    assert {str(sample.labels.tolist()) for sample in samples} == {"[1]", "[2]"}


def test_a_pasted_instance_that_the_border_cuts_is_held_to_the_limits():
    """Or it is not pasted at all: pixels without their instance would teach the background."""
    base = np.zeros((48, 64, 3), np.uint8), [Outline((rectangle(10, 10, 30, 30),))], [1]
    other = np.full((48, 96, 3), 255, np.uint8), [Outline((rectangle(62, 5, 92, 40),))], [2]
    make = transform(min_sizes=[48], copy_paste=CopyPaste(p=1, share=1), min_side=4.0, min_visibility=0.2)
    for seed in range(8):
        sample = make(Pictures([base, other]), 0, rng(seed))
        assert sample.labels.tolist() == [1]
        assert not sample.image.any()


def moved(matrix, size=(60, 80), **limits):
    """A transform whose only step maps by `matrix`."""
    augment = Augment(**limits)
    augment.perspective = lambda size, rng: (matrix, size)
    return TrainTransform(min_sizes=[min(size)], max_size=1000, augment=augment)


@pytest.mark.parametrize(("dx", "visible"), [(-20, 0.5), (-32, 0.2), (-39, 0.025), (10, 1), (40, 0.75), (-41, 0)])
@pytest.mark.parametrize("min_visibility", [0.0, 0.1, 0.4, 0.5, 0.51, 0.7])
def test_visibility_is_the_share_that_is_left(dx, visible, min_visibility):
    """Of exactly the least share it stays."""
    ring = rectangle(0, 10, 40, 40) + np.array((10 if dx > 0 else 0, 0))
    image = np.zeros((60, 80, 3), np.uint8)
    bitmap = np.zeros((60, 80), np.uint8)
    x1, x2 = int(ring[0, 0]), int(ring[1, 0])
    bitmap[10:40, x1:x2] = 1
    source = Pictures([(image, [Outline((ring,)), Outline(bitmap=bitmap)], [1, 2])])
    sample = moved(shift(dx, 0), min_visibility=min_visibility)(source, 0, rng())
    assert sample.labels.tolist() == ([1, 2] if visible and visible >= min_visibility else [])
    for outline in sample.outlines:
        assert outline.box.tolist() == [max(x1 + dx, 0), 10, min(x2 + dx, 80), 40]


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({}, [1, 2, 3, 4, 5]),
        ({"min_side": 1.01}, [2, 3, 4, 5]),
        ({"min_side": 2}, [2, 3, 4, 5]),
        ({"min_side": 4}, [3, 4, 5]),
        ({"min_side": 29}, [5]),
        ({"min_side": 29.01}, []),
        ({"max_aspect": 5}, [3, 4, 5]),
        ({"max_aspect": 4.99}, [4, 5]),
        ({"max_aspect": 1.5}, [4, 5]),
        ({"max_aspect": 1.49}, [5]),
        ({"max_aspect": 1.49, "min_side": 30}, []),
    ],
)
def test_thin_instances_go(limits, kept):
    """A side or an aspect of exactly the limit stays."""
    sides = [(1, 10), (2, 40), (4, 20), (10, 15), (30, 29)]
    outlines = [Outline((rectangle(5, 5, 5 + width, 5 + height),)) for width, height in sides]
    source = Pictures([(np.zeros((60, 80, 3), np.uint8), outlines, [1, 2, 3, 4, 5])])
    assert moved(np.eye(3), **limits)(source, 0, rng()).labels.tolist() == kept


def test_without_a_least_share_a_trace_is_enough():
    """A fortieth of an instance is left at either side."""
    source = Pictures([(np.zeros((60, 80, 3), np.uint8), [Outline((rectangle(10, 10, 50, 50),))], [1])])
    for dx in (-49, 69):
        assert moved(shift(dx, 0))(source, 0, rng()).labels.tolist() == [1]
        assert moved(shift(dx, 0), min_visibility=0.025)(source, 0, rng()).labels.tolist() == [1]
        assert moved(shift(dx, 0), min_visibility=0.026)(source, 0, rng()).labels.tolist() == []


def test_polygons_and_bitmaps_of_one_instance_agree_after_the_same_chain():
    steps = compose_preset("light", *STRONG, "perspective.perspective=0.1", "crop.p=0.5")
    found = []
    for seed in range(60):
        draws = rng(seed)
        polygon = Outline((blob(*draws.uniform((30, 30, 15, 15, 0), (90, 60, 28, 28, 3)), 3, 0.3),)).clip(
            (0, 0, 120, 90)
        )
        pair = [polygon, Outline(bitmap=coco_mask.decode(polygon.rle((90, 120))))]
        source = Pictures([(np.zeros((90, 120, 3), np.uint8), pair, [1, 2])])
        sample = TrainTransform(min_sizes=[70, 110], max_size=200, augment=steps)(source, 0, rng(seed))
        if sample.labels.tolist() == [1, 2]:
            masks = [pixels(outline, sample.size) for outline in sample.outlines]
            found.append((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())
    assert len(found) > 40
    assert np.mean(found) >= 0.97


# --- the edges of what may be configured


@pytest.mark.parametrize(
    "steps",
    [
        {"crop": RandomCrop(p=1, min_share=0.3)},
        {"jitter": LargeScaleJitter(p=1, scale=(2.0, 4.0))},
    ],
)
def test_a_tilt_of_a_cut_out_part_keeps_pixels_and_outlines_together(steps):
    """It is tilted before: of the picture around a part, some would lie behind the viewer."""
    tilt = Perspective(p=1, degrees=0, perspective=0.4, scale=(0.4, 0.6))
    make = TrainTransform(min_sizes=[160], max_size=200, augment=Augment(perspective=tilt, **steps))
    source = shapes_source()
    found = []
    for seed in range(40):
        found += overlaps(make(source, seed % 4, rng(seed)))
    assert len(found) > 10
    assert np.mean(found) >= 0.97
    assert min(found) >= 0.8


def test_a_mosaic_may_be_moved_out_of_sight():
    make = transform(max_size=64, mosaic=Mosaic(p=1, scale=(0.1, 0.2), translate=1.0))
    samples = [make(shapes_source(), 0, rng(seed)) for seed in range(40)]
    empty = [sample for sample in samples if (sample.image == FILL).all()]
    assert 0 < len(empty) < 40
    assert all(len(sample.labels) == 0 for sample in empty)


# --- reading no more than is needed


@pytest.mark.parametrize(
    ("side", "shrink"), [(800, 1), (400, 1), (204, 1), (200, 2), (104, 2), (98, 4), (52, 4), (48, 8), (16, 8)]
)
def test_pictures_are_read_no_larger_than_needed(side, shrink):
    """The strongest reduction of 400 pixels that leaves at least `side` of them."""
    source = Pictures([(np.zeros((400, 400, 3), np.uint8), [], [])])
    transform(min_sizes=[side])(source, 0, rng())
    assert source.reads == [(0, shrink)]


def test_a_reduced_picture_gives_nearly_the_same_sample(monkeypatch):
    y, x = np.mgrid[:331, :467]
    smooth = np.stack(
        (127 + 120 * np.sin(x / 70), 127 + 120 * np.cos(y / 60), 127 + 120 * np.sin((x + y) / 90)), axis=-1
    )
    source = Pictures([(smooth.astype(np.uint8), [Outline((blob(230, 160, 120, 90, 0.4, 3, 0.3),))], [1])])
    for steps in (
        {"jitter": LargeScaleJitter(p=1, scale=(0.1, 0.6)), "flip": HorizontalFlip(p=0.5)},
        {"perspective": Perspective(p=1, degrees=30, scale=(0.2, 0.5))},
        {"mosaic": Mosaic(p=1, scale=(0.3, 0.8))},
    ):
        make = transform(min_sizes=[160], max_size=256, **steps)
        for seed in range(5):
            source.reads.clear()
            reduced = make(source, 0, rng(seed))
            shrinks = {shrink for _, shrink in source.reads}
            with monkeypatch.context() as patch:
                patch.setattr(patch_module, "_shrink", lambda matrix, size: 1)
                whole = make(source, 0, rng(seed))
            assert shrinks - {1}
            difference = np.abs(reduced.image.astype(float) - whole.image)
            assert difference.mean() < 1.5
            assert np.percentile(difference, 99) < 16
            assert reduced.labels.tolist() == whole.labels.tolist()
            for one, other in zip(reduced.outlines, whole.outlines, strict=True):
                assert np.abs(one.box - other.box).max() <= 1  # both are drawn from whole pixels


def test_without_mixing_no_other_picture_is_touched():
    steps = compose_preset("mosaic_mixup", "mosaic.p=1", "mixup.p=1", "copy_paste.p=1")
    make = TrainTransform(min_sizes=[64, 90], max_size=128, augment=steps)
    for index in range(4):
        source = shapes_source()
        make(source, index, rng(index), mixing=False)
        assert source.touched == {index}
        assert [one for one, _ in source.reads] == [index]
    source = shapes_source()
    for seed in range(10):
        make(source, 0, rng(seed))
    assert source.touched == {0, 1, 2, 3}


def test_every_picture_is_a_partner_as_often():
    source = shapes_source()
    make = transform(min_sizes=[16], max_size=32, mosaic=Mosaic(p=1, scale=(1, 1), translate=0))
    draws = rng()
    for _ in range(150):
        make(source, 2, draws)
    counts = Counter(index for index, _ in source.reads)
    partners = np.array([counts[0], counts[1], counts[2] - 150 * counts.total() / 600, counts[3]]) / counts.total()
    assert np.abs(partners - 0.1875).max() < 0.06


# --- what the generator decides


def everything():
    return Augment(
        mosaic=Mosaic(p=0.5),
        jitter=LargeScaleJitter(p=0.3),
        crop=RandomCrop(p=0.5),
        perspective=Perspective(p=0.5, perspective=0.1),
        flip=HorizontalFlip(p=0.5),
        color=ColorJitter(p=0.5),
        mixup=MixUp(p=0.3),
        copy_paste=CopyPaste(p=0.5),
        blur=Blur(p=0.5),
        noise=Noise(p=0.5),
    )


def test_same_draws_same_sample():
    def samples(order):
        make = TrainTransform(min_sizes=[48, 64, 80], max_size=96, augment=everything())
        source = shapes_source()
        return {key: make(source, key[2], rng(key)) for key in order}  # (seed, epoch, index)

    keys = [(seed, epoch, index) for seed in (1, 2) for epoch in range(3) for index in range(4)]
    first = samples(keys)
    np.random.seed(3)
    again = samples(keys[::-1])
    for key in keys:
        assert np.array_equal(first[key].image, again[key].image)
        assert np.array_equal(first[key].labels, again[key].labels)
        for one, other in zip(first[key].outlines, again[key].outlines, strict=True):
            assert one.rle(first[key].size) == other.rle(first[key].size)
    assert len({sample.image.tobytes() for sample in first.values()}) == len(keys)


def test_the_source_is_left_as_it_is():
    source, untouched = shapes_source(), shapes_source()
    make = TrainTransform(min_sizes=[210], max_size=300, augment=everything())
    for seed in range(8):
        make(source, seed % 4, rng(seed))
    for (image, outlines, _), (expected, kept, _) in zip(source.pictures, untouched.pictures, strict=True):
        assert np.array_equal(image, expected)
        for one, other in zip(outlines, kept, strict=True):
            assert one.rle(image.shape[:2]) == other.rle(image.shape[:2])


def test_steps_that_are_off_draw_nothing():
    draws, expected = rng(4), rng(4)
    TrainTransform(min_sizes=[40, 50, 60], max_size=80, augment=Augment())(square(), 0, draws)
    expected.choice([40, 50, 60])
    assert draws.bit_generator.state == expected.bit_generator.state


def test_steps_are_drawn_apart():
    make = transform(min_sizes=[30, 60], flip=HorizontalFlip(p=0.5), blur=Blur(p=0.5, sigma=(3, 3)))
    seen = set()
    for seed in range(60):
        sample = make(square(), 0, rng(seed))
        left = sample.outlines[0].box[0] < sample.size[1] / 3
        sharp = np.isin(sample.image, (0, 255)).mean() > 0.97
        seen.add((sample.size[0], bool(left), bool(sharp)))
    assert len(seen) == 8


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_build_and_keep_their_names(preset):
    steps = compose_preset(preset)
    on = {name for name, step in vars(steps).items() if getattr(step, "p", 0) > 0}
    expected = {
        "none": set(),
        "light": {"flip"},
        "lsj": {"jitter", "flip", "color"},
        "lsj_copy_paste": {"jitter", "flip", "color", "copy_paste"},
        "mosaic_mixup": {"mosaic", "crop", "perspective", "flip", "color", "mixup"},
    }
    assert on == expected[preset]


NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("min_visibility", (-0.1, 1, NAN)),
        ("min_side", (0, -0.1, NAN, float("inf"))),
        ("max_aspect", (0.9, 0, -1, NAN)),
        ("close_mixing_epochs", (-1,)),
    ],
)
def test_invalid_arguments_are_named(name, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"^{name} must be .*, got .*\Z"):
            Augment(**{name: value})

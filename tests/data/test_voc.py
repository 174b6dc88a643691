"""A VOC set drawn by hand, in the layout of the download: every number that comes out of it is counted here."""

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn.data.voc import CLASSES, VocDataset
from maskrcnn.errors import UserError
from maskrcnn.evaluation.coco import score
from maskrcnn.evaluation.voc import has_void, voc_scores

PERSON, SOFA, DOG, VOID = 15, 18, 12, 255
PALETTE = [level * 7 % 256 for level in range(768)]
NAMES = ["2007_000032", "2008_000007", "2007_000001", "2011_000100"]


def draw(size, *parts):
    """A level for each pixel; parts are (x1, y1, x2, y2, level), later ones on top."""
    levels = np.zeros(size, np.uint8)
    for x1, y1, x2, y2, level in parts:
        levels[y1:y2, x1:x2] = level
    return levels


def save_levels(path, levels):
    image = Image.fromarray(levels)
    image.putpalette(PALETTE)
    image.save(path)


def xml(*difficult):
    objects = "".join(f"<object><name>x</name><difficult>{flag}</difficult></object>" for flag in difficult)
    return f"<annotation><size><width>64</width></size>{objects}</annotation>"


# Instance levels, class levels and XML of each picture.
PICTURES = {
    # Two persons with a void border around the first; the second is difficult, and a sofa lies behind it.
    "2007_000032": (
        draw((48, 64), (9, 9, 31, 21, VOID), (10, 10, 30, 20, 1), (38, 4, 64, 48, 3), (40, 4, 60, 44, 2)),
        draw((48, 64), (9, 9, 31, 21, VOID), (10, 10, 30, 20, PERSON), (38, 4, 64, 48, SOFA), (40, 4, 60, 44, PERSON)),
        xml(0, 1, 0),
    ),
    # Instance 2 is void to the larger part in the classes, and a few of its pixels say sofa.
    "2008_000007": (
        draw((30, 40), (0, 0, 20, 10, 2)),
        draw((30, 40), (0, 0, 20, 10, VOID), (0, 0, 5, 10, DOG), (0, 0, 4, 10, SOFA), (1, 0, 5, 10, DOG)),
        None,
    ),
    "2007_000001": (draw((20, 20)), draw((20, 20)), xml()),  # nothing
    # An instance in two parts, and fewer objects than instances.
    "2011_000100": (
        draw((40, 30), (0, 0, 4, 4, 1), (26, 36, 30, 40, 1), (10, 10, 20, 30, 2)),
        draw((40, 30), (0, 0, 4, 4, DOG), (26, 36, 30, 40, DOG), (10, 10, 20, 30, 1)),
        "<annotation><object><name>dog</name></object></annotation>",
    ),
}


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationObject", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for name, (objects, classes, objects_xml) in PICTURES.items():
        Image.fromarray(objects).convert("RGB").save(root / "JPEGImages" / f"{name}.jpg")
        save_levels(root / "SegmentationObject" / f"{name}.png", objects)
        save_levels(root / "SegmentationClass" / f"{name}.png", classes)
        if objects_xml is not None:
            (root / "Annotations" / f"{name}.xml").write_text(objects_xml)
    (root / "ImageSets/Segmentation/val.txt").write_text("\n".join(NAMES) + "\n\n")
    return root


def voc(root):
    return VocDataset(annotations=root / "ImageSets/Segmentation/val.txt", images=root / "JPEGImages")


def test_every_number(root):
    data = voc(root)
    assert data.problems == []
    annotations = data.annotations
    assert annotations.notes == ()
    assert annotations.annotated
    assert annotations.categories == [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
    assert (len(CLASSES), CLASSES[PERSON - 1], CLASSES[SOFA - 1], CLASSES[DOG - 1]) == (20, "person", "sofa", "dog")
    assert annotations.image_ids.tolist() == [1, 2, 3, 4]
    assert [annotations.file_name(i) for i in range(4)] == [f"{name}.jpg" for name in NAMES]
    assert annotations.sizes.tolist() == [[48, 64], [30, 40], [20, 20], [40, 30]]
    assert annotations.first_instance.tolist() == [0, 3, 4, 4, 6]
    assert annotations.labels.tolist() == [PERSON, PERSON, SOFA, DOG, DOG, 1]
    assert annotations.boxes.tolist() == [
        [10, 10, 20, 10],
        [40, 4, 20, 40],
        [38, 4, 26, 44],
        [0, 0, 20, 10],
        [0, 0, 30, 40],
        [10, 10, 10, 20],
    ]
    assert annotations.areas.tolist() == [200, 800, 26 * 44 - 800, 200, 32, 200]
    assert annotations.difficult.tolist() == [False, True, False, False, False, False]
    assert not annotations.crowd.any()
    assert annotations.usable.all()
    assert (np.diff(annotations.first_void) > 0).tolist() == [True, False, False, False]


def test_masks_and_void_are_the_pixels(root):
    data = voc(root)
    truth = data.annotations.ground_truth(range(4))
    for image, name in zip(truth["images"], NAMES, strict=True):
        objects = PICTURES[name][0]
        of_image = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        numbers = sorted(set(np.unique(objects).tolist()) - {0, VOID})
        assert len(of_image) == len(numbers)
        for annotation, number in zip(of_image, numbers, strict=True):
            assert np.array_equal(coco_mask.decode(annotation["segmentation"]), objects == number)
        assert ("void" in image) == (objects == VOID).any()
        if "void" in image:
            assert np.array_equal(coco_mask.decode(image["void"]), objects == VOID)
    assert [a.get("ignore", 0) for a in truth["annotations"]] == [0, 1, 0, 0, 0, 0]
    assert data.read_image(0).shape == (48, 64, 3)
    assert data.read_image(3, shrink=2).shape == (20, 15, 3)


def test_a_perfect_result_scores_one_without_the_difficult_object(root):
    truth = voc(root).annotations.ground_truth(range(4))
    results = [a | {"score": 1.0} for a in truth["annotations"] if not a.get("ignore")]
    # Masks that fill the void border are as good.
    filled = PICTURES[NAMES[0]][0].copy()
    filled[filled == VOID] = 1
    rle = coco_mask.encode(np.asfortranarray(filled == 1, dtype=np.uint8))
    results[0] |= {"segmentation": {"size": rle["size"], "counts": rle["counts"].decode()}}
    numbers = score(truth, results)
    assert [numbers[kind]["ap"] for kind in ("box", "mask")] == pytest.approx([1.0, 1.0])
    assert has_void(truth)
    assert voc_scores(truth, results) == {"box_ap50": 1.0, "mask_ap50": 1.0}


def replace(path, content):
    if content is None:
        path.unlink()
    elif isinstance(content, str):
        path.write_text(content)
    elif isinstance(content, np.ndarray):
        save_levels(path, content)
    else:
        content.save(path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("SegmentationObject/2008_000007.png", None, "no such file; add it or take the picture off the list"),
        ("SegmentationClass/2008_000007.png", None, "no such file"),
        ("SegmentationClass/2008_000007.png", "<html>404</html>", "not a picture file; download it anew"),
        (
            "SegmentationObject/2008_000007.png",
            Image.new("RGB", (40, 30)),
            "pixels of mode RGB, not indices of colours",
        ),
        ("SegmentationClass/2008_000007.png", draw((30, 41)), "is 41 x 30 pixels, .*SegmentationObject.* is 40 x 30"),
        ("SegmentationClass/2008_000007.png", draw((30, 40)), "instance 2 has no class, not 1 to 20"),
        ("SegmentationClass/2008_000007.png", draw((30, 40), (0, 0, 40, 30, VOID)), "instance 2 has no class"),
        ("SegmentationClass/2008_000007.png", draw((30, 40), (0, 0, 40, 30, 21)), "instance 2 has class 21, not 1"),
        ("Annotations/2008_000007.xml", "<annotation><object>", "cannot be read .*; download it anew or remove it"),
        ("Annotations/2008_000007.xml", "", "cannot be read"),
    ],
)
def test_a_bad_file_is_named_and_its_picture_left_out(root, file, content, message):
    replace(root / file, content)
    replace(root / "SegmentationObject" / "2011_000100.png", "no picture either")
    data = voc(root)
    first, second = data.problems
    assert first.message.startswith(f"{root / file}: ")
    assert second.message.startswith(f"{root / 'SegmentationObject' / '2011_000100.png'}: not a picture file")
    with pytest.raises(UserError, match=message) as caught:
        _ = data.annotations
    assert str(caught.value).startswith(f"{first.message} (and 1 more problem; ")
    assert "\n" not in str(caught.value)
    annotations, _ = data.read_annotations()
    assert annotations.image_ids.tolist() == [1, 3]
    assert annotations.labels.tolist() == [PERSON, PERSON, SOFA]


def test_truncated_file_is_named(root):
    path = root / "SegmentationObject" / f"{NAMES[0]}.png"
    path.write_bytes(path.read_bytes()[:-30])
    assert [p.message.startswith(f"{path}: cannot be read (") for p in voc(root).problems] == [True]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no list of pictures \(No such file or directory\); set data\.root"),
        (" \n\n", "lists no pictures"),
        ("2007_000032\n2007_000001\n2007_000032\n", "lists 2007_000032 2 times; keep one"),
    ],
)
def test_a_bad_list_is_named(root, content, message):
    path = root / "ImageSets/Segmentation/val.txt"
    replace(path, content)
    with pytest.raises(UserError, match=message) as caught:
        voc(root).read_annotations()
    assert str(caught.value).startswith(f"{path}: ")


def test_a_list_that_is_no_text_is_named(root):
    (root / "ImageSets/Segmentation/val.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"val\.txt: no list of pictures \(.*utf-8"):
        voc(root).read_annotations()


@pytest.mark.parametrize("folder", ["SegmentationObject", "SegmentationClass"])
def test_a_missing_folder_is_one_problem(root, folder):
    (root / folder).rename(root / "elsewhere")
    with pytest.raises(UserError, match=rf"{folder}: no such folder; data\.root must be a VOC year"):
        voc(root).read_annotations()


def test_many_instances_keep_their_numbers(root):
    levels = np.zeros((48, 64), np.uint8)
    levels[:40, :60] = np.kron(np.arange(1, 61).reshape(6, 10), np.ones((6, 6), int)).repeat(2, axis=0)[:40, :60]
    save_levels(root / "SegmentationObject" / f"{NAMES[0]}.png", levels)
    save_levels(root / "SegmentationClass" / f"{NAMES[0]}.png", np.where(levels, levels % 20 + 1, 0).astype(np.uint8))
    annotations = voc(root).annotations
    numbers = np.unique(levels)[1:]
    assert annotations.labels[: len(numbers)].tolist() == (numbers % 20 + 1).tolist()
    assert annotations.areas[: len(numbers)].tolist() == np.bincount(levels.ravel())[numbers].tolist()

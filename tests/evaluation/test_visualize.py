"""Pictures are checked by shape and by which pixels changed."""

import tracemalloc
import warnings

import numpy as np
import pycocotools.mask as mask_utils
import pytest

from maskrcnn.evaluation.visualize import class_color, draw_instances, side_by_side

GRAY = 128


def gray_image(height=400, width=500):
    return np.full((height, width, 3), GRAY, np.uint8)


def rectangle(image, x1, y1, x2, y2):
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[y1:y2, x1:x2] = 1
    return mask_utils.encode(np.asfortranarray(mask))


def draw(image, *rectangles, names=("cat", "dog"), scores=None):
    masks = [rectangle(image, *corners) for corners in rectangles]
    boxes = np.array(rectangles, np.float32).reshape(-1, 4)
    return draw_instances(image, boxes=boxes, masks=masks, names=names[: len(rectangles)], scores=scores)


def changed(picture):
    return (picture != GRAY).any(axis=2)


def test_mask_is_tinted_and_the_rest_is_not():
    image = gray_image()
    picture = draw(image, (100, 100, 200, 180), scores=[0.93])
    assert (picture.shape, picture.dtype) == (image.shape, np.uint8)
    assert (image == GRAY).all()
    inside = picture[130:170, 110:190].reshape(-1, 3)
    assert len(np.unique(inside, axis=0)) == 1
    color = np.array(class_color("cat"))
    assert (np.sign(inside[0].astype(int) - GRAY) == np.sign(color - GRAY)).all()
    assert not (inside[0] == color).any()  # the image shows through
    assert (picture[140, 100] == color).all()
    assert not changed(picture)[200:].any()
    assert not changed(picture)[:, 260:].any()


def test_contour_of_the_mask_is_visible_inside_its_box():
    image = gray_image()
    picture = draw_instances(
        image,
        boxes=np.array([[50, 50, 350, 350]]),
        masks=[rectangle(image, 100, 200, 300, 300)],
        names=["cat"],
    )
    assert np.abs(picture[250, 100] - np.array(class_color("cat"))).max() < 32  # smoothed
    assert not changed(picture)[250, 60:90].any()


def test_of_two_masks_the_smaller_is_on_top():
    small, large = (200, 200, 260, 260), (100, 100, 300, 300)
    pictures = [
        draw(gray_image(), small, large, names=("cat", "dog")),
        draw(gray_image(), large, small, names=("dog", "cat")),
    ]
    alone = draw(gray_image(), small)
    for picture in pictures:
        assert (picture[240, 230] == alone[240, 230]).all()


def test_small_image_is_enlarged():
    picture = draw(gray_image(100, 150), (50, 60, 90, 95), scores=[1.0])
    assert picture.shape == (400, 600, 3)
    assert changed(picture)[300:340, 240:320].all()
    assert not changed(picture)[:200].any()
    assert draw(gray_image(320, 330)).shape == (320, 330, 3)


def test_strip_is_not_enlarged_beyond_measure():
    assert draw(gray_image(4, 5000), (10, 0, 90, 4)).shape == (4, 5000, 3)
    assert draw(gray_image(100, 4000), (10, 10, 90, 60)).shape == (200, 8000, 3)


@pytest.mark.parametrize("name", ["person", "cat", "star"])  # light and dark colors
def test_box_and_contour_are_seen_on_a_background_of_their_own_color(name):
    image = np.full((2000, 2400, 3), class_color(name), np.uint8)
    picture = draw_instances(
        image,
        boxes=np.array([[500, 500, 1500, 1500]]),
        masks=[rectangle(image, 700, 900, 1300, 1300)],
        names=[name],
    )
    contrast = np.abs(picture.astype(int) - class_color(name)).max(axis=2)
    assert contrast[1000, 490:520].max() > 100
    assert contrast[1100, 690:710].max() > 100
    assert contrast[1100, 1000] == 0


def test_labels_without_room_are_smaller():
    roomy = draw(gray_image(), (100, 150, 130, 180), names=("cat",))
    crowded = draw(gray_image(), *[(100, 150, 130, 180)] * 14, names=("dog",) * 13 + ("cat",))
    heights = [(picture == class_color("cat")).all(axis=2).any(axis=1).sum() for picture in (roomy, crowded)]
    assert 0 < heights[1] < heights[0]


@pytest.mark.parametrize("corner", [(0, 0, 30, 30), (470, 370, 500, 400), (0, 0, 500, 400), (-20, -5, 700, 500)])
def test_label_stays_within_the_picture(corner):
    image = gray_image()
    mask = rectangle(image, 200, 200, 210, 210)
    plain = draw_instances(image, boxes=np.array([corner]), masks=[mask], names=["x"])
    labeled = draw_instances(image, boxes=np.array([corner]), masks=[mask], names=["fire hydrant"])
    plate = (labeled == class_color("fire hydrant")).all(axis=2)
    assert plain.shape == labeled.shape
    assert plate.sum() > 500


def test_labels_of_one_place_are_all_to_be_seen():
    names = ("cat", "dog", "bird")
    picture = draw(gray_image(), *[(200, 200, 280, 280)] * 3, names=names)
    for name in names[1:]:
        assert (picture == class_color(name)).all(axis=2).sum() > 300


def test_no_label_hides_an_instance():
    """Small ones in rows, so close that there is room for few labels."""
    places = [(x, y, x + 12, y + 12) for y in range(20, 380, 24) for x in range(20, 480, 24)]
    picture, bare = (draw(gray_image(), *places, names=(name,) * len(places)) for name in ("cat", " "))
    plates = (picture == class_color("cat")).all(axis=2)
    assert plates.sum() > 1000
    for x1, y1, x2, y2 in places:
        assert plates[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].mean() <= 0.5
        assert not (bare[y1:y2, x1:x2] == gray_image()[y1:y2, x1:x2]).all()


def test_labels_have_letters_of_many_scripts_and_fit():
    names = ("кот", "ß", "x" * 300)
    pictures = [draw(gray_image(), (100, 150, 300, 350), names=(name,), scores=[0.5]) for name in names]
    absent = draw(gray_image(), (100, 150, 300, 350), names=("\ufffe",), scores=[0.5])
    assert all((picture != absent).any() for picture in pictures)
    plate = (pictures[2] == class_color("x" * 300)).all(axis=2)[:150]
    assert plate.any(axis=0).sum() < 350


def test_nothing_to_draw():
    image = gray_image()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = draw_instances(image, boxes=np.zeros((0, 4)), masks=[], names=[], scores=[])
    assert (picture == image).all()
    assert not np.shares_memory(picture, image)


def test_class_color_is_stable():
    assert class_color("person") == (89, 255, 128)
    assert len({class_color(name) for name in ("person", "car", "cat", "dog", "bird", "boat")}) == 6
    assert all(0 <= channel <= 255 for channel in class_color("dining table"))


def test_side_by_side():
    left, right = np.full((50, 300, 3), 200, np.uint8), np.full((80, 340, 3), 100, np.uint8)
    sheet = side_by_side(left, right)
    assert sheet.dtype == np.uint8
    strip = sheet.shape[0] - 80
    gap = sheet.shape[1] - 640
    assert strip > 0
    assert gap > 0
    assert (sheet[strip : strip + 50, :300] == left).all()
    assert (sheet[strip:, 300 + gap :] == right).all()
    background = sheet[-1, 0]
    assert (sheet[strip + 50 :, :300] == background).all()
    assert (sheet[:, 300 : 300 + gap] == background).all()
    assert (sheet[:strip, :300] != background).any()
    other = side_by_side(left, right, titles=("prediction", "mask"))
    assert (other[:strip, :300] == sheet[:strip, :300]).all()
    assert (other[:strip, 300:] != sheet[:strip, 300:]).any()


def test_a_thousand_instances_take_little_memory():
    """Whole masks of them would take 1000 x 640 x 640 bytes, several times over."""
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 630, (1000, 2))
    mask = np.zeros((640, 640), np.uint8, order="F")
    masks = []
    for x, y in corners:
        mask[y : y + 10, x : x + 10] = 1
        masks.append(mask_utils.encode(mask))
        mask[:] = 0
    boxes = np.concatenate((corners, corners + 10), axis=1)
    tracemalloc.start()
    drawn = draw_instances(np.zeros((640, 640, 3), np.uint8), boxes=boxes, masks=masks, names=["cell"] * 1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (drawn.reshape(-1, 3).max(axis=1) > 0).mean() > 0.5
    assert peak < 50e6

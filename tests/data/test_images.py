"""Damaged files are refused with their name; whole files of any mode become RGB, upright and reduced as asked."""

import re
from io import BytesIO

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from maskrcnn.data.images import check_images, read_image
from maskrcnn.errors import UserError


def encoded(format, mode="RGB", size=(40, 30)):
    gradient = np.linspace(0, 255, size[0] * size[1] * 3).reshape(size[1], size[0], 3).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(gradient).convert(mode).save(buffer, format)
    return buffer.getvalue()


DAMAGED = {
    "truncated.jpg": (encoded("JPEG")[:-200], "cannot be read"),
    "cut by a byte.jpg": (encoded("JPEG")[:-1], "cannot be read"),
    "truncated.png": (encoded("PNG")[:-60], "cannot be read"),
    "header alone.png": (encoded("PNG")[:30], "not a picture file"),
    "empty.jpg": (b"", "not a picture file"),
    "text.jpg": (b"<html>404 not found</html>", "not a picture file"),
    "zeros.png": (bytes(5000), "not a picture file"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_file_is_named(tmp_path, name):
    content, problem = DAMAGED[name]
    path = tmp_path / name
    path.write_bytes(content)
    message = re.escape(f"{path} (image id 5)") + f": {problem}"
    with pytest.raises(UserError, match=message):
        check_images([path], [5])
    with pytest.raises(UserError, match=message):
        read_image(path, image_id=5)


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.jpg: no such picture file"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(UserError, match=r"none\.jpg \(image id 3\): no such picture file"):
        check_images([tmp_path / "none.jpg"], [3])
    with pytest.raises(UserError, match=r"\(image id 3\): not a file"):
        check_images([tmp_path], [3])
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    with pytest.raises(UserError, match=r"loop\.png: cannot be read \(Too many levels of symbolic links\)"):
        read_image(loop)


def test_of_many_files_the_first_damaged_one_is_named(tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(20)]
    for index, path in enumerate(paths):
        path.write_bytes(encoded("PNG") if index not in (7, 12) else b"x")
    with pytest.raises(UserError, match=r"7\.png \(image id 107\)"):
        check_images(paths, [100 + index for index in range(20)])


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    paths = [tmp_path / "picture.png", tmp_path / "rgb.png"]
    paths[0].write_bytes(encoded("PNG", mode))
    paths[1].write_bytes(encoded("PNG"))
    image, rgb = map(read_image, paths)
    assert (image.shape, image.dtype) == ((30, 40, 3), np.uint8)
    assert image.flags.writeable
    assert np.abs(image.astype(int) - rgb).mean() < (100 if mode == "1" else 30)
    if mode in ("L", "LA", "1"):
        assert (image == image[..., :1]).all()
    if mode == "RGBA":
        assert np.array_equal(image, rgb)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_jpeg_become_rgb(tmp_path, mode):
    path = tmp_path / "picture.jpg"
    path.write_bytes(encoded("JPEG", mode))
    assert read_image(path).shape == (30, 40, 3)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "WEBP"])
def test_whole_files_pass(tmp_path, format):
    paths = [tmp_path / "plain", tmp_path / "trailing"]
    paths[0].write_bytes(encoded(format))
    paths[1].write_bytes(encoded(format) + b"\0" * 20)  # as cameras and editors leave it
    check_images(paths, [1, 2])
    assert np.array_equal(*map(read_image, paths))


def test_a_picture_too_large_to_decode_is_named(tmp_path, monkeypatch):
    path = tmp_path / "huge.png"
    path.write_bytes(encoded("PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"huge\.png: cannot be read"):
        read_image(path)


# What the annotations call 30 rows of 41 columns, stored so that each EXIF orientation turns it upright. The
# odd sizes leave an incomplete last block to every shrink.
UPRIGHT = cv2.resize(np.random.default_rng(5).integers(0, 256, (6, 8, 3), dtype=np.uint8), (41, 30))


def stored(path, orientation, *, pixels=UPRIGHT, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_a_picture_as_viewers_do(tmp_path, orientation, suffix):
    path = stored(tmp_path / f"turned.{suffix}", orientation)
    with Image.open(path) as image:
        turned = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert turned.shape == ((41, 30, 3) if orientation > 4 else (30, 41, 3))
    assert np.array_equal(read_image(path), turned)
    assert np.array_equal(read_image(path, size=turned.shape[:2]), turned)
    if suffix != "jpg":  # a reduced JPEG is compared in the tests below
        assert np.array_equal(read_image(path, shrink=4), np.asarray(Image.fromarray(turned).reduce(4)))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_the_annotated_size_decides_whether_to_turn(tmp_path, orientation, suffix):
    path = stored(tmp_path / f"turned.{suffix}", orientation)
    plain = stored(tmp_path / f"plain.{suffix}", 1)
    assert np.array_equal(read_image(path, size=(30, 41)), read_image(plain))
    assert read_image(path, size=[41, 30]).shape == (41, 30, 3)
    square = stored(tmp_path / f"square.{suffix}", orientation, pixels=UPRIGHT[:, :30])
    assert np.array_equal(read_image(square, size=(30, 30)), read_image(square))
    assert not np.array_equal(read_image(square, size=(30, 30)), read_image(plain)[:, :30])


@pytest.mark.parametrize(("orientation", "found"), [(1, "41 x 30"), (6, "30 x 41"), (99, "41 x 30")])
def test_a_size_that_fits_neither_way_is_named(tmp_path, orientation, found):
    path = stored(tmp_path / "a.png", orientation)
    message = rf"a\.png \(image id 7\) is {found} pixels, but its annotations say 40 x 31: correct width and height"
    with pytest.raises(UserError, match=message):
        read_image(path, image_id=7, size=(31, 40))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08", b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\0\0\0\1"]
)
def test_damaged_exif_is_no_orientation(tmp_path, exif):
    path = tmp_path / "a.jpg"
    Image.fromarray(UPRIGHT).save(path, exif=exif)
    assert read_image(path, size=(30, 41)).shape == (30, 41, 3)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), shrink=st.sampled_from([2, 4, 8]), seed=st.integers(0, 99))
def test_shrink_is_the_mean_of_blocks(tmp_path_factory, rows, columns, shrink, seed):
    path = tmp_path_factory.mktemp("blocks") / "a.png"
    size = (columns * shrink, rows * shrink)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    mean = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA)
    assert np.abs(read_image(path, shrink=shrink).astype(int) - mean).max() <= 1


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    shrink=st.sampled_from([1, 2, 4, 8]),
    orientation=st.integers(1, 8),
    suffix=st.sampled_from(["jpg", "png"]),
)
@example(size=(2, 5), shrink=4, orientation=1, suffix="jpg")  # narrower than a block
def test_shrink_keeps_incomplete_blocks_at_the_far_end(tmp_path_factory, size, shrink, orientation, suffix):
    path = stored(
        tmp_path_factory.mktemp("odd") / f"a.{suffix}",
        orientation,
        pixels=cv2.resize(UPRIGHT, size),
        **({"quality": 98, "subsampling": 0} if suffix == "jpg" else {}),
    )
    whole = read_image(path).astype(float)
    reduced = read_image(path, shrink=shrink)
    rows, columns = -(-whole.shape[0] // shrink), -(-whole.shape[1] // shrink)
    assert reduced.shape == (rows, columns, 3)
    means = [
        [whole[y : y + shrink, x : x + shrink].mean(axis=(0, 1)) for x in range(0, columns * shrink, shrink)]
        for y in range(0, rows * shrink, shrink)
    ]
    difference = np.abs(reduced - np.array(means))
    if suffix == "png":
        assert difference.max() <= 1
    else:  # what a JPEG stores beyond its border counts in its incomplete blocks
        complete = difference[: whole.shape[0] // shrink, : whole.shape[1] // shrink]
        assert complete.size == 0 or complete.mean() < 6


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_a_jpeg_is_decoded_at_the_reduced_size(tmp_path, monkeypatch, mode, shrink):
    smooth = cv2.GaussianBlur(cv2.resize(UPRIGHT, (320, 240)), (0, 0), 8)
    path = tmp_path / "a.jpg"
    Image.fromarray(smooth).convert(mode).save(path, quality=95)
    mean = cv2.resize(read_image(path), None, fx=1 / shrink, fy=1 / shrink, interpolation=cv2.INTER_AREA)
    monkeypatch.setattr(Image.Image, "reduce", None)
    assert np.abs(read_image(path, shrink=shrink).astype(int) - mean).mean() < 1


def test_shrink_is_checked():
    with pytest.raises(ValueError, match="shrink is 3"):
        read_image("a.png", shrink=3)


def test_adobe_cmyk_has_its_colours(tmp_path):
    colours = np.zeros((32, 32, 3), np.uint8)
    colours[:16, :16], colours[:16, 16:], colours[16:, :16], colours[16:, 16:] = (220, 30, 30), 255, (20, 180, 40), 0
    path = tmp_path / "a.jpg"
    Image.fromarray(colours).convert("CMYK").save(path, quality=98)  # inverted, with the Adobe marker
    assert b"Adobe" in path.read_bytes()[:200]
    assert np.abs(read_image(path).astype(int) - colours).max() <= 4
    assert np.abs(read_image(path).astype(int) - cv2.imread(str(path))[..., ::-1]).max() <= 2


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_the_upper_half_of_16_bits_is_kept(tmp_path, name):
    levels = np.array([[0, 255, 256, 1000], [32767, 32768, 65279, 65535]], dtype=np.uint16)
    assert cv2.imwrite(str(tmp_path / name), levels)
    expected = [[0, 0, 1, 3], [127, 128, 254, 255]]
    image = read_image(tmp_path / name)
    assert image.dtype == np.uint8
    assert [image[..., channel].tolist() for channel in range(3)] == [expected] * 3
    assert read_image(tmp_path / name, shrink=2)[..., 0].tolist() == [[64, 128]]  # of the 8-bit levels


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B"])
def test_16_bits_of_every_byte_order_are_exact(tmp_path, mode):
    dtype = {"I": "<i4", "I;16": "<u2", "I;16B": ">u2"}[mode]
    levels = np.arange(0, 65536, 257).reshape(16, 16).astype(dtype)
    Image.frombytes(mode, (16, 16), levels.tobytes()).save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as image:
        assert image.mode == mode
    assert read_image(tmp_path / "a.tif")[..., 1].tolist() == (levels // 256).tolist()


def test_levels_that_are_no_picture_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(np.ones((4, 4), np.float32)).save(path)
    with pytest.raises(UserError, match=r"a\.tif \(image id 2\) has pixels of mode F"):
        read_image(path, image_id=2)
    Image.fromarray(np.array([[-1, 70000]], np.int32)).save(path)
    with pytest.raises(UserError, match=r"a\.tif has levels -1 to 70000, more than 16 bits"):
        read_image(path)


def test_names_and_wrong_suffixes_do_not_matter(tmp_path):
    path = tmp_path / "naïve 写真 (1) [a]=b.jpg"
    path.write_bytes(encoded("PNG"))
    check_images([path], [1])
    assert read_image(path, size=(30, 40)).shape == (30, 40, 3)


def test_a_wide_panorama_is_read(tmp_path):
    Image.new("RGB", (12000, 500), (10, 200, 30)).save(tmp_path / "a.jpg", quality=95)
    assert read_image(tmp_path / "a.jpg").shape == (500, 12000, 3)
    reduced = read_image(tmp_path / "a.jpg", shrink=8)
    assert reduced.shape == (63, 1500, 3)
    assert np.abs(reduced.astype(int) - (10, 200, 30)).max() <= 2


@pytest.mark.parametrize("shrink", [2, 8])
def test_damage_is_found_in_a_reduced_picture_too(tmp_path, shrink):
    for name, keep in (("a.jpg", slice(-200)), ("b.jpg", slice(-1)), ("c.png", slice(-60))):
        (tmp_path / name).write_bytes(encoded("PNG" if "png" in name else "JPEG")[keep])
        with pytest.raises(UserError, match=f"{name}: cannot be read"):
            read_image(tmp_path / name, shrink=shrink)

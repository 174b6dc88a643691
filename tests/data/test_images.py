"""Damaged files are refused with their name; whole files of any mode become RGB."""

import re
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

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
    with pytest.raises(UserError, match=r"\(image id 3\): cannot be read"):
        check_images([tmp_path], [3])


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

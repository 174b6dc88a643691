"""Picture files: decode them to RGB as they were annotated, and find damaged ones before a run starts."""

import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from maskrcnn.errors import UserError

REMEDY = "replace it or remove it from the annotations"  # what an error about a damaged file ends with

# First and last bytes of a whole file. Anything else is decoded to find out.
_JPEG_END = b"\xff\xd9"
_FORMATS = ((b"\xff\xd8\xff", _JPEG_END), (b"\x89PNG\r\n\x1a\n", b"IEND\xae\x42\x60\x82"))

_SHRINKS = (1, 2, 4, 8)
_JPEG_FLAGS = {  # what a grey flag adds to a colour flag is the reduction alone
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
_EIGHT_BITS = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
_SIXTEEN_BITS = {"I", "I;16", "I;16B", "I;16L"}  # "I" has 32, of which pictures use 16

# EXIF orientation -> what turns the stored picture upright, and what turns it back.
_Turn = Image.Transpose
_UPRIGHT = {
    2: (_Turn.FLIP_LEFT_RIGHT, _Turn.FLIP_LEFT_RIGHT),
    3: (_Turn.ROTATE_180, _Turn.ROTATE_180),
    4: (_Turn.FLIP_TOP_BOTTOM, _Turn.FLIP_TOP_BOTTOM),
    5: (_Turn.TRANSPOSE, _Turn.TRANSPOSE),
    6: (_Turn.ROTATE_270, _Turn.ROTATE_90),
    7: (_Turn.TRANSVERSE, _Turn.TRANSVERSE),
    8: (_Turn.ROTATE_90, _Turn.ROTATE_270),
}
_FIRST_ON_ITS_SIDE = 5  # from here on, upright has the stored width as its height


def read_image(
    path: Path, *, image_id: int | None = None, size: tuple[int, int] | None = None, shrink: int = 1
) -> np.ndarray:
    """Decode a picture file to RGB uint8 [ceil(H / shrink), ceil(W / shrink), 3].

    The picture is turned by its EXIF orientation, as viewers show it, unless only the stored one has the
    annotated `size`. Of 16 bits per pixel the upper 8 are kept; transparency is dropped.

    Args:
        path: The file.
        image_id: For messages.
        size: (height, width) in the annotations; None takes whatever the file has.
        shrink: 1, 2, 4 or 8. Pixel i of a reduced picture is the mean of pixels [i * shrink, (i + 1) * shrink)
            of the whole one, in a JPEG approximately so: it is decoded at the smaller size, which saves time.

    Raises:
        UserError: The file is missing, truncated, not a picture, of a kind that has no RGB, or not of `size`.
    """
    if shrink not in _SHRINKS:
        raise ValueError(f"shrink is {shrink!r}, should be 1, 2, 4 or 8")
    name = f"{path}" if image_id is None else f"{path} (image id {image_id})"
    if path.exists() and not path.is_file():
        raise UserError(f"{name}: not a file; {REMEDY}")
    try:
        with Image.open(path) as image:
            turn = _turn(image, name, size)
            if image.format == "JPEG" and image.mode == "RGB" and turn is None:
                fast = _decode_jpeg(path, shrink)
                if fast is not None:
                    return fast
            return _decode(image, name, turn, shrink)
    except FileNotFoundError:
        raise UserError(f"{name}: no such picture file") from None
    except UnidentifiedImageError:
        raise UserError(f"{name}: not a picture file; {REMEDY}") from None
    except (OSError, RuntimeError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"{name}: cannot be read ({reason}); {REMEDY}") from None


def to_rgb_array(image: Image.Image) -> np.ndarray:
    """The pixels of an opened picture, uint8 [H, W, 3], made as `read_image` makes them.

    Raises:
        UserError: It is of a kind that has no RGB.
    """
    name = "the picture"
    return _decode(image, name, _turn(image, name, None), 1)


def _decode_jpeg(path: Path, shrink: int) -> np.ndarray | None:
    """OpenCV's pixels, which are Pillow's in three quarters of the time; None where the file may be damaged.

    OpenCV fills up what a truncated file lacks. Pillow, which tells, then has the last word.
    """
    content = np.fromfile(path, dtype=np.uint8)
    if not content[-2:].tobytes().endswith(_JPEG_END):
        return None
    return cv2.imdecode(content, _JPEG_FLAGS[shrink] | cv2.IMREAD_IGNORE_ORIENTATION)


def _decode(image: Image.Image, name: str, turn: Image.Transpose | None, shrink: int) -> np.ndarray:
    width, height = image.size
    whole_blocks = width % shrink == 0 and height % shrink == 0
    # A turn moves the incomplete blocks of the last row and column to the other end: those are made after it.
    if min(image.size) >= shrink and (turn is None or whole_blocks):
        image.draft(image.mode, (width // shrink, height // shrink))
    if image.size == (-(-width // shrink), -(-height // shrink)):
        shrink = 1  # only a JPEG can be decoded at that size
    rgb = _to_rgb(image, name)
    if turn is not None:
        rgb = rgb.transpose(turn)
    return np.array(rgb.reduce(shrink) if shrink > 1 else rgb)  # writable, as torch wants it


def _turn(image: Image.Image, name: str, size: tuple[int, int] | None) -> Image.Transpose | None:
    """What makes the annotated picture of the one that is decoded."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, struct.error, ValueError):
        orientation = 1  # a viewer shows a picture with damaged EXIF as it is stored
    if image.format == "TIFF":
        image.load()  # turns it; older Pillows swap the size only now
    decoded = (image.height, image.width)
    if orientation in _UPRIGHT:
        turn, back = _UPRIGHT[orientation]
        other = decoded[::-1] if orientation >= _FIRST_ON_ITS_SIDE else decoded
        choices = [(decoded, None), (other, back)] if image.format == "TIFF" else [(other, turn), (decoded, None)]
    else:
        choices = [(decoded, None)]
    if size is None:
        return choices[0][1]
    for found, change in choices:
        if found == tuple(size):
            return change
    height, width = choices[0][0]
    raise UserError(
        f"{name} is {width} x {height} pixels, but its annotations say {size[1]} x {size[0]}: "
        "correct width and height there"
    )


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode in _SIXTEEN_BITS:
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > np.iinfo(np.uint16).max:
            raise UserError(f"{name} has levels {levels.min()} to {levels.max()}, more than 16 bits hold; convert it")
        image = Image.fromarray((levels >> 8).astype(np.uint8))
    elif image.mode not in _EIGHT_BITS:
        raise UserError(f"{name} has pixels of mode {image.mode}, which has no RGB; convert it to 8 or 16 bits")
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def check_images(
    paths: list[Path], image_ids: list[int], *, sizes: Sequence[tuple[int, int] | None] | None = None
) -> None:
    """Look at the head and tail of every file; decode those that look damaged.

    Args:
        paths: The files.
        image_ids: For messages.
        sizes: (height, width) of each in the annotations.

    Raises:
        UserError: The first file that is missing, truncated, not a picture or not of its size.
    """
    sizes = sizes or [None] * len(paths)
    with ThreadPoolExecutor(max_workers=8) as pool:
        whole = list(pool.map(_looks_whole, paths, sizes))
    for path, image_id, size, fine in zip(paths, image_ids, sizes, whole, strict=True):
        if not fine:
            read_image(path, image_id=image_id, size=size)


def _looks_whole(path: Path, size: tuple[int, int] | None) -> bool:
    if not path.is_file():
        return False  # to open a pipe would wait for its other end
    try:
        with path.open("rb") as file:
            head = file.read(8)
            file.seek(-8, 2)
            tail = file.read(8)
            file.seek(0)
            with Image.open(file) as image:
                _turn(image, "", size)
    except (OSError, UserError, Image.DecompressionBombError):
        return False
    return any(head.startswith(first) and tail.endswith(last) for first, last in _FORMATS)

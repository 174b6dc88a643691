"""Picture files: decode them, and find damaged ones before a run starts."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from maskrcnn.errors import UserError

# First and last bytes of a whole file. Anything else is decoded to find out.
_FORMATS = ((b"\xff\xd8\xff", b"\xff\xd9"), (b"\x89PNG\r\n\x1a\n", b"IEND\xae\x42\x60\x82"))


def read_image(path: Path, *, image_id: int | None = None) -> np.ndarray:
    """Decode a picture file to RGB uint8 [H, W, 3].

    Raises:
        UserError: The file is missing, truncated or not a picture.
    """
    name = f"{path}" if image_id is None else f"{path} (image id {image_id})"
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise UserError(f"{name}: no such picture file") from None
    except UnidentifiedImageError:
        raise UserError(f"{name}: not a picture file; replace it or remove it from the annotations") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{name}: cannot be read ({error}); replace it or remove it from the annotations") from None


def check_images(paths: list[Path], image_ids: list[int]) -> None:
    """Look at the head and tail of every file; decode those that look damaged.

    Raises:
        UserError: The first file that is missing, truncated or not a picture.
    """
    with ThreadPoolExecutor(max_workers=8) as pool:
        whole = list(pool.map(_looks_whole, paths))
    for path, image_id, fine in zip(paths, image_ids, whole, strict=True):
        if not fine:
            read_image(path, image_id=image_id)


def _looks_whole(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(8)
            file.seek(-8, 2)
            tail = file.read(8)
    except OSError:
        return False
    return any(head.startswith(first) and tail.endswith(last) for first, last in _FORMATS)

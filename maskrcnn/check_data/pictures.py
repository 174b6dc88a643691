"""Every picture of a split, decoded once."""

import hashlib
import os
import stat
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Literal

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from maskrcnn.check_data.splits import CheckedSplit, Finding
from maskrcnn.data.dataset import InstanceDataset
from maskrcnn.errors import UserError

UNREADABLE = "pictures that cannot be read"
DARK = "16-bit pictures that will look dark"

# Of 65,536 levels, the upper 8 bits are kept: a picture below this one is left with 16 levels or fewer.
_DARK = 4096
# Pictures of more pixels are decoded one after the other, so that memory does not grow with the threads.
_LARGE = 25_000_000
_BLOCK = 256  # pictures that are handed to the threads at a time


@dataclass(frozen=True)
class _Picture:
    """What came of a file: the digest of its bytes, and what is wrong or remarkable, behind its name."""

    digest: bytes = b""
    problem: str | None = None
    brightest: int | None = None


def check_pictures(split: CheckedSplit, *, workers: int | None) -> None:
    """Decode all pictures; fills in `whole` and `digests` and adds to `findings`.

    Args:
        split: The pictures.
        workers: Threads that decode; None for one per core, at most 8.
    """
    count = len(split.whole)
    folder = split.dataset.images
    if count and not folder.is_dir():
        grade: Literal["error", "warning"] = "error" if split.used.any() else "warning"
        message = f"data.{split.name.split()[0]}_images={folder}: no such folder"
        split.findings.append(Finding(grade, UNREADABLE, split.name, message))
        return
    threads = max(1, min(os.cpu_count() or 1, 8) if workers is None else workers)
    large = Lock()
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with (
        warnings.catch_warnings(),
        Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress,
        ThreadPoolExecutor(threads) as pool,
    ):
        warnings.simplefilter("ignore")  # Pillow's, about metadata and large pictures
        task = progress.add_task(f"{split.name}: decoding pictures", total=count)
        for start in range(0, count, _BLOCK):
            block = range(start, min(start + _BLOCK, count))
            pictures = pool.map(lambda position: _look_at(split.dataset, position, large), block)
            for position, picture in zip(block, pictures, strict=True):
                _take(split, position, picture)
                progress.advance(task)


def _take(split: CheckedSplit, position: int, picture: _Picture) -> None:
    split.digests[position] = picture.digest
    split.whole[position] = picture.problem is None
    if picture.problem is not None:
        used = bool(split.used[position])
        message = picture.problem if used else f"{picture.problem} (training does without it)"
        finding = split.about_image(position, message, grade="error" if used else "warning", kind=UNREADABLE)
        split.findings.append(finding)
    elif picture.brightest is not None and picture.brightest < _DARK:
        levels = f"has 16 bits per pixel but no level above {picture.brightest}"
        split.findings.append(
            split.about_image(position, f"{levels} of 65535: it will look dark; stretch its levels", kind=DARK)
        )


def _look_at(dataset: InstanceDataset, position: int, large: Lock) -> _Picture:
    path = dataset.image_path(position)
    size = tuple(dataset.annotations.sizes[position].tolist())
    digest = b""
    try:
        digest = _digest(path)
        with large if size[0] * size[1] > _LARGE else nullcontext():
            image = dataset.read_image(position)
            if image.dtype != np.uint8 or image.shape != (*size, 3):
                raise UserError(f"is read as {image.dtype} {list(image.shape)}, should be uint8 {[*size, 3]}")
            return _Picture(digest, brightest=_brightest(path))
    except UserError as error:
        name = f"{path} (image id {int(dataset.annotations.image_ids[position])})"
        return _Picture(digest, problem=str(error).removeprefix(name).strip())
    except Exception as error:  # a class of the user's own may raise anything
        return _Picture(digest, problem=f"cannot be read ({type(error).__name__}: {error})")


def _digest(path: Path) -> bytes:
    """Of the bytes of a file.

    Raises:
        UserError: It is no file; without the name.
    """
    try:
        # Whatever else has a name can be waited for forever.
        if not stat.S_ISREG(path.stat().st_mode):
            what = "is a directory" if path.is_dir() else "is not a regular file"
            raise UserError(f"{what}; replace it by the picture or remove it from the annotations")
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    except FileNotFoundError:
        raise UserError("is missing; add it or remove it from the annotations") from None
    except (OSError, ValueError) as error:  # ValueError: no file can have this name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot be opened ({reason}); replace it or remove it from the annotations") from None


def _brightest(path: Path) -> int | None:
    """The highest level of a picture with 16 bits, None for any other."""
    try:
        with Image.open(path) as image:
            return int(image.getextrema()[1]) if image.mode.startswith("I") else None  # type: ignore[arg-type]
    except (OSError, ValueError):
        return None  # a format that only a class of the user's own can read

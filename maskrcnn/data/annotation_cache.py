"""Indexed annotation files on disk: parsing a large one takes half a minute, mapping its arrays no time.

A folder holds one file's arrays and is named by the file's content, so it can't be out of date.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

from filelock import FileLock

from maskrcnn.data.annotations import Annotations, Problem

log = logging.getLogger(__name__)

# Smaller files are parsed faster than one would look for them.
SMALLEST_FILE = 8 * 2**20

# Part of the folder's name; changes whenever the arrays or the checks of what is in them do.
_VERSION = 1

Reader = Callable[[Path], tuple[Annotations, list[Problem]]]


def default_cache() -> Path:
    """$MASKRCNN_CACHE, else $XDG_CACHE_HOME/maskrcnn, else ~/.cache/maskrcnn."""
    if chosen := os.environ.get("MASKRCNN_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "maskrcnn"


def through_cache(read: Reader, source: Path, root: Path | None = None) -> tuple[Annotations, list[Problem]]:
    """What `read` makes of an annotation file: from the cache if it is there, and put there if it isn't.

    Of several processes that look for the same file one reads it, and the others wait. Files with problems
    are not kept. Where the cache can't be written, there is one warning and the arrays stay in memory.

    Args:
        read: Reads the file.
        source: The file; a small one is simply read.
        root: Folder of the cache, None for `default_cache`.
    """
    if source.stat().st_size < SMALLEST_FILE:
        return read(source)
    root = root or default_cache()
    with source.open("rb") as file:
        content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    folder = root / f"{content}-{_VERSION}"
    try:
        return _open(folder, source), []
    except (OSError, ValueError):
        pass  # not there yet, or damaged: the one that holds the lock will see
    lock = FileLock(root / f"{folder.name}.lock")
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        _warn(root, getattr(error, "strerror", None) or str(error))
        return read(source)
    try:
        return _build(read, source, folder)
    finally:
        lock.release()


def _build(read: Reader, source: Path, folder: Path) -> tuple[Annotations, list[Problem]]:
    """Read the file and fill its folder, if no other process has done so in the meantime."""
    if folder.exists():
        try:
            return _open(folder, source), []
        except (OSError, ValueError) as error:
            log.warning("%s: made anew, it is damaged (%s)", folder, error)
    else:
        log.info("%s: read for the first time; from now on it comes from %s", source, folder)
    annotations, problems = read(source)
    if problems:
        return annotations, problems
    unfinished = folder.with_suffix(".tmp")
    try:
        for old in (unfinished, folder):
            if old.exists():
                shutil.rmtree(old)
        annotations.save(unfinished)
        unfinished.rename(folder)
        return _open(folder, source), []
    except (OSError, ValueError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        _warn(folder.parent, getattr(error, "strerror", None) or str(error))
        return annotations, []


def _open(folder: Path, source: Path) -> Annotations:
    """Annotations of a folder, which may have come from a file of another name.

    Raises:
        OSError: A file is missing or can't be read.
        ValueError: A file is damaged.
    """
    return replace(Annotations.open(folder), source=source)


@cache
def _warn(root: Path, reason: str) -> None:
    """Once for each folder and reason."""
    log.warning("%s: annotations can't be cached there (%s); set MASKRCNN_CACHE to another folder", root, reason)

"""What there is to predict on: pictures, videos and cameras."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from maskrcnn.errors import UserError

PICTURES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif"}
PICTURES |= {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif", ".heic", ".heif"}
VIDEOS = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".mts", ".m2ts", ".3gp"}


@dataclass(frozen=True)
class Source:
    """A picture, a video or a camera.

    Attributes:
        origin: The file, or the number of the camera.
        name: What its outputs are called: unique, without a suffix, with the folders below the one that was named.
    """

    origin: Path | int
    name: str


@dataclass(frozen=True)
class Sources:
    """What was found.

    Attributes:
        pictures: Picture files.
        videos: Video files and cameras.
        others: Files in folders that are neither by their suffix.
        problems: What was named and is not there, a line for each.
    """

    pictures: list[Source] = field(default_factory=list)
    videos: list[Source] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def find_sources(source: str | int | Sequence[str | int], *, output: Path) -> Sources:
    """Look for what `source=` names.

    Args:
        source: A file, a folder, a pattern such as `*.jpg`, the number of a camera; or a list of these. A folder is
            searched with the folders below it, hidden ones left out.
        output: A folder that is left out: its pictures were made here.

    Raises:
        UserError: There is no picture, video or camera at all.
    """
    found = Sources()
    seen: set[Path | int] = set()
    names: set[str] = set()
    for entry in [source] if isinstance(source, str | int) else source:
        files = list(_expand(str(entry), output.resolve()))
        if not files:
            is_empty = Path(str(entry)).expanduser().is_dir()
            what = "holds no file" if is_empty else "no such file or folder, and no file of this pattern"
            found.problems.append(f"{entry}: {what}")
        for origin, name, chosen in files:
            group = _group(found, origin, chosen)
            key = origin.resolve() if isinstance(origin, Path) else origin
            if group is None:
                found.others.append(Path(origin))  # type: ignore[arg-type]
            elif key not in seen:
                seen.add(key)
                group.append(Source(origin, _unique(name, names)))
    if not found.pictures and not found.videos:
        what = found.problems[0] if found.problems else f"{source}: holds no picture and no video"
        raise UserError(f"source={what}; give a picture, a video, a folder, '*.jpg' in quotes, or a camera's number")
    return found


def _expand(entry: str, output: Path) -> Iterator[tuple[Path | int, str, bool]]:
    """Origin and name of each file that an entry stands for, and whether it was chosen by its own name."""
    path = Path(entry).expanduser()
    if path.is_dir():
        yield from _inside(path, output, prefix="")
    elif path.exists():
        yield path, path.stem, True
    elif entry.isdecimal():
        yield int(entry), f"camera{entry}", True
    else:
        for match in map(Path, sorted(glob.glob(str(path), recursive=True))):  # noqa: PTH207  # that takes no /a/*
            if match.is_dir():
                yield from _inside(match, output, prefix=f"{match.name}/")
            elif output not in match.resolve().parents:
                yield match, match.stem, False


def _inside(folder: Path, output: Path, *, prefix: str) -> Iterator[tuple[Path, str, bool]]:
    for parent, folders, files in os.walk(folder):
        here = Path(parent)
        if here.resolve() == output:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                file = here / name
                yield file, prefix + file.relative_to(folder).with_suffix("").as_posix(), False


def _group(found: Sources, origin: Path | int, chosen: bool) -> list[Source] | None:
    if isinstance(origin, int) or origin.suffix.lower() in VIDEOS:
        return found.videos
    return found.pictures if chosen or origin.suffix.lower() in PICTURES else None


def _unique(stem: str, taken: set[str]) -> str:
    name, number = stem, 1
    while name.casefold() in taken:  # some file systems do not tell a from A
        number += 1
        name = f"{stem}-{number}"
    taken.add(name.casefold())
    return name

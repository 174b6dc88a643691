"""A large file is parsed once; whatever happens to the cache, its annotations are right."""

import json
import logging
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from maskrcnn.data import annotation_cache, coco
from maskrcnn.data.annotation_cache import default_cache
from maskrcnn.data.coco import CocoDataset


@pytest.fixture(autouse=True)
def every_file_is_large(monkeypatch):
    monkeypatch.setattr(annotation_cache, "SMALLEST_FILE", 0)


@pytest.fixture
def path(tmp_path, write):
    return write(tmp_path)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def parsed(monkeypatch):
    """Files that were parsed."""
    paths = []

    def read(path):
        paths.append(path)
        return read_coco(path)

    read_coco = coco.read_coco
    monkeypatch.setattr(coco, "read_coco", read)
    return paths


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def load(path, root):
    return CocoDataset(annotations=path, images=path.parent, cache=root).annotations


def folders(root):
    return [path for path in root.iterdir() if path.is_dir()]


def test_second_load_comes_from_the_cache(path, root, parsed):
    first, second = load(path, root), load(path, root)
    assert parsed == [path]
    assert first.folder == second.folder == folders(root)[0]
    assert second.ground_truth(range(4)) == coco.read_coco(path)[0].ground_truth(range(4))


def test_small_files_are_not_cached(path, root, parsed, monkeypatch):
    monkeypatch.setattr(annotation_cache, "SMALLEST_FILE", path.stat().st_size + 1)
    assert load(path, root).folder is None
    assert not root.exists()
    monkeypatch.setattr(annotation_cache, "SMALLEST_FILE", path.stat().st_size)
    assert load(path, root).folder is not None


def test_content_is_the_key(path, root, parsed, tmp_path):
    load(path, root)
    moved = path.rename(tmp_path / "moved.json")
    assert load(moved, root).source == moved
    assert parsed == [path]
    stat = moved.stat()
    moved.write_text(moved.read_text().replace("kite", "bike"))
    os.utime(moved, (stat.st_atime, stat.st_mtime))
    assert [category["name"] for category in load(moved, root).categories] == ["boat", "cup", "bike"]
    assert parsed == [path, moved]
    assert len(folders(root)) == 2


def test_notes_are_kept(tmp_path, write, content, root):
    del content["annotations"][0]["area"]
    path = write(tmp_path, content)
    assert load(path, root).notes == load(path, root).notes != ()


def test_files_with_problems_are_not_cached(tmp_path, write, content, root, parsed):
    path = write(tmp_path, content)
    content["annotations"][0]["image_id"] = 99
    path.write_text(json.dumps(content))
    for _ in range(2):
        assert len(CocoDataset(annotations=path, images=path.parent, cache=root).problems) == 1
    assert parsed == [path, path]
    assert folders(root) == []


def flip(path):
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 64]))


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES = {
    "flipped bits": lambda folder: flip(folder / "points.npy"),
    "flipped bits of a name": lambda folder: flip(folder / "name_bytes.npy"),
    "flipped bits of the rest": lambda folder: flip(folder / "meta.json"),
    "truncated": lambda folder: cut(folder / "boxes.npy"),
    "empty": lambda folder: (folder / "boxes.npy").write_bytes(b""),
    "missing": lambda folder: (folder / "labels.npy").unlink(),
    "no checksums": lambda folder: (folder / "checksums.json").unlink(),
    "checksums of another kind": lambda folder: (folder / "checksums.json").write_text("[]"),
    "nothing left": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folder_is_made_anew(path, root, parsed, caplog, damage):
    expected = load(path, root).ground_truth(range(4))
    (folder,) = folders(root)
    DAMAGES[damage](folder)
    assert load(path, root).ground_truth(range(4)) == expected
    assert parsed == [path, path]
    (warning,) = warnings(caplog)
    assert warning.startswith(f"{folder}: made anew, it is damaged (")
    load(path, root)
    assert parsed == [path, path]
    assert folders(root) == [folder]


def test_what_an_interrupted_process_left_is_no_obstacle(path, root, parsed):
    load(path, root)
    (folder,) = folders(root)
    folder.rename(folder.with_suffix(".tmp"))
    assert load(path, root).folder == folder
    assert folders(root) == [folder]
    assert len(parsed) == 2


def not_a_folder(root, monkeypatch):
    root.write_text("")


def no_space(root, monkeypatch):
    def save(annotations, folder):
        folder.mkdir()
        raise OSError("No space left on device")

    monkeypatch.setattr(annotation_cache.Annotations, "save", save)


def no_locks(root, monkeypatch):
    class Lock:
        def __init__(self, path):
            pass

        def acquire(self):
            raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(annotation_cache, "FileLock", Lock)


@pytest.fixture(params=[not_a_folder, no_space, no_locks])
def obstacle(request, root, monkeypatch):
    request.param(root, monkeypatch)


@pytest.mark.usefixtures("obstacle")
def test_cache_that_cannot_be_written_is_one_warning(path, root, parsed, caplog):
    other = path.with_name("other.json")
    other.write_text(path.read_text() + " ")
    for source in (path, other):
        annotations = load(source, root)
        assert annotations.folder is None
        assert len(annotations.labels) == 6
    assert parsed == [path, other]
    (warning,) = warnings(caplog)
    assert warning.startswith(f"{root}: annotations can't be cached there (")
    assert not root.is_dir() or folders(root) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_of_somebody_else(path, root, caplog):
    root.mkdir(mode=0o500)
    assert load(path, root).folder is None
    assert len(caplog.records) == 1


def test_read_only_cache_is_read(path, root, parsed, monkeypatch):
    load(path, root)
    no_locks(root, monkeypatch)
    assert load(path, root).folder is not None
    assert parsed == [path]


def test_of_several_threads_one_parses(path, root, parsed):
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: load(path, root), range(4)))
    assert parsed == [path]
    assert all(annotations.folder == loaded[0].folder for annotations in loaded)


def _load_and_log(path, root, log):
    annotation_cache.SMALLEST_FILE = 0
    read_coco = coco.read_coco

    def read(path):
        with log.open("a") as file:
            file.write("parsed\n")
        return read_coco(path)

    coco.read_coco = read
    assert len(load(path, root).labels) == 6


def test_of_several_processes_one_parses(path, root, tmp_path):
    context = multiprocessing.get_context("fork")
    arguments = (path, root, tmp_path / "log")
    processes = [context.Process(target=_load_and_log, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "log").read_text() == "parsed\n"


def test_default_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("MASKRCNN_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache() == Path("/home/me/.cache/maskrcnn")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    assert default_cache() == Path("/scratch/maskrcnn")
    monkeypatch.setenv("MASKRCNN_CACHE", "~/arrays")
    assert default_cache() == Path("/home/me/arrays")


def test_default_folder_is_used(path, root, monkeypatch):
    monkeypatch.setenv("MASKRCNN_CACHE", str(root))
    assert load(path, None).folder.parent == root

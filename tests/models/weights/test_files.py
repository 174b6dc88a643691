import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskrcnn.errors import UserError
from maskrcnn.models.backbones import ResNet
from maskrcnn.models.weights import CHECKPOINT_KEY, read_weights
from tests.models.weights.weight_files import saved

State = dict[str, Tensor]


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.marker}'",)


def zip_bomb(bomb: Bomb, path: Path) -> None:
    torch.save({"state_dict": {"model.x": bomb}, CHECKPOINT_KEY: {"categories": [], "config": {}}}, path)


def legacy_bomb(bomb: Bomb, path: Path) -> None:
    torch.save({"x": bomb}, path, _use_new_zipfile_serialization=False)


def plain_bomb(bomb: Bomb, path: Path) -> None:
    path.write_bytes(pickle.dumps(bomb, protocol=2))


@pytest.mark.parametrize("write", [zip_bomb, legacy_bomb, plain_bomb])
def test_a_file_that_would_run_code_is_refused_unread(tmp_path: Path, write: Callable[[Bomb, Path], None]) -> None:
    marker, path = tmp_path / "marker", tmp_path / "bomb.ckpt"
    write(Bomb(marker), path)
    with pytest.raises(UserError, match=r"^init=.*bomb\.ckpt: not a checkpoint.*could run code"):
        read_weights(path, key="init")
    with pytest.raises(UserError, match=r"bomb\.ckpt: not a checkpoint"):
        ResNet(name="resnet18", weights=str(path))
    assert not marker.exists()
    # It was a bomb.
    if write is plain_bomb:
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.exists()


def garbage(path: Path, good: Path) -> None:
    path.write_bytes(bytes(range(256)) * 10)


def empty(path: Path, good: Path) -> None:
    path.write_bytes(b"")


def truncated(path: Path, good: Path) -> None:
    path.write_bytes(good.read_bytes()[: good.stat().st_size // 2])


def text(path: Path, good: Path) -> None:
    path.write_text("not found\n" * 20)


def zip_of_something_else(path: Path, good: Path) -> None:
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


@pytest.mark.parametrize("damage", [garbage, empty, truncated, text, zip_of_something_else])
def test_a_damaged_file_is_a_user_error_of_one_line(
    state: State, tmp_path: Path, damage: Callable[[Path, Path], None]
) -> None:
    path = tmp_path / "bad.pth"
    damage(path, saved(state, tmp_path / "good.pth"))
    with pytest.raises(UserError, match=r"ckpt=.*bad\.pth: not a checkpoint") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("folder", [False, True])
def test_a_missing_file_is_a_user_error(tmp_path: Path, folder: bool) -> None:
    path = tmp_path if folder else tmp_path / "none.pth"
    with pytest.raises(UserError, match=f"^init={re.escape(str(path))}: no such file"):
        read_weights(path, key="init")

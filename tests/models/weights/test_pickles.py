"""Pickles of arrays, as detectron2's model zoo has them: what is read, and what is refused unread."""

import os
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskrcnn.errors import UserError
from maskrcnn.models.weights import load_file, read_weights
from tests.cli_tools import run

CONTENT = OrderedDict(
    weight=np.arange(6, dtype=np.float32).reshape(2, 3),
    turned=np.arange(6, dtype=np.float64).reshape(2, 3).T,
    counter=np.int64(7),
    name="R-50",
    flags=[True, None, 0.5],
)


@pytest.mark.parametrize("core", [b"core", b"_core"])
@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_every_pickle_are_read(tmp_path: Path, core: bytes, protocol: int) -> None:
    content = pickle.dumps(CONTENT, protocol=protocol)
    if protocol < 4:  # from there on the length of a name stands before it
        content = re.sub(rb"numpy\._?core\.", b"numpy." + core + b".", content)
        assert b"numpy." + core in content
    path = tmp_path / "w.pkl"
    path.write_bytes(content)
    found = load_file(path, "ckpt")
    assert list(found) == list(CONTENT)
    for name in ("weight", "turned"):
        assert torch.equal(found[name], torch.tensor(CONTENT[name]))
        found[name] += 1  # is ours to change
    assert (found["counter"], found["name"], found["flags"]) == (7, "R-50", [True, None, 0.5])


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def of_objects(value: Any) -> np.ndarray:
    array = np.empty(1, dtype=object)
    array[0] = value
    return array


@pytest.mark.parametrize("where", ["weight", "author", "key", "inside an array"])
@pytest.mark.parametrize("call", ["os.system", "eval", "numpy.fromfile", "getattr"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_would_run_code_is_refused_unread(tmp_path: Path, where: str, call: str, protocol: int) -> None:
    marker, path = tmp_path / "marker", tmp_path / "bomb.pkl"
    bomb = {
        "os.system": Bomb(os.system, f"touch '{marker}'"),
        "eval": Bomb(eval, f"open({str(marker)!r}, 'w').close()"),
        "numpy.fromfile": Bomb(np.fromfile, __file__, np.uint8),
        "getattr": Bomb(getattr, "{}", "format"),
    }[call]
    name = "backbone.bottom_up.stem.conv1.weight"
    model: dict[Any, Any] = {name: np.zeros(1, np.float32)}
    content: dict[Any, Any] = {"model": model, "__author__": "me"}
    if where == "weight":
        model[name] = bomb
    elif where == "author":
        content["__author__"] = bomb
    elif where == "key":
        model[bomb] = 1
    else:
        model[name] = of_objects(bomb)
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(UserError, match=r"^init=.*bomb\.pkl: not a checkpoint.*could run code.*not read$"):
        read_weights(path, key="init")
    assert not marker.exists()
    if where == "weight":  # it was a bomb
        pickle.loads(path.read_bytes())
        assert marker.exists() == (call in ("os.system", "eval"))


@pytest.mark.parametrize(
    "content",
    [
        b"cnumpy\nload\n.",
        b"cnumpy.core.multiarray\n_reconstruct.__globals__\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.",
        b"c_codecs\nencode\n(Vabc\nVrot13\ntR.",
        b"c_codecs\ndecode\n(Vabc\nVlatin1\ntR.",
        pickle.dumps({"model": {"a": of_objects("text")}}),
        pickle.dumps({"model": {"a": np.array(["text"])}}),
    ],
)
def test_whatever_is_no_array_of_numbers_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.pkl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"ckpt=.*w\.pkl: not a checkpoint.*could run code"):
        load_file(path, "ckpt")


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "noise", "zip"])
def test_a_damaged_pickle_is_a_user_error_of_one_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "w.pkl"
    whole = pickle.dumps({"model": {"backbone.bottom_up.stem.conv1.weight": np.zeros(1000, np.float32)}})
    if damage == "zip":
        torch.save({"model": {}}, path)
    else:
        pieces = {"empty": b"", "text": b"not found\n" * 20, "truncated": whole[:2000], "noise": bytes(range(256)) * 9}
        path.write_bytes(pieces[damage])
    with pytest.raises(UserError, match=r"ckpt=.*w\.pkl: not a checkpoint") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], {"model": {}}, {"blobs": {"conv1_w": np.zeros(2)}}, {1: 2}])
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r"w\.pkl: holds no Mask R-CNN weights that are known here; .*detectron2"):
        read_weights(path)


def test_a_bomb_on_the_command_line_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": Bomb(os.system, f"touch '{tmp_path / 'marker'}'")}))
    outcome = run("evaluate", f"ckpt={path}", "data=coco", f"data.root={tmp_path}")
    assert outcome.code == 1
    assert outcome.err.startswith(f"error: ckpt={path}: not a checkpoint")
    assert len(outcome.err.splitlines()) == 1
    assert not (tmp_path / "marker").exists()

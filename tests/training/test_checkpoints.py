"""Files of checkpoints: replaced at once, read with care."""

import os

import pytest
import torch

from maskrcnn.errors import UserError
from maskrcnn.training.checkpoints import (
    AtomicCheckpointIO,
    LastCheckpoint,
    newest_checkpoint,
    newest_run,
    read_training_state,
)

STATE = {
    "maskrcnn": {},
    "state_dict": {"weight": torch.arange(1000.0)},
    "optimizer_states": [],
    "lr_schedulers": [],
    "loops": {},
    "global_step": 7,
}


def save(path, *, age=0, **changes):
    AtomicCheckpointIO().save_checkpoint(STATE | changes, path)
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


class Stop(BaseException):
    """Interrupts a save."""


@pytest.mark.parametrize("function", ["save", "fsync", "replace"])
def test_interrupted_save_leaves_the_checkpoint_before(function, tmp_path, monkeypatch):
    path = save(tmp_path / "deep" / "last.ckpt")

    def interrupt(*args, **_):
        if function == "save":
            args[1].write(b"half of it")
        raise Stop

    owner = {"save": torch, "fsync": os, "replace": type(path)}[function]
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(owner, function, interrupt)
        save(path, global_step=8)
    assert read_training_state(path)["global_step"] == 7
    assert newest_checkpoint(path.parent) == path
    save(path, global_step=9)
    assert read_training_state(path)["global_step"] == 9
    assert list(path.parent.iterdir()) == [path]


def test_newest_good_checkpoint_is_found(tmp_path):
    old, new, broken, foreign = (tmp_path / f"{name}.ckpt" for name in ("old", "new", "broken", "foreign"))
    save(old, age=20)
    save(new, age=10)
    torch.save({"state_dict": {}}, foreign)
    broken.write_bytes(new.read_bytes()[:-100])
    assert newest_checkpoint(tmp_path) == new
    assert newest_checkpoint(tmp_path, without=new) == old
    assert newest_checkpoint(tmp_path / "nothing") is None
    with pytest.raises(UserError, match=rf"^resume={broken}: .* damaged .*; the newest other good .* is {new}$"):
        read_training_state(broken)
    for path in (old, new):
        path.unlink()
    with pytest.raises(
        UserError, match=rf"^resume={foreign}: not a checkpoint of a training run[^;]*; init=\S+ starts"
    ):
        read_training_state(foreign)


@pytest.mark.parametrize("missing", sorted(STATE))
def test_checkpoint_without_a_part_of_the_state_is_refused(missing, tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save({key: value for key, value in STATE.items() if key != missing}, path)
    with pytest.raises(UserError, match="not a checkpoint of a training run"):
        read_training_state(path)


def test_newest_run_may_be_part_of_a_sweep(tmp_path):
    save(tmp_path / "alone" / "checkpoints" / "last.ckpt", age=5)
    save(tmp_path / "sweep" / "1" / "checkpoints" / "last.ckpt", age=2)
    assert newest_run(tmp_path) == tmp_path / "sweep" / "1"
    save(tmp_path / "alone" / "checkpoints" / "best.ckpt", age=1)
    assert newest_run(tmp_path) == tmp_path / "alone"


@pytest.mark.parametrize("steps", [0, -1])
def test_steps_between_checkpoints_are_positive(steps, tmp_path):
    with pytest.raises(ValueError, match=f"^every_n_steps must be at least 1 or null, got {steps}$"):
        LastCheckpoint(dirpath=str(tmp_path), every_n_steps=steps)

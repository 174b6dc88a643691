"""Files of checkpoints: replaced at once, read with care."""

import os
import resource

import pytest
import torch

from maskrcnn.errors import UserError
from maskrcnn.training.checkpoints import (
    AtomicCheckpointIO,
    LastCheckpoint,
    full_disk_in_words,
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


@pytest.fixture
def small_files():
    """No file can grow beyond 100 kB, which the system sees to."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


LARGE = {"state_dict": {"weight": torch.zeros(100_000)}}


@pytest.mark.usefixtures("small_files")
def test_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path):
    path, other = save(tmp_path / "last.ckpt"), save(tmp_path / "best.ckpt", age=9)
    for target in (path, tmp_path / "new.ckpt"):
        with pytest.raises(UserError, match=rf"^{target}: cannot be written: File too large, ") as error:
            save(target, **LARGE)
        assert "; make room on the disk (see also quota and ulimit -f); " in str(error.value)
        assert str(error.value).endswith(f"; the checkpoint before is whole: go on with resume={path}")
    assert sorted(tmp_path.iterdir()) == [other, path]
    assert read_training_state(path)["global_step"] == 7


def test_checkpoint_that_cannot_be_written_at_all(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"last\.ckpt: cannot be written: File exists, \d+\.\d GB are free; no earlier"):
        save(tmp_path / "checkpoints" / "last.ckpt")


def test_error_of_torch_itself_is_not_taken_for_the_disk(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("cannot pickle")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match=r"^cannot pickle$"):
        save(tmp_path / "last.ckpt")


@pytest.mark.usefixtures("small_files")
def test_full_disk_under_any_file_of_a_run(tmp_path):
    path = save(tmp_path / "checkpoints" / "last.ckpt")
    expected = rf"^{tmp_path}: cannot be written: File too large, .* go on with resume={path}$"
    with pytest.raises(UserError, match=expected), full_disk_in_words(tmp_path):
        (tmp_path / "metrics.csv").write_bytes(bytes(200_000))
    with pytest.raises(FileNotFoundError), full_disk_in_words(tmp_path):
        (tmp_path / "nothing").read_text()


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

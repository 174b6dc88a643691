"""Curves across processes, and what stands beside them."""

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pytorch_lightning.loggers.logger import DummyLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from maskrcnn.training.loggers import Board, CSVCurves, TensorBoardCurves, flat_settings, start_curves


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def curves(folder, first_step=0):
    logger = CSVCurves(folder=str(folder))
    logger.resume(first_step)
    return logger


@pytest.fixture
def folder(tmp_path):
    """Curves of three steps, with a validation behind the second."""
    logger = curves(tmp_path)
    for step in range(3):
        logger.log_metrics({"loss": step / 4}, step)
        if step == 1:
            logger.log_metrics({"ap": 0.5}, step)
    return tmp_path


BEFORE = [{"step": "0", "loss": "0.0"}, {"step": "1", "loss": "0.25"}, {"step": "1", "ap": "0.5"}]


def test_every_row_is_on_the_disk_at_once(folder):
    assert rows(folder) == [*BEFORE, {"step": "2", "loss": "0.5"}]


@pytest.mark.parametrize("cut", [b"", b"2,", b"2,0.5"])
def test_resumed_curves_go_on(cut, folder):
    with (folder / "metrics.csv").open("ab") as file:
        file.write(cut)  # of a row that a kill interrupted
    logger = curves(folder, first_step=2)
    logger.log_metrics({"loss": 9.0}, 2)
    logger.log_metrics({"new": 1.0}, 3)
    assert rows(folder) == [*BEFORE, {"step": "2", "loss": "9.0"}, {"step": "3", "new": "1.0"}]
    assert [path.name for path in folder.iterdir()] == ["metrics.csv"]


def test_new_run_in_the_same_folder_starts_a_new_table(folder):
    curves(folder).log_metrics({"loss": 7.0}, 0)
    assert rows(folder) == [{"step": "0", "loss": "7.0"}]


def board(folder, first_step=None):
    logger = TensorBoardCurves(folder=str(folder))
    if first_step is not None:
        logger.resume(first_step)
    return logger


def log(logger, steps):
    """Curves, and at step 1 a picture."""
    for step in steps:
        logger.log_metrics({"loss": step / 4}, step)
        if step == 1:
            logger.add_picture("picture", np.zeros((4, 6, 3), np.uint8), step)
    close(logger)


def close(logger):
    """Name the file as if nothing else had been written in the same second."""
    logger.experiment.close()
    folder = Path(logger.log_dir)
    (path,) = folder.glob("*tfevents*.*")
    path.rename(folder / f"tfevents-{len(list(folder.iterdir()))}")


def events(folder):
    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return found.Reload()


@pytest.mark.parametrize(("first_step", "steps"), [(2, [0, 1, 2, 3]), (1, [0, 1, 2]), (None, [0, 1])])
def test_tensorboard_shows_each_step_once(tmp_path, first_step, steps):
    log(board(tmp_path), range(4))
    again = board(tmp_path, first_step)
    log(again, [step for step in steps if step >= (first_step or 0)])
    found = events(tmp_path)
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(step, step / 4) for step in steps]
    assert [event.step for event in found.Images("picture")] == [1]


CONFIG = {
    "seed": 3,
    "augment": {"_target_": "maskrcnn.data.augment.Augment", "flip": {"_target_": "a.b.Flip", "p": 0.5}, "blur": None},
    "data": {"root": "data/coco", "augment": {"min_side": 2}, "min_sizes": [416, 640]},
    "optim": {"_target_": "maskrcnn.training.optimizers.adam", "_partial_": True, "lr": 1e-4, "nesterov": False},
    "trainer": {"max_epochs": 24, "default_root_dir": "outputs/x"},
    "logger": {"csv": {"folder": "outputs/x"}},
    "resume": "last.ckpt",
}


def test_settings_by_dotted_key():
    settings = flat_settings(CONFIG)
    assert settings == {
        "optim": "adam",
        "optim.lr": 1e-4,
        "optim.nesterov": False,
        "augment": "Augment",
        "augment.flip": "Flip",
        "augment.flip.p": 0.5,
        "augment.blur": None,
        "data.root": "data/coco",
        "data.min_sizes": [416, 640],
        "seed": 3,
        "trainer.max_epochs": 24,
    }
    assert list(settings)[:2] == ["optim", "optim.lr"]


def test_settings_stand_beside_the_scores(tmp_path):
    loggers = [board(tmp_path), curves(tmp_path)]
    start_curves(SimpleNamespace(loggers=loggers), CONFIG, first_step=None)
    close(loggers[0])
    found = events(tmp_path)
    assert found.Tags()["scalars"] == []  # no made-up scores
    content = found.summary_metadata
    data = {tag: HParamsPluginData.FromString(content[tag].plugin_data.content) for tag in content}
    values = data["_hparams_/session_start_info"].session_start_info.hparams
    assert values["optim.lr"].number_value == 1e-4
    assert values["optim"].string_value == "adam"
    assert values["optim.nesterov"].bool_value is False
    assert values["data.min_sizes"].string_value == "[416, 640]"
    metrics = data["_hparams_/experiment"].experiment.metric_infos
    assert {info.name.tag for info in metrics} == {"val/mask_ap", "val/box_ap"}


def test_start_of_a_resumed_run(tmp_path):
    log(board(tmp_path), range(4))
    ours = [board(tmp_path), curves(tmp_path)]
    start_curves(SimpleNamespace(loggers=[*ours, DummyLogger()]), CONFIG, first_step=2)
    log(ours[0], [2])
    assert [event.step for event in events(tmp_path).Scalars("loss")] == [0, 1, 2]


def test_boards_are_those_that_take_pictures(tmp_path):
    assert isinstance(board(tmp_path), Board)
    assert not isinstance(curves(tmp_path), Board)

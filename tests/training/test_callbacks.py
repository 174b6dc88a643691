"""What callbacks show and write, with a stand-in for the trainer."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maskrcnn.data.sample import Outline, Sample
from maskrcnn.training.callbacks import (
    Pictures,
    ProgressBar,
    ScoreLine,
    Speed,
    announce,
    conclude,
    write_report,
    write_scores,
)
from maskrcnn.training.module import MaskRCNNModule


class Dataset:
    """Two pictures; the second has no instance."""

    categories = ({"id": 2, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 9, "name": "emu"})

    def __len__(self):
        return 2

    def __getitem__(self, index):
        image = np.full((64, 64, 3), 90, np.uint8)
        square = Outline((np.array([[8.0, 8], [40, 8], [40, 40], [8, 40]]),))
        return Sample(image, [square] * (index == 0), np.ones(int(index == 0), int), image_id=index + 1)


@pytest.fixture
def module(ground_truth, results):
    """A module that has validated."""
    module = MaskRCNNModule(
        model=torch.nn.Linear(10, 100), categories=ground_truth["categories"], ground_truth=ground_truth
    )
    module.metric.update([1, 2], results)
    module.scores = module.metric.compute()
    return module


@pytest.fixture
def trainer(tmp_path):
    data = SimpleNamespace(datasets={"train": range(5), "val": Dataset()})
    return SimpleNamespace(
        datamodule=data,
        default_root_dir=str(tmp_path),
        sanity_checking=False,
        is_global_zero=True,
        fast_dev_run=False,
        loggers=[],
        global_step=3,
        current_epoch=0,
        world_size=1,
        num_devices=1,
        num_nodes=1,
        accelerator=SimpleNamespace(name=lambda: "cpu"),
        precision="32-true",
        log_every_n_steps=2,
        state=SimpleNamespace(fn="fit"),
    )


def test_pictures_are_written_to_the_folder_and_to_tensorboard(tmp_path, trainer, module):
    logger = TensorBoardLogger(tmp_path, name="tensorboard", version="")
    trainer.loggers = [logger]
    Pictures(folder=str(tmp_path / "pictures")).on_validation_end(trainer, module)
    logger.experiment.flush()
    paths = sorted((tmp_path / "pictures").iterdir())
    assert [path.name for path in paths] == ["1.jpg", "2.jpg"]
    width, height = Image.open(paths[0]).size
    assert width > 2 * height * 0.9  # two pictures beside each other
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(events.Tags()["images"]) == ["val/1", "val/2"]


def test_pictures_show_what_passes_the_threshold(tmp_path, trainer, module):
    def left_half(score_thresh):
        Pictures(folder=str(tmp_path), score_thresh=score_thresh).on_validation_end(trainer, module)
        picture = np.asarray(Image.open(tmp_path / "1.jpg")).astype(int)
        return picture[:, : picture.shape[1] // 2]

    assert np.abs(left_half(0.5) - left_half(0.95)).max() > 40


@pytest.mark.parametrize("count", [0, 1, 5])
def test_as_many_pictures_as_asked_for(tmp_path, trainer, module, count):
    Pictures(folder=str(tmp_path), count=count).on_validation_end(trainer, module)
    assert len(list(tmp_path.glob("*.jpg"))) == min(count, 2)


@pytest.mark.parametrize("change", [{"sanity_checking": True}, {"is_global_zero": False}, {"fast_dev_run": True}])
def test_no_pictures_of_a_trial_or_from_other_ranks(tmp_path, trainer, module, change):
    vars(trainer).update(change)
    Pictures(folder=str(tmp_path / "pictures")).on_validation_end(trainer, module)
    assert not (tmp_path / "pictures").exists()


def test_negative_count_is_refused():
    with pytest.raises(ValueError, match="count"):
        Pictures(folder="x", count=-1)


def test_progress_bar_shows_short_names(monkeypatch):
    metrics = {"train/loss": 3.0, "train/loss_mask": 1.0, "train/lr": 0.1, "v_num": 3, "val/box_ap": 0.5}
    monkeypatch.setattr("pytorch_lightning.callbacks.RichProgressBar.get_metrics", lambda *_: dict(metrics))
    assert ProgressBar().get_metrics(None, None) == {"loss": 3.0, "mask": 1.0}


def test_score_line_after_each_validation_of_a_training_run(trainer, module, capsys):
    ScoreLine().on_validation_end(trainer, module)
    line = capsys.readouterr().out
    assert re.fullmatch(r"epoch \d: box AP 0\.\d{3} .*, mask AP 0\.\d{3} .*\n", line)
    trainer.state.fn = "validate"
    ScoreLine().on_validation_end(trainer, module)
    assert capsys.readouterr().out == ""


def test_speed_counts_the_pictures_of_all_devices(trainer, monkeypatch):
    clock = iter([10.0, 12.0, 13.0])
    monkeypatch.setattr("maskrcnn.training.callbacks.time.perf_counter", lambda: next(clock))
    logged = []
    module = SimpleNamespace(log=lambda name, value, **_: logged.append((name, value)))
    trainer.world_size = 4
    speed, batch = Speed(), (None, [{}, {}, {}])
    speed.on_train_epoch_start(trainer, module)
    for index in range(4):
        speed.on_train_batch_end(trainer, module, None, batch, index)
    assert logged == [("perf/images_per_second", 12.0), ("perf/images_per_second", 24.0)]


def test_metrics_file_holds_the_twelve_numbers_under_both_kinds(tmp_path, module, capsys):
    folder = tmp_path / "new" / "folder"
    write_scores(folder, module.scores, images=2)
    content = json.loads((folder / "metrics.json").read_text())
    sizes = ["small", "medium", "large"]
    keys = ["ap", "ap50", "ap75", *(f"ap_{size}" for size in sizes)]
    keys += ["ar1", "ar10", "ar100", *(f"ar_{size}" for size in sizes)]
    assert list(content["box"]) == list(content["mask"]) == keys
    assert content == {**module.scores, "images": 2}
    table = capsys.readouterr().out
    assert "box (2 images)" in table
    assert "mask (2 images)" in table
    assert table.count("Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0.") == 2


def test_predictions_file_is_a_coco_results_file(tmp_path, trainer, module, results):
    write_report(trainer, module, predictions=True)
    assert json.loads((tmp_path / "predictions.json").read_text()) == results


def test_only_the_first_rank_writes(tmp_path, trainer, module, capsys):
    trainer.is_global_zero = False
    write_report(trainer, module, predictions=True)
    announce(trainer, module, trainer.datamodule)
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


def test_conclusion_says_where_everything_is(tmp_path, trainer, module, capsys):
    assert conclude(trainer, module) == module.scores["mask"]["ap"]
    said = capsys.readouterr().out
    for path in ("pictures", "checkpoints"):
        assert str(tmp_path / path) in said
    assert f"tensorboard --logdir {tmp_path}" in said
    assert f"evaluate.py ckpt={tmp_path / 'checkpoints' / 'last.ckpt'}" in said
    assert (tmp_path / "metrics.json").exists()
    assert not (tmp_path / "predictions.json").exists()


def test_a_trial_run_writes_nothing(tmp_path, trainer, module):
    trainer.fast_dev_run = True
    assert conclude(trainer, module) is None
    assert not list(tmp_path.iterdir())


def test_announcement(trainer, module, capsys):
    announce(trainer, module, trainer.datamodule)
    said = capsys.readouterr().out
    assert "3 classes; " in said
    assert "5 training and 2 validation pictures" in said
    assert trainer.default_root_dir in said

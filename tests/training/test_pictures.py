"""Pictures of predictions, with a stand-in for the trainer."""

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maskrcnn.training.loggers import TensorBoardCurves
from maskrcnn.training.pictures import Pictures


def test_pictures_are_written_to_the_folder_and_to_tensorboard(tmp_path, trainer, module):
    logger = TensorBoardCurves(folder=str(tmp_path))
    trainer.loggers = [logger]
    Pictures(folder=str(tmp_path / "pictures")).on_validation_end(trainer, module)
    logger.experiment.flush()
    paths = sorted((tmp_path / "pictures").iterdir())
    assert [path.name for path in paths] == ["1.jpg", "2.jpg"]
    width, height = Image.open(paths[0]).size
    assert width > 2 * height * 0.9  # two pictures beside each other
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(events.Tags()["images"]) == ["val/1", "val/2"]
    assert [event.step for event in events.Images("val/1")] == [2]  # as the curves count, from 0


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

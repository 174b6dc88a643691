"""The table of curves, across processes."""

import csv

import pytest

from maskrcnn.training.loggers import CSVCurves


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def curves(folder, first_step=0):
    logger = CSVCurves(folder=str(folder))
    logger.first_step = first_step
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

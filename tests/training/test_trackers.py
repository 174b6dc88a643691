"""Weights & Biases without a network, MLflow in a file."""

import importlib.util
from importlib.machinery import ModuleSpec

import numpy as np
import pytest

from maskrcnn.errors import UserError
from maskrcnn.training import trackers
from maskrcnn.training.loggers import Board
from maskrcnn.training.trackers import MLflowCurves, WandbCurves

PICTURE = np.zeros((4, 6, 3), np.uint8)


@pytest.mark.parametrize(("package", "make"), [("wandb", WandbCurves), ("mlflow", MLflowCurves)])
def test_missing_package_is_named_with_its_extra(package, make, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == package else ModuleSpec(name, None))
    with pytest.raises(UserError) as refused:
        make(folder=str(tmp_path))
    assert str(refused.value) == (
        f"logger={package}: the package {package} is not installed; "
        f"pip install 'maskrcnn-lightning[{package}]', or choose another logger"
    )


@pytest.fixture
def tracked(tmp_path, monkeypatch):
    """Makes loggers of one run folder."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    folder = tmp_path / "it's a run"
    folder.mkdir()

    def make(first_step=None):
        logger = MLflowCurves(folder=str(folder), tracking_uri=f"sqlite:///{tmp_path}/new/mlflow.db")
        if first_step is not None:
            logger.resume(first_step)
        return logger

    return make


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
def test_mlflow_goes_on_with_the_run_of_the_folder(tracked, tmp_path):
    first = tracked(first_step=0)  # there is none yet
    assert isinstance(first, Board)
    first.log_hyperparams({"optim.lr": 0.1, "trainer.max_epochs": 2})
    first.log_metrics({"train/loss": 1.0}, 0)
    again = tracked(first_step=1)
    assert again.run_id == first.run_id
    again.log_hyperparams({"optim.lr": 0.1, "trainer.max_epochs": 3, "seed": 0})  # none can be changed there
    again.log_metrics({"train/loss": 0.5}, 1)
    again.add_picture("val/7", PICTURE, 1)
    again.add_table("val/per_class", ["class", "AP"], [["cat", "-"]], 1)
    client = again.experiment
    run = client.get_run(again.run_id)
    assert run.data.params == {"optim.lr": "0.1", "trainer.max_epochs": "2", "seed": "0"}
    assert [(one.step, one.value) for one in client.get_metric_history(again.run_id, "train/loss")] == [
        (0, 1),
        (1, 0.5),
    ]
    assert any(one.path.startswith("images/val~7") for one in client.list_artifacts(again.run_id, "images"))
    table = client.load_table(run.info.experiment_id, "val/per_class/1.json", run_ids=[again.run_id])
    assert table.to_dict("list") == {"class": ["cat"], "AP": ["-"]}
    assert (tmp_path / "new" / "mlflow").is_dir()  # files beside the database
    assert again.where == f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/new/mlflow.db"
    assert tracked().run_id != first.run_id  # a new run in the same folder


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_goes_on_with_the_run_of_the_folder(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")  # put back behind the test: Lightning sets it

    def make(first_step=None):
        logger = WandbCurves(folder=str(tmp_path), offline=True)
        if first_step is not None:
            logger.resume(first_step)
        logger.log_hyperparams({"optim.lr": 0.1})
        logger.log_metrics({"train/loss": 1.0}, 0)
        logger.add_picture("val/7", PICTURE, 1)
        logger.add_table("val/per_class", ["class", "AP"], [["cat", "-"]], 1)
        config, run_id = dict(logger.experiment.config), logger.experiment.id
        wandb.finish()
        assert isinstance(logger, Board)
        assert config == {"optim.lr": 0.1}
        return run_id

    first = make(first_step=0)  # there is none yet
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/val/7_*.png"))) == 1
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/table/val/per_class_*.json"))) == 1
    assert make(first_step=1) == first
    assert make() != first

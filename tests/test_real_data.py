"""Every augmentation preset trains on real pictures without a complaint."""

import csv
import math
import os
import warnings
from pathlib import Path

import pytest
import torch

from maskrcnn.models.mask_rcnn import LOSSES
from tests.cli_tools import TINY, run
from tests.test_configs import GROUPS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("MASKRCNN_REAL_DATA" not in os.environ, reason="MASKRCNN_REAL_DATA names no folder"),
]

ROOT = Path(os.environ.get("MASKRCNN_REAL_DATA", ""))
SMALL = (
    *TINY,
    "model.input.min_size=256",
    "model.input.max_size=256",
    "model.anchors.sizes=[16,32,64,128,256]",
    "data.min_sizes=[192,256]",
    "data.max_size=256",
    "optim.lr=1e-3",
    "trainer.max_epochs=1",
    "trainer.limit_val_batches=2",
    "trainer.log_every_n_steps=1",
)


@pytest.fixture
def our_warnings_are_errors():
    torch.set_warn_always(True)  # PyTorch's own come only once, and maybe in another test
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module=r"maskrcnn\.")
        yield
    torch.set_warn_always(False)


@pytest.mark.usefixtures("our_warnings_are_errors")
@pytest.mark.parametrize("root", [ROOT / "coco_tiny", ROOT / "nuclei"], ids=["coco", "nuclei"])
@pytest.mark.parametrize("augment", GROUPS["augment"])
def test_preset_trains_an_epoch(tmp_path, root, augment):
    if not root.is_dir():
        pytest.skip(f"there is no {root}")
    outcome = run("train", f"augment={augment}", f"data.root={root}", f"hydra.run.dir={tmp_path / 'run'}", *SMALL)
    assert outcome.code == 0, outcome.err
    assert "WARNING" not in outcome.out + outcome.err
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert len(rows) >= 16
    for row in rows:
        assert all(math.isfinite(float(row[f"train/{name}"])) for name in LOSSES)
    masks = [float(row["train/loss_mask"]) for row in rows]
    assert 0 < masks[-1] < 2

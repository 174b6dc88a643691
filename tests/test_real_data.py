"""Every augmentation preset trains on real pictures without a complaint; COCO's examples score as published."""

import contextlib
import csv
import io
import json
import math
import os
import warnings
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn.evaluation.coco import METRICS
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


# cocoapi's results/val2014_fake_eval_res.txt, for its results/instances_val2014_fake{bbox,segm}100_results.json.
EXAMPLES = {
    "box": ("bbox", [0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564]),
    "mask": ("segm", [0.320, 0.562, 0.299, 0.387, 0.310, 0.327, 0.268, 0.415, 0.417, 0.469, 0.377, 0.381]),
}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_example_results_of_coco_score_as_published(tmp_path, kind):
    """Against the annotations of their 100 images, instances_val2014_100.json in one folder with them."""
    root = ROOT / "coco_examples"
    if not root.is_dir():
        pytest.skip(f"there is no {root}")
    iou_type, published = EXAMPLES[kind]
    file = root / f"instances_val2014_fake{iou_type}100_results.json"
    truth = root / "instances_val2014_100.json"
    outcome = run(
        "evaluate",
        f"predictions={file}",
        f"data.root={root}",
        f"data.val_annotations={truth}",
        "data.val_images=val2014",
        f"hydra.run.dir={tmp_path}",
    )
    assert outcome.code == 0, outcome.err
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert [round(metrics[kind][name], 3) for name in METRICS] == published
    with contextlib.redirect_stdout(io.StringIO()):
        annotations = COCO(truth)
        evaluation = COCOeval(annotations, annotations.loadRes(str(file)), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert [metrics[kind][name] for name in METRICS] == pytest.approx(evaluation.stats.tolist(), abs=1e-4)
    assert (tmp_path / "report.html").exists()

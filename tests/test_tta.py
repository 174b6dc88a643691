"""`python evaluate.py tta=...`: what the views gain and cost is printed and written."""

import json
import re

import pytest

from maskrcnn.data.shapes import draw_shapes
from tests.cli_tools import TINY, run

# Of the pictures that it has learnt by heart it finds something.
SETTINGS = ("trainer.accelerator=cpu", "trainer.devices=1", "data.num_workers=0", "report=false", "split=train")
BARE = ("data.test_annotations=annotations/bare.json", "data.test_images=val2017", "split=test")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of a short training on a small drawn set, which has two more splits: `val`, and `test` without annotations."""
    root, folder = tmp_path_factory.mktemp("set"), tmp_path_factory.mktemp("run")
    draw_shapes(root, train_images=8, val_images=2, image_size=64)
    bare = json.loads((root / "annotations/instances_val2017.json").read_text())
    del bare["annotations"]
    (root / "annotations/bare.json").write_text(json.dumps(bare))
    where = (f"data.root={root}", f"hydra.run.dir={folder}", "checkpoint.best.monitor=null")
    length = ("trainer.max_epochs=8", "trainer.limit_val_batches=0", "trainer.log_every_n_steps=2")
    optimizer = ("optim=adamw", "optim.lr=2e-3", "schedule=constant", "schedule.warmup_epochs=0", "ema=none")
    outcome = run("train", "data=coco", "augment=none", *where, *TINY, *length, *optimizer)
    assert outcome.code == 0, outcome.err
    return folder / "checkpoints" / "last.ckpt"


def evaluate(checkpoint, folder, *arguments):
    outcome = run("evaluate", f"ckpt={checkpoint}", f"hydra.run.dir={folder}", *SETTINGS, *arguments)
    assert outcome.code == 0, outcome.err
    return outcome.out, json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def plain(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return folder, evaluate(checkpoint, folder)[1]


@pytest.mark.parametrize(("option", "scales"), [("flip", [1.0]), ("multiscale", [0.75, 1.0, 1.25])])
def test_gain_and_cost_are_told(checkpoint, plain, tmp_path, option, scales):
    out, metrics = evaluate(checkpoint, tmp_path, f"tta={option}")
    tta = metrics["tta"]
    assert (tta["flip"], tta["scales"]) == (True, scales)
    assert f"views at scale {', '.join(f'{scale:g}' for scale in scales)}, each mirrored too" in out
    for kind in ("box", "mask"):
        before, after = tta["without"][f"{kind}_ap"], tta["with"][f"{kind}_ap"]
        assert before == plain[1][kind]["ap"]
        assert after == metrics[kind]["ap"]
        assert re.search(rf"{kind} AP +{before:.3f} -> {after:.3f} \({re.escape(f'{after - before:+.3f}')}\)", out)
    assert 0 < tta["without"]["box_ap"] != tta["with"]["box_ap"] > 0
    assert min(tta[which]["seconds_per_image"] for which in ("with", "without")) > 0
    assert re.search(r"seconds per picture +[\d.e-]+ -> [\d.e-]+ \([\d.]+ times\)", out)
    assert results(tmp_path) != results(plain[0])


def test_one_plain_view_scores_the_same(checkpoint, plain, tmp_path):
    _, metrics = evaluate(checkpoint, tmp_path, "tta=flip", "tta.flip=false")
    assert {kind: metrics[kind] for kind in ("box", "mask")} == {kind: plain[1][kind] for kind in ("box", "mask")}
    assert results(tmp_path) == results(plain[0])


def test_without_annotations_the_cost_alone_is_told(checkpoint, tmp_path):
    outcome = run("evaluate", f"ckpt={checkpoint}", f"hydra.run.dir={tmp_path}", *SETTINGS, *BARE, "tta=flip")
    assert outcome.code == 0, outcome.err
    assert "seconds per picture" in outcome.out
    assert "AP" not in outcome.out
    assert not (tmp_path / "metrics.json").exists()
    assert results(tmp_path)


def test_without_it_nothing_is_told(plain):
    assert "tta" not in plain[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tta.scales=[1.0,0.0]",), "tta: scales must be one or more different numbers above 0, got [1.0, 0.0]"),
        (("tta.flip=2",), "tta.flip=2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(checkpoint, tmp_path, arguments, message):
    outcome = run("evaluate", f"ckpt={checkpoint}", f"hydra.run.dir={tmp_path}", *SETTINGS, "tta=flip", *arguments)
    assert outcome.code == 1
    assert f"error: {message}" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_results_file_cannot_be_augmented(tmp_path):
    outcome = run("evaluate", "predictions=results.json", "tta=flip", f"hydra.run.dir={tmp_path / 'run'}")
    assert outcome.code == 1
    assert "error: tta: makes a model look at each picture several times; give it a model with ckpt=" in outcome.err


def results(folder):
    return json.loads((folder / "predictions.json").read_text())

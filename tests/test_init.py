"""`train.py init=...`: which weights a run starts from, and what it says about them."""

import json

import pytest
import torch

from maskrcnn.data.shapes import draw_shapes
from tests.cli_tools import TINY, TRIAL, run

RUN = (*TINY, "model.box_head.class_agnostic=false", "trainer.max_epochs=1", "optim=sgd", "logger=none")
HEAD = "model.roi_heads.box_heads.0"
LOGITS = "model.roi_heads.mask_head.logits"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A small drawn set in COCO layout."""
    root = tmp_path_factory.mktemp("shapes")
    draw_shapes(root, train_images=8, val_images=4, image_size=64)
    return root


@pytest.fixture(scope="module")
def first(shapes, tmp_path_factory):
    """The last checkpoint of a run on three classes."""
    folder = tmp_path_factory.mktemp("first")
    classes = "data.classes=[ellipse,triangle,star]"
    outcome = run("train", *RUN, f"data.root={shapes}", classes, f"hydra.run.dir={folder}")
    assert outcome.code == 0, outcome.err
    return folder / "checkpoints" / "last.ckpt"


def test_rows_follow_their_classes_and_the_listing_says_so(first, shapes, tmp_path):
    still = ("optim.lr=1e-12", "optim.weight_decay=0", "ema=none")  # what it ends with is what it began with
    other = ("data.classes=[star,ring,ellipse]", "model.mask_head.num_convs=2", "model.anchors.round=false")
    outcome = run("train", *RUN, *still, *other, f"init={first}", f"data.root={shapes}", f"hydra.run.dir={tmp_path}")
    assert outcome.code == 0, outcome.err
    listing = outcome.out[outcome.out.index(f"init={first}") :].splitlines()
    before, after = (
        torch.load(path, weights_only=True)["state_dict"] for path in (first, tmp_path / "checkpoints" / "last.ckpt")
    )
    in_part = {part: sum(name.startswith(f"model.{part}.") for name in before) for part in ("backbone", "neck", "rpn")}
    assert listing[1:14] == [
        "part                kept  by class     fresh    unused",
        *(f"{part:<14}{count:>10}{0:>10}{0:>10}{0:>10}" for part, count in in_part.items()),
        "box head 1             4         4         0         0",
        "mask head              4         2         2         0",
        "carried  ellipse, star",
        "new      ring",
        "left     triangle",
        "fresh    roi_heads.mask_head.convs.1.weight: missing there (and 1 more of this",
        "         part)",
        f"all      {tmp_path / 'init.json'}",
        "made for a model with other settings; to have them here:",
    ]
    assert listing[14] == "  model.anchors.round=true  # here false"
    assert "model." not in listing[15]
    assert max(len(line) for line in listing[1:15] if str(tmp_path) not in line) <= 80

    for name, rows in ((f"{HEAD}.scores", 1), (f"{HEAD}.deltas", 4), (LOGITS, 1)):
        old, new = (state[f"{name}.weight"].unflatten(0, (4, rows)) for state in (before, after))
        for here, there in ((0, 0), (1, 1), (2, 3)):  # background, ellipse, star
            torch.testing.assert_close(new[here], old[there], atol=1e-6, rtol=0)
        assert not torch.isclose(new[3], old, atol=1e-3).flatten(1).all(dim=1).any()  # ring
    record = json.loads((tmp_path / "init.json").read_text())
    assert set(record["mapped"]) == {
        f"{name}.{kind}".removeprefix("model.")
        for name in (f"{HEAD}.scores", f"{HEAD}.deltas", LOGITS)
        for kind in ("weight", "bias")
    }
    assert record["old_classes"] == ["ellipse", "triangle", "star"]


def test_the_overrides_for_a_foreign_file_make_the_model_that_it_was_made_for(make_tiny_torchvision, shapes, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(make_tiny_torchvision().state_dict(), path)
    arguments = (*TRIAL, "model/backbone=resnet18", f"init={path}", f"data.root={shapes}", "data.max_size=64")
    outcome = run("train", *arguments)
    assert outcome.code == 0, outcome.err
    out = outcome.out.splitlines()
    heading = out.index("made for model=torchvision; to have them here:")
    lines = [line for line in out[heading + 1 :] if line.startswith("  model.")]
    assert "  model.input.min_size=800  # here 64" in lines
    assert "  model.anchors.strides=null  # here [4,8,16,32,64]" in lines
    assert "  model.backbone.norm=frozen_bn  # here bn" in lines
    overrides = [line.partition("#")[0].strip() for line in lines if ".input." not in line]
    outcome = run("train", *arguments, *overrides)
    assert outcome.code == 0, outcome.err
    left = [line for line in outcome.out.splitlines() if line.startswith("  model.")]
    assert left == [line for line in lines if ".input." in line]

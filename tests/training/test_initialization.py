"""The listing of what a run takes over from `init=`."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from maskrcnn.models.weights import Transfer
from maskrcnn.training.initialization import announce_transfer, setting_lines, transfer_lines

BOX, MASK = "roi_heads.box_heads.0", "roi_heads.mask_head"


@pytest.fixture
def transfer():
    return Transfer(
        path=Path("old/last.ckpt"),
        kept=["backbone.conv1.weight", "backbone.bn1.weight", "neck.lateral.0.0.weight", "rpn.objectness.bias"],
        mapped=[f"{BOX}.scores.weight", f"{MASK}.logits.weight"],
        fresh={
            f"{BOX}.fc1.weight": "[1024, 12544] there, [512, 12544] here",
            f"{BOX}.fc1.bias": "[1024] there, [512] here",
            "roi_heads.box_heads.1.fc1.bias": "missing there",
        },
        unused=["rpn.convs.1.weight"],
        old_classes=["cat", "Fire_Hydrant", "owl"],
        new_classes=["owl", "fire hydrant", "cat", "emu"],
        groups={},
    )


def test_the_listing_counts_by_part_and_names_classes_and_reasons(transfer):
    assert transfer_lines(transfer, file=Path("outputs/x/init.json")) == [
        "init=old/last.ckpt",
        "part                kept  by class     fresh    unused",
        "backbone               2         0         0         0",
        "neck                   1         0         0         0",
        "rpn                    1         0         0         1",
        "box head 1             0         1         2         0",
        "box head 2             0         0         1         0",
        "mask head              0         1         0         0",
        "carried  owl, cat",
        "new      fire hydrant, emu",
        "left     Fire_Hydrant",
        "similar  fire hydrant here, Fire_Hydrant there: only equal names are carried\n         over",
        "fresh    roi_heads.box_heads.0.fc1.weight: [1024, 12544] there, [512, 12544]\n"
        "         here (and 1 more of this part)",
        "fresh    roi_heads.box_heads.1.fc1.bias: missing there",
        "all      outputs/x/init.json",
    ]


@pytest.mark.parametrize(
    ("here", "there", "similar"),
    [("persons", "person", True), ("Traffic-Light", "traffic light", True), ("cat", "dog", False)],
)
def test_similar_names_are_pointed_out(transfer, here, there, similar):
    lines = transfer_lines(replace(transfer, old_classes=[there], new_classes=[here]))
    assert any(line.startswith(f"similar  {here} here, {there} there") for line in lines) is similar


def test_many_classes_are_cut_short(transfer):
    many = replace(transfer, old_classes=[f"class {i}" for i in range(80)], new_classes=["emu"])
    (left,) = [line for line in transfer_lines(many) if line.startswith("left")]
    assert left.endswith("and 68 more")
    assert max(map(len, left.split("\n"))) <= 80


def test_a_file_without_names_is_said_to_have_none(transfer):
    nameless = replace(transfer, old_classes=["1", "2", "3"], new_classes=["emu"])
    assert "left     3 classes that the file does not name" in transfer_lines(nameless)
    gaps = replace(transfer, old_classes=["cat", "N/A", "owl", "N/A"], new_classes=["emu"])
    assert "left     cat, N/A, owl" in transfer_lines(gaps)


def test_weights_that_fit_are_one_line(transfer):
    whole = replace(transfer, mapped=[], fresh={}, unused=[])
    assert transfer_lines(whole) == ["init=old/last.ckpt: all weights taken over"]


def test_other_settings_come_as_the_overrides_that_would_bring_them():
    settings = {
        "input.channel_order": ("bgr", "rgb"),
        "anchors.strides": (None, [4, 8]),
        "anchors.round": (False, True),
        "backbone.norm_eps": (0.0, 1e-5),
    }
    assert setting_lines({"model": "detectron2", "model/roi": "cascade"}, settings) == [
        "made for model=detectron2 model/roi=cascade; to have them here:",
        "  model.input.channel_order=bgr  # here rgb",
        "  model.anchors.strides=null  # here [4,8]",
        "  model.anchors.round=false  # here true",
        "  model.backbone.norm_eps=0.0  # here 1e-05",
    ]
    assert setting_lines({}, settings)[0] == "made for a model with other settings; to have them here:"
    assert setting_lines({"model": "original"}, {}) == []


@pytest.mark.parametrize("trial", [False, True])
def test_every_name_is_in_a_file_of_the_run_but_not_of_a_trial(transfer, tmp_path, capsys, trial):
    trainer = SimpleNamespace(is_global_zero=True, fast_dev_run=trial, default_root_dir=str(tmp_path / "run"))
    announce_transfer(trainer, transfer, {"input.min_size": (800, 640)})
    printed = capsys.readouterr().out
    assert "model.input.min_size=800  # here 640" in printed
    file = tmp_path / "run" / "init.json"
    assert file.is_file() == (str(file) in printed) == (not trial)
    if not trial:
        record = json.loads(file.read_text())
        assert record["kept"] == transfer.kept
        assert record["fresh"] == transfer.fresh
        assert record["settings"] == {"input.min_size": {"there": 800, "here": 640}}


def test_other_ranks_say_nothing(transfer, tmp_path, capsys):
    trainer = SimpleNamespace(is_global_zero=False, fast_dev_run=False, default_root_dir=str(tmp_path / "run"))
    announce_transfer(trainer, transfer, {})
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "run").exists()

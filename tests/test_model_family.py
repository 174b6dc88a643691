"""Every option of the model trains, is scored, and gives the same detections again from its checkpoint.

Options are met in pairs, through the commands that users type; the full product of the groups is marked slow.
"""

import json
from itertools import combinations, product

import pytest

from maskrcnn.config import config_folder
from maskrcnn.data.shapes import draw_shapes
from tests.cli_tools import TINY, run
from tests.combinations import pairwise
from tests.watch import FILE

LOSSES = ("l1", "smooth_l1", "iou", "giou", "diou", "ciou")
BACKBONES = sorted(path.stem for path in config_folder().glob("model/backbone/*.yaml"))
NECKS = sorted(path.stem for path in config_folder().glob("model/neck/*.yaml"))
ROIS = sorted(path.stem for path in config_folder().glob("model/roi/*.yaml"))
MODELS = sorted(path.stem for path in config_folder().glob("model/*.yaml"))

# Of the options of a key, those that any other key must work with; one string may set several keys.
AXES = {
    "backbone": [
        "model/backbone=mobilenet_v3_small",
        "model/backbone=resnet18",
        "model/backbone=resnet18 model.backbone.squeeze_excitation=true",
    ],
    "backbone norm": [f"model.backbone.norm={norm}" for norm in ("bn", "frozen_bn", "gn")],
    "frozen stages": [f"model.backbone.frozen_stages={count}" for count in (0, 2)],
    "checkpointing": [f"model.backbone.gradient_checkpointing={value}" for value in ("false", "true")],
    "neck": [
        "model/neck=fpn",
        "model/neck=fpn_output",
        "model/neck=panet",
        "model/neck=bifpn model.neck.repeats=1",
        "model/neck=bifpn model.neck.repeats=2",
    ],
    "neck norm": [f"model.neck.norm={norm}" for norm in ("null", "bn", "gn")],
    "upsampling": [f"model.neck.upsampling={mode}" for mode in ("nearest", "bilinear")],
    "neck bias": [f"model.neck.bias={value}" for value in ("true", "false")],
    "rpn": [f"model.rpn.num_convs={count}" for count in (1, 2)],
    "rpn loss": [f"model.rpn.box_loss={loss}" for loss in LOSSES],
    "rpn normalizer": [f"model.rpn.box_loss_normalizer={name}" for name in ("positive", "sampled")],
    "roi": [
        "model/roi=standard model.box_head.class_agnostic=true",
        "model/roi=standard model.box_head.class_agnostic=false",
        "model/roi=cascade model.box_head.class_agnostic=true",  # which it needs
    ],
    "box head": ["model.box_head.num_convs=0", "model.box_head.num_convs=2 model.box_head.num_fcs=1"],
    "box norm": [f"model.box_head.norm={norm}" for norm in ("null", "bn", "gn")],
    "box loss": [f"model.box_head.box_loss={loss}" for loss in LOSSES],
    "box normalizer": [f"model.box_head.box_loss_normalizer={name}" for name in ("positive", "sampled")],
    "mask head": [f"model.mask_head.num_convs={count}" for count in (0, 2)],
    "mask norm": [f"model.mask_head.norm={norm}" for norm in ("null", "bn", "gn")],
}
ROWS = pairwise(AXES)
OTHER_BACKBONES = [name for name in BACKBONES if f"model/backbone={name}" not in AXES["backbone"]]
FAST_BACKBONES = {"mobilenet_v2", "mobilenet_v3_large", "resnet50", "timm"}
NARROW = (
    "model.neck.out_channels=16",
    "model.box_head.conv_channels=16",
    "model.rpn.sampler.batch_size_per_image=2000",  # all anchors, or p6 with its few might be left without a gradient
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("family") / "shapes"
    draw_shapes(folder, train_images=4, val_images=2, image_size=64)
    return folder


def backbone(name):
    return [f"model/backbone={name}", *(["model.backbone.name=test_convnext"] if name == "timm" else [])]


def check(root, folder, *settings):
    """Train two steps, evaluate, and hold both against what must be so; returns the names of idle parameters."""
    run_folder, scored = folder / "run", folder / "scored"
    outcome = run(
        "train",
        *TINY,
        *NARROW,
        *settings,
        "data=coco",
        f"data.root={root}",
        "data.batch_size=2",
        "augment=none",
        "optim=sgd",
        "optim.lr=1e-4",  # larger steps make deep networks lose all boxes
        "optim.momentum=0.0",
        "ema=none",
        "guard=none",
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=2",
        "trainer.enable_progress_bar=false",
        "callbacks.pictures.count=0",
        "~checkpoint.best",
        "logger=none",
        "+callbacks.watch._target_=tests.watch.Watch",
        "trust=[tests]",
        f"hydra.run.dir={run_folder}",
    )
    assert outcome.code == 0, outcome.err
    watched = json.loads((run_folder / FILE).read_text())
    assert watched["steps"] == 2
    assert watched["missing"] == watched["infinite"] == []
    machine = ("trainer.accelerator=cpu", "trainer.devices=1", "data.num_workers=0", "callbacks.pictures.count=0")
    checkpoint = run_folder / "checkpoints" / "last.ckpt"
    outcome = run("evaluate", f"ckpt={checkpoint}", f"hydra.run.dir={scored}", "report=false", *machine)
    assert outcome.code == 0, outcome.err
    assert watched["results"]
    assert json.loads((scored / "predictions.json").read_text()) == watched["results"]
    metrics = [json.loads((each / "metrics.json").read_text()) for each in (run_folder, scored)]
    assert metrics[0] == metrics[1]
    checkpoint.unlink()
    return watched["silent"]


def test_rows_cover_all_pairs():
    for (axis, options), (other, choices) in combinations(AXES.items(), 2):
        for option, choice in product(options, choices):
            assert any(row[axis] == option and row[other] == choice for row in ROWS), (option, choice)


def test_axes_have_every_option_of_their_group():
    for group, names in (("neck", NECKS), ("roi", ROIS)):
        assert {option.split()[0] for option in AXES[group]} == {f"model/{group}={name}" for name in names}


@pytest.mark.parametrize("row", ROWS, ids=[str(number) for number in range(len(ROWS))])
def test_options_train_and_come_back(row, root, tmp_path):
    assert check(root, tmp_path, *" ".join(row.values()).split()) == []


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST_BACKBONES else pytest.mark.slow) for n in OTHER_BACKBONES]
)
def test_every_backbone_trains_and_comes_back(name, root, tmp_path):
    if name == "timm":
        pytest.importorskip("timm")
    assert check(root, tmp_path, *backbone(name)) == []


@pytest.mark.slow
@pytest.mark.parametrize("groups", list(product(MODELS, BACKBONES, NECKS, ROIS)), ids="-".join)
def test_full_product_of_the_groups(groups, root, tmp_path):
    model, name, neck, roi = groups
    chosen = [f"model={model}", *backbone(name), f"model/neck={neck}", f"model/roi={roi}"]
    chosen += ["model.box_head.class_agnostic=true"] if roi == "cascade" else []
    if name == "timm":
        pytest.importorskip("timm")
    # The fixed statistics of model=torchvision go with its weights; random ones overflow in deep networks.
    chosen += [f"model.backbone.norm={'null' if name == 'timm' else 'bn'}"]
    check(root, tmp_path, *chosen)

"""The YAML tree against the constructors, and every option of every group through the real command."""

import inspect
import shutil
from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from pycocotools.coco import COCO

from maskrcnn.building import BUILDABLE, _locate
from maskrcnn.config import config_folder
from maskrcnn.data.shapes import draw_shapes
from maskrcnn.models.mask_rcnn import LOSSES
from tests.cli_tools import TRIAL, run
from tests.combinations import pairwise

CONF = config_folder()

# Arguments that code fills in.
BY_CODE = {
    "maskrcnn.data.coco.CocoDataset": {"annotations", "images", "cache"},
    "maskrcnn.data.voc.VocDataset": {"annotations", "images", "cache"},
    **{f"maskrcnn.models.{n}": {"in_channels"} for n in ("bifpn.BiFPN", "necks.FPN", "necks.PANet")},
    "maskrcnn.models.rpn.RPN": {"in_channels", "anchors"},
    "maskrcnn.models.tta.AugmentedMaskRCNN": {"model"},
    "maskrcnn.models.roi_heads.BoxHead": {"in_channels", "num_classes"},
    "maskrcnn.models.roi_heads.MaskHead": {"in_channels", "num_classes"},
    **{f"maskrcnn.training.optimizers.{n}": {"model", "batch_size", "fused"} for n in ("adam", "adamw", "sgd")},
    "maskrcnn.training.schedules.cosine": {"optimizer", "total_steps", "steps_per_epoch"},
    "maskrcnn.training.schedules.multistep": {"optimizer", "total_steps", "steps_per_epoch"},
}

BUILT = "an object, where the default is none"
STEPS = dict.fromkeys(
    ("mosaic", "jitter", "crop", "perspective", "flip", "color", "mixup", "copy_paste", "blur", "noise"), BUILT
)
DATA = {"augment": "${augment}", "seed": "${seed}", "size_divisor": "${model.input.size_divisor}", "dataset": BUILT}

BACKBONES = {path.stem for path in CONF.glob("model/backbone/*.yaml")}

# Where a preset means to differ from the constructors' defaults; everything else is equal.
INTENDED: dict[str, dict[str, Any]] = {
    "augment/light": STEPS | {"flip.p": 0.5},
    "augment/lsj": STEPS | {"jitter.p": 1.0, "flip.p": 0.5, "color.p": 0.5},
    "augment/lsj_copy_paste": STEPS | {"jitter.p": 1.0, "flip.p": 0.5, "color.p": 0.5, "copy_paste.p": 0.5},
    "augment/mosaic_mixup": STEPS
    | {
        "mosaic.p": 0.5,
        "crop.p": 0.2,
        "perspective.p": 1.0,
        "flip.p": 0.5,
        "color.p": 0.5,
        "color.brightness": 0.36,
        "color.contrast": 0.0,
        "color.saturation": 0.68,
        "color.hue": 0.014,
        "mixup.p": 0.15,
        "min_visibility": 0.2,
        "min_side": 2.0,
        "max_aspect": 20.0,
    },
    "augment/none": STEPS,
    "checkpoint/default": {
        "best.dirpath": "${hydra:runtime.output_dir}/checkpoints",
        "best.filename": "best",
        "best.monitor": "val/mask_ap",
        "best.mode": "max",
        "best.enable_version_counter": False,
        "last.every_n_steps": "${checkpoint.every_n_steps}",
    },
    "data/coco": DATA,
    "data/custom": DATA
    | {f"{split}_{kind}": None for split in ("train", "val", "test") for kind in ("annotations", "images")},
    "data/shapes": DATA | {"draw": BUILT, "batch_size": 8, "min_sizes": [160], "max_size": 160},
    "data/voc": DATA
    | {f"{split}_annotations": f"ImageSets/Segmentation/{split}.txt" for split in ("train", "val", "test")}
    | {f"{split}_images": "JPEGImages" for split in ("train", "val", "test")},
    "logger/mlflow": {"mlflow.tracking_uri": '${oc.env:MLFLOW_TRACKING_URI,"sqlite:///outputs/mlflow.db"}'},
    **{f"model/backbone/{name}": {"name": name} for name in sorted(BACKBONES - {"resnet50", "mobilenet_v2", "timm"})},
    "model/mask_rcnn": {
        "loss_weights": dict.fromkeys(LOSSES, 1.0),
        "roi_align.gather": True,
        "rpn.box_loss": "giou",
        "rpn.box_loss_normalizer": "positive",
        "box_head.class_agnostic": True,
        "box_head.box_loss": "giou",
        "box_head.box_loss_normalizer": "positive",
        "rpn.matcher.high_threshold": 0.7,
        "rpn.matcher.low_threshold": 0.3,
        "rpn.matcher.allow_low_quality": True,
        "rpn.sampler.batch_size_per_image": 256,
        "rpn.sampler.positive_fraction": 0.5,
    },
    "model/neck/fpn_output": {"upsampling": "bilinear", "top_down": "output"},
    "model/roi/cascade": {
        "stages.1.coder_weights": [20.0, 20.0, 10.0, 10.0],
        "stages.1.matcher.high_threshold": 0.6,
        "stages.1.matcher.low_threshold": 0.6,
        "stages.2.coder_weights": [30.0, 30.0, 15.0, 15.0],
        "stages.2.matcher.high_threshold": 0.7,
        "stages.2.matcher.low_threshold": 0.7,
    },
    "schedule/constant": {"milestones": []},
    "schedule/cosine_restarts": {"restarts": [8, 16]},
    "tta/multiscale": {"scales": [0.75, 1.0, 1.25]},
    "trainer/default": {
        "max_epochs": 24,
        "precision": "${native_precision:}",
        "sync_batchnorm": True,
        "num_sanity_val_steps": 2,
        "log_every_n_steps": 20,
        "enable_progress_bar": True,
        "enable_checkpointing": True,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "default_root_dir": "${hydra:runtime.output_dir}",
    },
}
INTENDED["model/torchvision"] = {
    key: value
    for key, value in INTENDED["model/mask_rcnn"].items()
    if not key.startswith(("rpn.box", "roi_align", "box_head"))
} | {"input.min_size": 800, "input.max_size": 1333, "anchors.strides": None}
INTENDED["model/detectron2"] = INTENDED["model/torchvision"] | {
    "min_box_size": 0.0,
    "input.resize": "pil",
    "input.channel_order": "bgr",
    "input.mean": [0.406, 0.456, 0.485],
    "input.std": [0.003921569] * 3,
    "anchors.round": False,
    "rpn.post_nms_top_n_train": 1000,
    "rpn.min_size": 1e-30,
    "rpn.box_loss": "l1",
    "roi_align.sampling_ratio": 0,
    "roi_align.aligned": True,
    "box_head.box_loss": "l1",
    "mask_head.paste": "detectron2",
}
del INTENDED["model/detectron2"]["anchors.strides"]
INTENDED["model/torchvision_v2"] = INTENDED["model/torchvision"] | {
    "rpn.num_convs": 2,
    "box_head.num_convs": 4,
    "box_head.norm": "bn",
    "box_head.num_fcs": 1,
    "mask_head.norm": "bn",
}
INTENDED["model/original"] = INTENDED["model/mask_rcnn"] | {
    "input.resize": "opencv",
    "input.size_divisor": 64,
    "input.letterbox": [123, 116, 103],
    "anchors.ratios": [2.0, 1.0, 0.5],
    "anchors.offset": 0.5,
    "anchors.round": False,
    "mask_head.paste": "original",
}


def options() -> dict[str, list[str]]:
    """Group -> its options."""
    found: dict[str, list[str]] = {}
    for path in sorted(CONF.rglob("*/*.yaml")):
        group = str(path.parent.relative_to(CONF))
        if not group.startswith("hydra"):
            found.setdefault(group, []).append(path.stem)
    return found


GROUPS = options()
OF_EVALUATE = {"tta"}
BUILDING = [(group, option) for group in GROUPS for option in GROUPS[group] if group != "experiment"]


@cache
def composed(group: str, option: str) -> dict[str, Any]:
    """The node of a group with that option, references not resolved."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("evaluate" if group in OF_EVALUATE else "train", overrides=[f"{group}={option}"])
    node = OmegaConf.to_container(OmegaConf.select(cfg, group.replace("/", ".")))
    return {key: value for key, value in node.items() if f"{group}/{key}" not in GROUPS}


def targets(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node with a `_target_`, and where it stands."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    if isinstance(node, dict) and "_target_" in node:
        yield path, node
    for key, child in children:
        yield from targets(child, f"{path}.{key}".lstrip("."))


def parameters(target: str) -> dict[str, inspect.Parameter]:
    found = inspect.signature(_locate(target, "", ())).parameters
    return {name: p for name, p in found.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}


def comparable(value: Any) -> Any:
    if isinstance(value, dict):
        return BUILT if "_target_" in value else value
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(("group", "option"), BUILDING)
def test_option_lists_every_argument(group, option):
    inherited = set(GROUPS) & {f"{group}/{key}" for key in ("backbone", "neck", "roi")}
    for path, node in targets(composed(group, option)):
        target = node["_target_"]
        listed = set(node) - {"_target_", "_partial_"}
        known = set(parameters(target))
        assert listed <= known, path
        if target.startswith("maskrcnn."):
            left_out = {name.removeprefix(f"{group}/") for name in inherited} if not path else set()
            assert listed | left_out == known - BY_CODE.get(target, set()), path


@pytest.mark.parametrize(("group", "option"), BUILDING)
def test_option_has_the_defaults_of_the_constructors(group, option):
    differences = {}
    for path, node in targets(composed(group, option)):
        for name, parameter in parameters(node["_target_"]).items():
            if name in node and parameter.default is not inspect.Parameter.empty:
                value, default = comparable(node[name]), comparable(parameter.default)
                if value != default or type(value) is not type(default) is bool:
                    differences[f"{path}.{name}".lstrip(".")] = value
    assert differences == INTENDED.get(f"{group}/{option}", {})


def test_no_entry_of_the_lists_is_stale():
    assert set(INTENDED) <= {f"{group}/{option}" for group, option in BUILDING}
    for target, names in BY_CODE.items():
        assert target in BUILDABLE
        assert names <= set(parameters(target))


def test_what_may_be_built_is_what_the_configs_build():
    built = {
        node["_target_"]
        for path in CONF.rglob("*.yaml")
        if path.relative_to(CONF).parts[0] != "hydra"  # Hydra builds these itself
        for _, node in targets(OmegaConf.to_container(OmegaConf.load(path)))
    }
    assert built == BUILDABLE


@pytest.mark.parametrize("target", sorted(name for name in BUILDABLE if name.startswith("maskrcnn.")))
def test_constructors_are_keyword_only(target):
    positional = [name for name, p in parameters(target).items() if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    by_code = {"schedules": ["optimizer"], "optimizers": ["model"]}
    assert positional == by_code.get(target.split(".")[-2], [])


# test_monitoring.py runs those that need a package of their own, test_model_family.py the parts of the model.
ELSEWHERE = {("logger", "mlflow"), ("logger", "wandb")}
ELSEWHERE |= {(group, option) for group, option in BUILDING if group.startswith("model/")}
RUNNABLE = [choice for choice in BUILDING if choice not in ELSEWHERE and choice[0] not in OF_EVALUATE]
ROWS = pairwise({group: [o for g, o in RUNNABLE if g == group] for group, _ in RUNNABLE})
ROWS += [{"experiment": name} for name in GROUPS["experiment"]]


def test_rows_cover_all_pairs():
    for (group, option), (other, choice) in product(RUNNABLE, RUNNABLE):
        if group != other:
            assert any(row.get(group) == option and row.get(other) == choice for row in ROWS)


@pytest.fixture(scope="session")
def roots(tmp_path_factory):
    """A small drawn set in the layout of each data preset."""
    coco, custom, voc = (tmp_path_factory.mktemp("sets") / name for name in ("coco", "custom", "voc"))
    draw_shapes(coco, train_images=4, val_images=2, image_size=64)
    for split, folder in (("train", "train"), ("val", "valid")):
        shutil.copytree(coco / f"{split}2017", custom / folder)
        shutil.copy(coco / "annotations" / f"instances_{split}2017.json", custom / folder / "_annotations.coco.json")
        write_voc(voc, COCO(coco / "annotations" / f"instances_{split}2017.json"), coco / f"{split}2017", split)
    return {"coco": coco, "custom": custom, "voc": voc, "shapes": custom.parent}


def write_voc(root, truth, pictures, split):
    """A COCO set in the layout of VOC, its categories as VOC's first classes."""
    folders = [root / name for name in ("JPEGImages", "SegmentationObject", "SegmentationClass")]
    lists = root / "ImageSets" / "Segmentation"
    for folder in (*folders, lists):
        folder.mkdir(parents=True, exist_ok=True)
    class_of = {category: number for number, category in enumerate(sorted(truth.cats), start=1)}
    names = []
    for image_id, image in truth.imgs.items():
        names.append(f"{split}_{image_id}")
        objects = np.zeros((image["height"], image["width"]), np.uint8)
        classes = objects.copy()
        for number, annotation in enumerate(truth.imgToAnns[image_id], start=1):
            covered = truth.annToMask(annotation) > 0
            objects[covered], classes[covered] = number, class_of[annotation["category_id"]]
        Image.open(pictures / image["file_name"]).convert("RGB").save(folders[0] / f"{names[-1]}.jpg")
        for folder, levels in zip(folders[1:], (objects, classes), strict=True):
            Image.fromarray(levels).save(folder / f"{names[-1]}.png")
    (lists / f"{split}.txt").write_text("\n".join(names))


@pytest.mark.parametrize("row", ROWS, ids=[str(number) for number in range(len(ROWS))])
def test_options_train_together(row, roots, tmp_path):
    data = row.get("data", "shapes" if row.get("experiment") == "demo" else "coco")
    drawing = [f"data.draw.{size}" for size in ("train_images=4", "val_images=2", "image_size=64")]
    outcome = run(
        "train",
        *TRIAL,
        *(f"{group}={option}" for group, option in row.items()),
        *(drawing if data == "shapes" else ()),
        f"data.root={roots[data]}",
        f"hydra.run.dir={tmp_path}",
    )
    assert outcome.code == 0, outcome.err
    assert "3 training and 2 validation pictures" in outcome.out

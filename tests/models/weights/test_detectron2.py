"""Against what detectron2 itself gave, recorded in detectron2.json.gz.

`full`: names and shapes of its models; `refused`: names of those that are not read; `settings` of its R50-FPN.
`tiny`: narrow models of 5 classes, their detections on a drawn picture with a short side of 128 pixels.
"""

import gzip
import json
import pickle
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pycocotools import mask as coco_mask
from torch import Tensor

from maskrcnn.config import config_folder
from maskrcnn.data.shapes import draw_shapes
from maskrcnn.errors import UserError
from maskrcnn.models.anchors import AnchorGenerator
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.models.weights import Weights, load_weights, read_weights
from maskrcnn.ops.boxes import MAX_LOG_SCALE
from maskrcnn.ops.masks import masks_to_rle
from tests.cli_tools import TINY_DATA, run

Factory = Callable[..., Any]
Arrays = dict[str, np.ndarray]

RECORD = json.loads(gzip.decompress(Path(__file__).with_name("detectron2.json.gz").read_bytes()))
ANCHORS = {
    f"proposal_generator.anchor_generator.cell_anchors.{level}": np.array(cell, np.float32)
    for level, cell in enumerate(RECORD["settings"]["anchors.cells"])
}


def filled(name: str, shape: list[int]) -> np.ndarray:
    """Weights that anybody can make again: numbers of a generator that never changes, seeded by the name."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith(("running_mean", "norm.bias")):
        value = random.normal(0, 0.1, shape)
    elif name.endswith("running_var"):
        value = random.uniform(0.5, 1.5, shape) * (7200 if ".stem." in name else 1)  # pixels have 0..255 levels
    elif name.endswith("norm.weight"):
        value = random.uniform(0.05, 0.15, shape) if ".conv3." in name else random.uniform(0.8, 1.2, shape)
    elif name.endswith("bias"):
        value = random.normal(0, 0.02, shape)
    else:
        value = random.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
    return value.astype(np.float32)


def tiny_arrays(kind: str) -> Arrays:
    """The weights that the recorded detections are of."""
    recorded = RECORD["tiny"][kind]
    arrays = {name: filled(name, shape) for name, shape in recorded["shapes"].items()}
    for name, change in recorded["predictors"].items():
        arrays[f"{name}.weight"] = arrays[f"{name}.weight"] * np.float32(change["scale"])
        arrays[f"{name}.bias"] = np.array(change["bias"], np.float32)
    return arrays


def write_pickle(model: Any, path: Path, *, protocol: int = 2) -> Path:
    """A file as the model zoo has them."""
    path.write_bytes(pickle.dumps({"model": model, "__author__": "Detectron2 Model Zoo"}, protocol=protocol))
    return path


def write_checkpoint(arrays: Arrays, path: Path) -> Path:
    """A file as training writes it."""
    model = {name: torch.tensor(value) for name, value in arrays.items()}
    torch.save({"model": model, "optimizer": {"param_groups": [{"lr": 0.02}]}, "iteration": 89999}, path)
    return path


def full(kind: str, path: Path, **more: Any) -> Path:
    """A file with all names and shapes of a published model, in which one number stands for each tensor."""
    model = {name: torch.zeros(()).expand(shape) for name, shape in RECORD["full"][kind].items()}
    torch.save({"model": model | {name: torch.from_numpy(value) for name, value in ANCHORS.items()} | more}, path)
    return path


def built(weights: Weights, make_model: Factory, *overrides: str) -> MaskRCNN:
    """The model that the file asks for."""
    chosen = [f"{group}={option}" for group, option in weights.groups.items() if group != "model"]
    chosen += [f"model.{key}={value}" for key, value in weights.settings.items()]
    model: MaskRCNN = make_model(
        *chosen, *overrides, preset=weights.groups["model"], num_classes=len(weights.categories)
    )
    return model


@pytest.mark.parametrize(
    ("kind", "backbone", "expected"),
    [
        ("r50", "resnet50", {"backbone.norm": "frozen_bn", "backbone.stride_in_1x1": True, "neck.bias": True}),
        ("r101", "resnet101", {"backbone.norm": "frozen_bn", "box_head.class_agnostic": False}),
        ("x101", "resnext101_32x8d", {"backbone.stride_in_1x1": False, "input.std": [0.225, 0.224, 0.229]}),
        ("cascade", "resnet50", {"box_head.class_agnostic": True, "rpn.post_nms_top_n_train": 2000}),
        (
            "lsj",
            "resnet50",
            {
                "backbone.norm": "bn",
                "backbone.frozen_stages": 0,
                "backbone.stride_in_1x1": True,
                "neck.bias": False,
                "neck.norm": "bn",
                "rpn.num_convs": 2,
                "box_head.num_convs": 4,
                "box_head.num_fcs": 1,
                "box_head.norm": "bn",
                "mask_head.norm": "bn",
            },
        ),
        ("gn", "resnet50", {"backbone.norm": "gn", "backbone.stride_in_1x1": False, "box_head.norm": "gn"}),
    ],
)
def test_every_name_and_shape_of_the_published_models_is_known(
    make_model: Factory, tmp_path: Path, kind: str, backbone: str, expected: dict[str, Any]
) -> None:
    weights = read_weights(full(kind, tmp_path / "w.pth"))
    roi = "cascade" if kind == "cascade" else "standard"
    assert weights.groups == {"model": "detectron2", "model/backbone": backbone, "model/roi": roi}
    assert expected.items() <= weights.settings.items()
    with torch.device("meta"):
        ours = built(weights, make_model).state_dict()
    assert {name: value.shape for name, value in weights.state.items()} == {n: v.shape for n, v in ours.items()}
    assert len(weights.categories) == 80
    assert weights.categories[0] == {"id": 1, "name": "person"}
    assert weights.categories[11] == {"id": 13, "name": "stop sign"}  # COCO leaves ids out
    assert weights.categories[79] == {"id": 90, "name": "toothbrush"}


@pytest.mark.parametrize("kind", list(RECORD["tiny"]))
@pytest.mark.parametrize("form", ["pkl", "pth"])
def test_detections_are_those_of_detectron2(make_model: Factory, tmp_path: Path, kind: str, form: str) -> None:
    arrays = tiny_arrays(kind)
    write = write_pickle if form == "pkl" else write_checkpoint
    weights = read_weights(write(arrays, tmp_path / f"w.{form}"))
    model = built(weights, make_model, "model.input.min_size=128", "model.input.max_size=192").eval()
    load_weights(model, weights)
    fields = np.random.RandomState(1).randint(0, 256, (6, 8, 3)).astype(np.uint8)
    picture = np.kron(fields, np.ones((25, 26, 1), np.uint8))
    (found,) = model.predict([torch.from_numpy(picture).permute(2, 0, 1)])
    expected = RECORD["tiny"][kind]
    assert len(found["boxes"]) == expected["count"]
    rles = masks_to_rle(found["mask_probs"], found["boxes"], size=(150, 208), paste="detectron2")
    left = set(range(len(rles)))
    for box, score, label, counts in zip(
        expected["boxes"], expected["scores"], expected["classes"], expected["masks"], strict=True
    ):
        # Two of nearly one score may have changed places.
        near = [i for i in left if found["labels"][i] == label + 1 and abs(found["scores"][i] - score) < 1e-3]
        distances = {i: (found["boxes"][i] - torch.tensor(box)).abs().max().item() for i in near}
        match = min(distances, key=lambda i: distances[i])
        assert distances[match] < 0.1
        left.remove(match)
        theirs = {"size": [150, 208], "counts": counts.encode()}
        # Two empty masks have no IoU.
        assert rles[match] == theirs or coco_mask.iou([rles[match]], [theirs], [0]).item() > 0.99
    assert len(left) == expected["count"] - len(expected["boxes"])


def test_the_background_moves_to_the_front(tmp_path: Path) -> None:
    arrays = tiny_arrays("standard")
    state = read_weights(write_pickle(arrays, tmp_path / "w.pkl")).state
    scores = arrays["roi_heads.box_predictor.cls_score.bias"]
    assert state["roi_heads.box_heads.0.scores.bias"].tolist() == [scores[5], *scores[:5]]
    boxes = arrays["roi_heads.box_predictor.bbox_pred.bias"]
    assert state["roi_heads.box_heads.0.deltas.bias"].tolist() == [0, 0, 0, 0, *boxes]
    masks = arrays["roi_heads.mask_head.predictor.bias"]
    assert state["roi_heads.mask_head.logits.bias"].tolist() == [0, *masks]
    weight = state["roi_heads.mask_head.logits.weight"]
    assert torch.equal(weight[1:], torch.from_numpy(arrays["roi_heads.mask_head.predictor.weight"]))
    assert not weight[0].any()


def test_preset_has_the_settings_of_detectron2() -> None:
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        preset = compose("model/detectron2", overrides=["model/backbone=resnet50"]).model
    theirs = dict(RECORD["settings"])
    cells = theirs.pop("anchors.cells")
    assert theirs.pop("scale_clamp") == pytest.approx(MAX_LOG_SCALE)
    assert theirs.pop("backbone.stride_in_1x1")  # is the file's, see above
    assert theirs.pop("rpn.min_size") == 0  # of which theirs keeps what is greater, ours what is not less
    assert 0 < preset.rpn.min_size < 1e-20
    for name in ("rpn", "box_head"):
        assert theirs.pop(f"{name}.smooth_l1_beta") == 0  # which is L1
        assert (preset[name].box_loss, preset[name].box_loss_normalizer) == ("l1", "sampled")
    for name in ("input.mean", "input.std"):
        assert [255 * value for value in OmegaConf.select(preset, name)] == pytest.approx(theirs.pop(name), rel=1e-6)
    for name, value in theirs.items():
        found = OmegaConf.select(preset, re.sub(r"\.(\d)\.", r"[\1].", name))
        assert (OmegaConf.to_container(found) if OmegaConf.is_config(found) else found) == value, name
    generator = AnchorGenerator(**{k: v for k, v in preset.anchors.items() if k != "_target_"})
    for level, cell in enumerate(cells):
        torch.testing.assert_close(generator.get_buffer(f"cell_{level}"), torch.tensor(cell), atol=1e-4, rtol=0)
    assert (preset.input.resize, preset.mask_head.paste, preset.backbone.norm) == ("pil", "detectron2", "frozen_bn")


def pixels(*values: float) -> Tensor:
    return torch.tensor(values).view(3, 1, 1)


def test_a_file_that_keeps_its_pixels_tells_their_order_scale_and_where_the_stride_is(tmp_path: Path) -> None:
    rgb = {"pixel_mean": pixels(123.675, 116.28, 103.53), "pixel_std": pixels(58.395, 57.12, 57.375)}
    settings = read_weights(full("r50", tmp_path / "w.pth", **rgb)).settings
    assert settings["input.channel_order"] == "rgb"
    assert (settings["input.mean"], settings["input.std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert settings["backbone.stride_in_1x1"] is False
    bgr = {"pixel_mean": pixels(103.53, 116.28, 123.675), "pixel_std": pixels(1, 1, 1)}
    settings = read_weights(full("r50", tmp_path / "w.pth", **bgr)).settings
    assert (settings["input.channel_order"], settings["backbone.stride_in_1x1"]) == ("bgr", True)


def test_anchors_come_from_the_file(tmp_path: Path, make_model: Factory) -> None:
    half = {name: torch.from_numpy(cell / 2)[:2] for name, cell in ANCHORS.items()}
    weights = read_weights(full("r50", tmp_path / "w.pth", **half))
    assert weights.settings["anchors.sizes"] == [16, 32, 64, 128, 256]
    assert weights.settings["anchors.ratios"] == [0.5, 1.0]
    with torch.device("meta"), pytest.raises(UserError, match=r"rpn\.objectness\.weight is \[3, .* there, \[2, "):
        load_weights(built(weights, make_model), weights)
    several = {name: torch.from_numpy(np.concatenate((cell, cell * 2))) for name, cell in ANCHORS.items()}
    with pytest.raises(UserError, match="anchors of several sizes on a level"):
        read_weights(full("r50", tmp_path / "w.pth", **several))


def test_batch_norm_of_a_file_without_its_counters_starts_them_at_zero(make_model: Factory, tmp_path: Path) -> None:
    arrays = {n: v for n, v in tiny_arrays("lsj").items() if not n.endswith("num_batches_tracked")}
    weights = read_weights(write_pickle(arrays, tmp_path / "w.pkl"))
    assert weights.settings["backbone.norm"] == "bn"
    load_weights(built(weights, make_model), weights)
    assert weights.state["backbone.bn1.num_batches_tracked"] == 0


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("C4", "has a backbone without FPN"),
        ("DC5", "has a backbone without FPN"),
        ("keypoints", "has keypoints"),
        ("boxes", "has no mask head"),
        ("retinanet", "backbone.top_block.p6.bias is not a parameter of such a model"),
        ("panoptic", "has a segmentation of the whole picture"),
        ("deformable", "has deformable convolutions"),
        ("sigmoid", "has independent scores"),
    ],
)
def test_other_models_of_detectron2_are_refused_in_one_line(tmp_path: Path, kind: str, reason: str) -> None:
    names = RECORD["refused"].get(kind) or [*RECORD["full"]["r50"], "roi_heads.box_predictor.fed_loss_cls_weights"]
    path, shapes = tmp_path / "w.pth", RECORD["full"]["r50"]
    torch.save({"model": {name: torch.zeros(()).expand(shapes.get(name, [1])) for name in names}}, path)
    with pytest.raises(UserError, match=rf"init=.*w\.pth, a model of detectron2: {re.escape(reason)}") as caught:
        read_weights(path, key="init")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"roi_heads.mask_head.gate.weight": (1,)}, r"roi_heads\.mask_head\.gate\.weight is not a parameter"),
        ({"proposal_generator.rpn_head.conv.weight2": (1,)}, r"conv\.weight2 is not a parameter"),
        (
            {"roi_heads.mask_head.predictor.weight": (1, 16, 1, 1)},
            r"logits\.weight is \[1, 16, 1, 1\], its rows are not the 5 of 5 ",
        ),
        (
            {"roi_heads.box_predictor.bbox_pred.bias": (24,)},
            r"deltas\.bias is \[24\], its rows are not the 20 of 5 classes",
        ),
        ({"backbone.bottom_up.res2.0.conv2.weight": (96, 96, 3, 3)}, r"its backbone is none of resnet18, .*\[96, 96,"),
        ({"proposal_generator.rpn_head.objectness_logits.weight": None}, r"rpn\.objectness\.weight is missing there"),
        ({"backbone.bottom_up.res5.2.conv3.weight": None}, r"layer4\.2\.conv3\.weight is missing there"),
        ({"backbone.bottom_up.res5.2.conv3.weight": (2048, 512, 3, 3)}, r"layer4\.2\.conv3\.weight is \[2048, 512, 3"),
        ({"backbone.fpn_lateral2.weight": None}, "has no FPN"),
        ({"backbone.fpn_lateral2.weight": (16,)}, "has no FPN"),
        ({"roi_heads.box_predictor.cls_score.weight": (1, 32)}, r"scores\.weight is \[1, 32\], its rows are not"),
        ({"roi_heads.box_predictor.cls_score.bias": ()}, r"scores\.bias is \[\], its rows are not the 6 of 5 classes"),
        ({"proposal_generator.anchor_generator.cell_anchors.0": (3, 5)}, r"has anchors of \[\[3, 5\]\]"),
    ],
)
def test_names_and_shapes_that_do_not_fit_are_named(
    make_model: Factory, tmp_path: Path, change: dict[str, tuple[int, ...] | None], message: str
) -> None:
    shapes = RECORD["tiny"]["standard"]["shapes"] | change
    model = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items() if shape is not None}
    torch.save({"model": model}, tmp_path / "w.pth")
    with torch.device("meta"), pytest.raises(UserError, match=rf"ckpt=.*w\.pth.*{message}") as caught:
        weights = read_weights(tmp_path / "w.pth")
        load_weights(built(weights, make_model), weights)
    assert "\n" not in str(caught.value)


def test_what_is_no_tensor_is_named(tmp_path: Path) -> None:
    arrays = tiny_arrays("cascade") | {"roi_heads.note": "from a friend"}
    with pytest.raises(UserError, match=r"w\.pkl, a model of detectron2: roi_heads\.note is not a tensor"):
        read_weights(write_pickle(arrays, tmp_path / "w.pkl"))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn set of five classes, as many as the tiny models have."""
    root = tmp_path_factory.mktemp("drawn") / "set"
    draw_shapes(root, train_images=4, val_images=2, image_size=64)
    return root


CPU = (
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.precision=32-true",
    "data.num_workers=0",
    "model.input.min_size=64",
    "model.input.max_size=64",
)


def test_a_file_of_the_zoo_is_scored(drawn: Path, tmp_path: Path) -> None:
    path = write_pickle(tiny_arrays("cascade"), tmp_path / "model_final_1a2b3c.pkl")
    folder = tmp_path / "run"
    outcome = run("evaluate", f"ckpt={path}", "data=coco", f"data.root={drawn}", f"hydra.run.dir={folder}", *CPU)
    assert outcome.code == 0, outcome.err
    assert set(json.loads((folder / "metrics.json").read_text())) >= {"box", "mask"}
    results = json.loads((folder / "predictions.json").read_text())
    assert {result["category_id"] for result in results} <= {1, 3, 4, 7, 9}
    assert len(results) > 10


def test_training_starts_from_a_file_of_the_zoo(drawn: Path, tmp_path: Path) -> None:
    arrays = tiny_arrays("cascade")
    path = write_pickle(arrays, tmp_path / "model_final_1a2b3c.pkl")
    folder = tmp_path / "run"
    sizes = [f"model.{key}={value}" for key, value in read_weights(path).settings.items()]
    outcome = run(
        "train",
        f"init={path}",
        "model=detectron2",
        "model/backbone=resnet18",
        "model/roi=cascade",
        "data=coco",
        f"data.root={drawn}",
        f"hydra.run.dir={folder}",
        "trainer.max_epochs=1",
        "ema=none",
        *sizes,
        *TINY_DATA,
        *CPU,
    )
    assert outcome.code == 0, outcome.err
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    stem = torch.from_numpy(arrays["backbone.bottom_up.stem.conv1.weight"])
    assert torch.equal(state["model.backbone.conv1.weight"], stem)  # is frozen
    fc1 = torch.from_numpy(arrays["roi_heads.box_head.2.fc1.weight"])
    change = (state["model.roi_heads.box_heads.2.fc1.weight"] - fc1).abs()
    assert 0 < change.max() < 0.01  # goes on from there

import hashlib
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor
from torchvision.models import resnet18
from torchvision.models._api import WeightsEnum
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights, maskrcnn_resnet50_fpn

from maskrcnn.errors import UserError
from maskrcnn.models.backbones import ResNet
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.models.weights import CHECKPOINT_KEY, init_weights, load_weights, read_weights
from maskrcnn.models.weights import torchvision as module

Factory = Callable[..., Any]
State = dict[str, Tensor]

SCORES, DELTAS = "roi_heads.box_heads.0.scores", "roi_heads.box_heads.0.deltas"
LOGITS = "roi_heads.mask_head.logits"


@pytest.fixture(scope="module")
def state(make_tiny_torchvision: Factory) -> State:
    """The state dict of a small torchvision model with 3 foreground classes."""
    return dict(make_tiny_torchvision(num_classes=3).state_dict())


@pytest.fixture
def model(make_tiny_model: Factory) -> MaskRCNN:
    model: MaskRCNN = make_tiny_model(preset="torchvision")
    return model


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def old_name(name: str) -> str:
    """The name that a parameter has in the file that torchvision published in 2019."""
    name = re.sub(r"fpn\.(inner|layer)_blocks\.(\d)\.0\.", r"fpn.\1_blocks.\2.", name)
    name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
    return re.sub(r"mask_head\.(\d)\.0\.", lambda match: f"mask_head.mask_fcn{int(match[1]) + 1}.", name)


@pytest.mark.parametrize("names", ["new", "old"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_torchvision_names_of_both_ages_give_the_same_weights(
    state: State, model: MaskRCNN, tmp_path: Path, names: str, wrapped: bool
) -> None:
    content = {old_name(name) if names == "old" else name: value for name, value in state.items()}
    if names == "old":
        expected = {
            "backbone.fpn.inner_blocks.0.weight",
            "rpn.head.conv.weight",
            "roi_heads.mask_head.mask_fcn1.weight",
            "roi_heads.mask_head.mask_fcn2.bias",
        }
        assert expected <= set(content)
    content["backbone.body.bn1.num_batches_tracked"] = torch.tensor(7)
    path = saved({"model": content, "epoch": 3} if wrapped else content, tmp_path / "w.pth")
    weights = read_weights(path)
    assert (weights.path, weights.config, weights.settings) == (path, {}, {})
    assert weights.groups == {"model": "torchvision"}
    load_weights(model, weights)
    found = model.state_dict()
    assert len(found) == len(state)
    for ours, theirs in {
        "backbone.layer3.1.bn2.running_var": "backbone.body.layer3.1.bn2.running_var",
        "neck.lateral.1.0.weight": "backbone.fpn.inner_blocks.1.0.weight",
        "neck.output.3.0.bias": "backbone.fpn.layer_blocks.3.0.bias",
        "rpn.convs.0.weight": "rpn.head.conv.0.0.weight",
        "rpn.objectness.weight": "rpn.head.cls_logits.weight",
        "rpn.deltas.weight": "rpn.head.bbox_pred.weight",
        "roi_heads.box_heads.0.fc1.weight": "roi_heads.box_head.fc6.weight",
        "roi_heads.box_heads.0.fc2.bias": "roi_heads.box_head.fc7.bias",
        f"{SCORES}.weight": "roi_heads.box_predictor.cls_score.weight",
        f"{DELTAS}.weight": "roi_heads.box_predictor.bbox_pred.weight",
        "roi_heads.mask_head.convs.1.weight": "roi_heads.mask_head.1.0.weight",
        "roi_heads.mask_head.upsample.weight": "roi_heads.mask_predictor.conv5_mask.weight",
        f"{LOGITS}.weight": "roi_heads.mask_predictor.mask_fcn_logits.weight",
    }.items():
        assert torch.equal(found[ours], state[theirs]), ours


@pytest.mark.parametrize("rename", [str, old_name])
def test_every_name_and_shape_of_the_published_model_is_known(
    make_model: Factory, tmp_path: Path, rename: Callable[[str], str]
) -> None:
    with torch.device("meta"):
        theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
        ours = make_model(preset="torchvision", num_classes=90).state_dict()
    # One number stands for a whole tensor, so that the file stays small.
    content = {rename(name): torch.zeros(()).expand(value.shape) for name, value in theirs.items()}
    weights = read_weights(saved(content, tmp_path / "w.pth"))
    assert {name: v.shape for name, v in weights.state.items()} == {n: v.shape for n, v in ours.items()}
    names = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    assert len(weights.categories) == 90
    assert weights.categories[0] == {"id": 1, "name": "person"}
    assert weights.categories[89] == {"id": 90, "name": "toothbrush"} == {"id": 90, "name": names[90]}


def test_classes_of_another_number_are_named_by_their_label(state: State, tmp_path: Path) -> None:
    weights = read_weights(saved(state, tmp_path / "w.pth"))
    assert weights.categories == [{"id": label, "name": str(label)} for label in (1, 2, 3)]


def test_the_published_file_switches_the_epsilon_off(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module._COCO_V1_SHA256 in MaskRCNN_ResNet50_FPN_Weights.COCO_V1.url
    path = saved(state, tmp_path / "w.pth")
    assert read_weights(path).settings == {}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(module, "_COCO_V1_SHA256", digest[:8])
    assert read_weights(path).settings == {"backbone.norm_eps": 0.0}


def test_our_checkpoint_comes_back_without_what_is_not_the_model(model: MaskRCNN, tmp_path: Path) -> None:
    categories = [{"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}, {"id": 11, "name": "owl"}]
    config = {"model": {"num_classes": 3}, "data": {"root": "data/set"}}
    content = {
        CHECKPOINT_KEY: {"categories": categories, "config": config},
        "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()}
        | {"metric.total": torch.tensor(1.0)},
        "epoch": 3,
    }
    weights = read_weights(saved(content, tmp_path / "last.ckpt"))
    assert (weights.categories, weights.config) == (categories, config)
    assert (weights.groups, weights.settings) == ({}, {})
    assert set(weights.state) == set(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    load_weights(model, weights)
    for name, value in model.state_dict().items():
        assert torch.equal(value, content["state_dict"][f"model.{name}"]), name


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.marker}'",)


def zip_bomb(bomb: Bomb, path: Path) -> None:
    torch.save({"state_dict": {"model.x": bomb}, CHECKPOINT_KEY: {"categories": [], "config": {}}}, path)


def legacy_bomb(bomb: Bomb, path: Path) -> None:
    torch.save({"x": bomb}, path, _use_new_zipfile_serialization=False)


def plain_bomb(bomb: Bomb, path: Path) -> None:
    path.write_bytes(pickle.dumps(bomb, protocol=2))


@pytest.mark.parametrize("write", [zip_bomb, legacy_bomb, plain_bomb])
def test_a_file_that_would_run_code_is_refused_unread(tmp_path: Path, write: Callable[[Bomb, Path], None]) -> None:
    marker, path = tmp_path / "marker", tmp_path / "bomb.ckpt"
    write(Bomb(marker), path)
    with pytest.raises(UserError, match=r"^init=.*bomb\.ckpt: not a checkpoint.*could run code"):
        read_weights(path, key="init")
    with pytest.raises(UserError, match=r"bomb\.ckpt: not a checkpoint"):
        ResNet(name="resnet18", weights=str(path))
    assert not marker.exists()
    # It was a bomb.
    if write is plain_bomb:
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.exists()


def garbage(path: Path, good: Path) -> None:
    path.write_bytes(bytes(range(256)) * 10)


def empty(path: Path, good: Path) -> None:
    path.write_bytes(b"")


def truncated(path: Path, good: Path) -> None:
    path.write_bytes(good.read_bytes()[: good.stat().st_size // 2])


def text(path: Path, good: Path) -> None:
    path.write_text("not found\n" * 20)


def zip_of_something_else(path: Path, good: Path) -> None:
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


@pytest.mark.parametrize("damage", [garbage, empty, truncated, text, zip_of_something_else])
def test_a_damaged_file_is_a_user_error_of_one_line(
    state: State, tmp_path: Path, damage: Callable[[Path, Path], None]
) -> None:
    path = tmp_path / "bad.pth"
    damage(path, saved(state, tmp_path / "good.pth"))
    with pytest.raises(UserError, match=r"ckpt=.*bad\.pth: not a checkpoint") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("folder", [False, True])
def test_a_missing_file_is_a_user_error(tmp_path: Path, folder: bool) -> None:
    path = tmp_path if folder else tmp_path / "none.pth"
    with pytest.raises(UserError, match=f"^init={re.escape(str(path))}: no such file"):
        read_weights(path, key="init")


@pytest.mark.parametrize(
    "content",
    [{"conv1.weight": torch.zeros(2)}, {}, torch.zeros(3), [1, 2], {"model": {"a": torch.zeros(1)}}],
    ids=["resnet", "empty", "tensor", "list", "nested"],
)
def test_weights_of_something_else_are_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(UserError, match=r"w\.pth: holds no Mask R-CNN weights that are known here"):
        read_weights(saved(content, tmp_path / "w.pth"))


def test_an_unknown_parameter_among_torchvision_names_is_named(state: State, tmp_path: Path) -> None:
    content = state | {"roi_heads.keypoint_head.0.weight": torch.zeros(1)}
    with pytest.raises(UserError, match=r"resnet50_fpn: roi_heads\.keypoint_head\.0\.weight is not a param"):
        read_weights(saved(content, tmp_path / "w.pth"))


def test_another_number_of_classes_is_refused_with_the_parameter(
    state: State, make_tiny_model: Factory, tmp_path: Path
) -> None:
    weights = read_weights(saved(state, tmp_path / "w.pth"))
    model = make_tiny_model(preset="torchvision", num_classes=5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=r"does not fit this model: roi_heads\.") as caught:
        load_weights(model, weights)
    # Six tensors have rows of classes; two are spelt out.
    assert re.search(r"scores\.weight is \[4, 64\] there, \[6, 64\] here", str(caught.value))
    assert "(and 4 more)" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_missing_and_unknown_parameters_are_named(state: State, model: MaskRCNN, tmp_path: Path) -> None:
    content = dict(state)
    del content["rpn.head.cls_logits.bias"]
    content["backbone.body.layer9.weight"] = torch.zeros(1)
    weights = read_weights(saved(content, tmp_path / "w.pth"))
    with pytest.raises(UserError) as caught:
        load_weights(model, weights, key="init")
    assert str(caught.value).startswith(f"init={tmp_path / 'w.pth'}: does not fit this model")
    assert "rpn.objectness.bias is missing there" in str(caught.value)
    assert "backbone.layer9.weight is unknown here" in str(caught.value)


def checkpoint(model: MaskRCNN, names: list[str], path: Path) -> Path:
    """A checkpoint of ours of a model with classes of these names."""
    content = {
        CHECKPOINT_KEY: {
            "categories": [{"id": i, "name": name} for i, name in enumerate(names, start=1)],
            "config": {},
        },
        "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()},
    }
    return saved(content, path)


def fill(model: MaskRCNN, value: float) -> MaskRCNN:
    """Every entry is `value`; rows of classes add their number."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(value)
        head = model.roi_heads.box_heads[0]
        classes = torch.arange(model.num_classes + 1.0)
        head.scores.bias.add_(classes)
        model.roi_heads.mask_head.logits.bias.add_(classes)
        if not head.class_agnostic:
            head.deltas.bias.add_(classes.repeat_interleave(4))
    return model


def test_rows_of_classes_follow_their_name(make_tiny_model: Factory, tmp_path: Path) -> None:
    per_class = "model.box_head.class_agnostic=false"
    path = checkpoint(fill(make_tiny_model(per_class, num_classes=3), 100), ["cat", "dog", "owl"], tmp_path / "a.ckpt")
    model = fill(make_tiny_model(per_class, num_classes=4), 0)
    report = init_weights(model, read_weights(path), class_names=["owl", "fox", "cat", "emu"])
    # Background, owl, fox (its own), cat, emu (its own).
    rows = [100.0, 103.0, 2.0, 101.0, 4.0]
    assert model.roi_heads.box_heads[0].scores.bias.tolist() == rows
    assert model.roi_heads.mask_head.logits.bias.tolist() == rows
    assert model.roi_heads.box_heads[0].deltas.bias.view(5, 4).tolist() == [[row] * 4 for row in rows]
    weight = model.roi_heads.box_heads[0].scores.weight
    assert weight[:, 0].tolist() == [100, 100, 0, 100, 0]
    assert sorted(report) == sorted(
        f"{layer}.{kind} (rows of new classes)" for layer in (SCORES, DELTAS, LOGITS) for kind in ("weight", "bias")
    )
    others = [n for n in model.state_dict() if not n.startswith((SCORES, DELTAS, LOGITS))]
    assert all((model.state_dict()[name] == 100).all() for name in others)


def test_a_reordered_subset_of_the_classes_leaves_nothing_fresh(make_tiny_model: Factory, tmp_path: Path) -> None:
    path = checkpoint(fill(make_tiny_model(num_classes=3), 100), ["cat", "dog", "owl"], tmp_path / "a.ckpt")
    model = fill(make_tiny_model(num_classes=2), 0)
    assert init_weights(model, read_weights(path), class_names=["owl", "cat"]) == []
    assert model.roi_heads.box_heads[0].scores.bias.tolist() == [100, 103, 101]


def test_the_same_classes_take_everything(make_tiny_model: Factory, tmp_path: Path) -> None:
    source = make_tiny_model(num_classes=3)
    path = checkpoint(source, ["cat", "dog", "owl"], tmp_path / "a.ckpt")
    model = fill(make_tiny_model(num_classes=3), 0)
    assert init_weights(model, read_weights(path), class_names=["cat", "dog", "owl"]) == []
    for name, value in model.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name


@pytest.mark.parametrize(("old", "new"), [(3, 3), (3, 7), (1, 3), (2, 4)])
def test_class_agnostic_boxes_carry_over_whole(make_tiny_model: Factory, tmp_path: Path, old: int, new: int) -> None:
    agnostic = "model.box_head.class_agnostic=true"
    names = [f"old{i}" for i in range(old)]
    path = checkpoint(fill(make_tiny_model(agnostic, num_classes=old), 100), names, tmp_path / "a.ckpt")
    model = fill(make_tiny_model(agnostic, num_classes=new), 0)
    report = init_weights(model, read_weights(path), class_names=[f"new{i}" for i in range(new)])
    assert model.roi_heads.box_heads[0].deltas.bias.tolist() == [100] * 4
    assert not any(name.startswith(DELTAS) for name in report)
    assert model.roi_heads.box_heads[0].scores.bias.tolist() == [100.0, *range(1, new + 1)]


def test_what_does_not_fit_stays_fresh_and_is_reported(make_tiny_model: Factory, tmp_path: Path) -> None:
    per_class = "model.box_head.class_agnostic=false"
    path = checkpoint(fill(make_tiny_model(per_class, num_classes=3), 100), ["cat", "dog", "owl"], tmp_path / "a.ckpt")
    model = fill(
        make_tiny_model("model.box_head.hidden_dim=32", "model.box_head.class_agnostic=true", num_classes=3),
        7,
    )
    report = init_weights(model, read_weights(path), class_names=["cat", "fox", "owl"])
    box_head = "roi_heads.box_heads.0"
    assert sorted(report) == sorted(
        [
            *(f"{box_head}.{n}" for n in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")),
            f"{box_head}.scores.weight",
            f"{box_head}.scores.bias (rows of new classes)",
            f"{box_head}.deltas.weight",
            f"{box_head}.deltas.bias",
            f"{LOGITS}.weight (rows of new classes)",
            f"{LOGITS}.bias (rows of new classes)",
        ]
    )
    assert (model.state_dict()[f"{box_head}.fc1.weight"] == 7).all()
    assert (model.state_dict()["rpn.convs.0.weight"] == 100).all()


def test_weights_of_another_backbone_are_no_start(make_tiny_model: Factory, tmp_path: Path) -> None:
    path = checkpoint(make_tiny_model(), ["cat", "dog", "owl"], tmp_path / "a.ckpt")
    weights = read_weights(path)
    renamed = {name.replace("backbone.", "backbone.body."): v for name, v in weights.state.items()}
    weights.state.clear()
    weights.state.update(renamed)
    with pytest.raises(UserError, match=r"init=.*a\.ckpt: no weight of its backbone fits"):
        init_weights(make_tiny_model(), weights, class_names=["cat", "dog", "owl"])


@pytest.mark.parametrize("norm", ["bn", "frozen_bn"])
def test_backbone_weights_come_from_a_file(tmp_path: Path, norm: Any) -> None:
    torch.manual_seed(5)
    state = resnet18().state_dict()
    state["bn1.running_mean"] += 3
    backbone = ResNet(name="resnet18", weights=str(saved(state, tmp_path / "r18.pth")), norm=norm)
    found = backbone.state_dict()
    assert len(found) == (120 if norm == "bn" else 100)
    for name, value in found.items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize(
    "content",
    [
        {"conv1.weight": torch.zeros(64, 3, 7, 7)},
        {"state_dict": {"conv1.weight": torch.zeros(64, 3, 7, 7)}},
        torch.zeros(2),
    ],
    ids=["incomplete", "nested", "no_dict"],
)
def test_backbone_weights_that_do_not_fit_are_refused(tmp_path: Path, content: Any) -> None:
    path = saved(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"model\.backbone\.weights=.*w\.pth: does not fit resnet18: \w+"):
        ResNet(name="resnet18", weights=str(path))


def test_backbone_weights_of_another_shape_are_refused_with_the_parameter(tmp_path: Path) -> None:
    state = resnet18().state_dict()
    state["layer2.0.conv1.weight"] = torch.zeros(128, 64, 1, 1)
    path = saved(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"does not fit resnet18: layer2\.0\.conv1\.weight is missing or"):
        ResNet(name="resnet18", weights=str(path))


def test_a_missing_backbone_file_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^model\.backbone\.weights=.*none\.pth: no such file"):
        ResNet(name="resnet18", weights=str(tmp_path / "none.pth"))


@pytest.mark.parametrize("error", [URLError("no route to host"), OSError("disk"), RuntimeError("invalid hash")])
def test_default_weights_without_network_say_what_to_do(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(self: WeightsEnum, *args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(WeightsEnum, "get_state_dict", fail)
    with pytest.raises(UserError, match=r"model\.backbone\.weights=default: cannot download https://") as caught:
        ResNet(name="resnet18", weights="default")
    for hint in ("resnet18", "checkpoints", "local file", "null"):
        assert hint in str(caught.value)


def test_default_weights_are_checked_and_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(6)
    state = resnet18().state_dict()
    calls = []

    def give(self: WeightsEnum, *args: Any, **kwargs: Any) -> State:
        calls.append((str(self), kwargs["check_hash"]))
        return state

    monkeypatch.setattr(WeightsEnum, "get_state_dict", give)
    backbone = ResNet(name="resnet18", weights="default")
    assert calls == [("ResNet18_Weights.IMAGENET1K_V1", True)]
    assert torch.equal(backbone.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])

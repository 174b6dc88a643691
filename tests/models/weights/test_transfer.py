import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskrcnn.errors import UserError
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.models.weights import init_weights, load_weights, read_weights
from tests.models.weights.weight_files import checkpoint, saved

Factory = Callable[..., Any]
State = dict[str, Tensor]

SCORES, DELTAS = "roi_heads.box_heads.0.scores", "roi_heads.box_heads.0.deltas"
LOGITS = "roi_heads.mask_head.logits"


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
    transfer = init_weights(model, read_weights(path), class_names=["owl", "fox", "cat", "emu"])
    # Background, owl, fox (its own), cat, emu (its own).
    rows = [100.0, 103.0, 2.0, 101.0, 4.0]
    assert model.roi_heads.box_heads[0].scores.bias.tolist() == rows
    assert model.roi_heads.mask_head.logits.bias.tolist() == rows
    assert model.roi_heads.box_heads[0].deltas.bias.view(5, 4).tolist() == [[row] * 4 for row in rows]
    weight = model.roi_heads.box_heads[0].scores.weight
    assert weight[:, 0].tolist() == [100, 100, 0, 100, 0]
    assert set(transfer.mapped) == {
        f"{layer}.{kind}" for layer in (SCORES, DELTAS, LOGITS) for kind in ("weight", "bias")
    }
    assert (transfer.fresh, transfer.unused, transfer.path) == ({}, [], path)
    assert (transfer.old_classes, transfer.new_classes) == (["cat", "dog", "owl"], ["owl", "fox", "cat", "emu"])
    others = [n for n in model.state_dict() if not n.startswith((SCORES, DELTAS, LOGITS))]
    assert transfer.kept == others
    assert not transfer.complete
    assert all((model.state_dict()[name] == 100).all() for name in others)


def test_a_reordered_subset_of_the_classes_leaves_nothing_fresh(make_tiny_model: Factory, tmp_path: Path) -> None:
    path = checkpoint(fill(make_tiny_model(num_classes=3), 100), ["cat", "dog", "owl"], tmp_path / "a.ckpt")
    model = fill(make_tiny_model(num_classes=2), 0)
    transfer = init_weights(model, read_weights(path), class_names=["owl", "cat"])
    assert transfer.fresh == {}
    assert set(transfer.kept) | set(transfer.mapped) == set(model.state_dict())
    assert model.roi_heads.box_heads[0].scores.bias.tolist() == [100, 103, 101]


def test_the_same_classes_take_everything(make_tiny_model: Factory, tmp_path: Path) -> None:
    source = make_tiny_model(num_classes=3)
    path = checkpoint(source, ["cat", "dog", "owl"], tmp_path / "a.ckpt")
    model = fill(make_tiny_model(num_classes=3), 0)
    transfer = init_weights(model, read_weights(path), class_names=["cat", "dog", "owl"])
    assert transfer.complete
    assert transfer.kept == list(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name


@pytest.mark.parametrize(("old", "new"), [(3, 3), (3, 7), (1, 3), (2, 4)])
def test_class_agnostic_boxes_carry_over_whole(make_tiny_model: Factory, tmp_path: Path, old: int, new: int) -> None:
    agnostic = "model.box_head.class_agnostic=true"
    names = [f"old{i}" for i in range(old)]
    path = checkpoint(fill(make_tiny_model(agnostic, num_classes=old), 100), names, tmp_path / "a.ckpt")
    model = fill(make_tiny_model(agnostic, num_classes=new), 0)
    transfer = init_weights(model, read_weights(path), class_names=[f"new{i}" for i in range(new)])
    assert model.roi_heads.box_heads[0].deltas.bias.tolist() == [100] * 4
    assert {f"{DELTAS}.weight", f"{DELTAS}.bias"} <= set(transfer.kept)
    assert model.roi_heads.box_heads[0].scores.bias.tolist() == [100.0, *range(1, new + 1)]


def test_what_does_not_fit_stays_fresh_and_is_reported(make_tiny_model: Factory, tmp_path: Path) -> None:
    per_class = "model.box_head.class_agnostic=false"
    path = checkpoint(fill(make_tiny_model(per_class, num_classes=3), 100), ["cat", "dog", "owl"], tmp_path / "a.ckpt")
    model = fill(
        make_tiny_model("model.box_head.hidden_dim=32", "model.box_head.class_agnostic=true", num_classes=3),
        7,
    )
    transfer = init_weights(model, read_weights(path), class_names=["cat", "fox", "owl"])
    box_head = "roi_heads.box_heads.0"
    assert transfer.fresh == {
        f"{box_head}.fc1.weight": "[64, 1568] there, [32, 1568] here",
        f"{box_head}.fc1.bias": "[64] there, [32] here",
        f"{box_head}.fc2.weight": "[64, 64] there, [32, 32] here",
        f"{box_head}.fc2.bias": "[64] there, [32] here",
        f"{SCORES}.weight": "[4, 64] there, [4, 32] here",
        f"{DELTAS}.weight": "[16, 64] there, [4, 32] here",
        f"{DELTAS}.bias": "[16] there, [4] here",
    }
    assert set(transfer.mapped) == {f"{SCORES}.bias", f"{LOGITS}.weight", f"{LOGITS}.bias"}
    assert (model.state_dict()[f"{box_head}.fc1.weight"] == 7).all()
    assert (model.state_dict()["rpn.convs.0.weight"] == 100).all()


def test_what_is_missing_there_and_unknown_here_is_named_but_not_counters(
    make_tiny_model: Factory, tmp_path: Path
) -> None:
    path = checkpoint(make_tiny_model("model.rpn.num_convs=2"), ["cat", "dog", "owl"], tmp_path / "a.ckpt")
    frozen = make_tiny_model("model.backbone.norm=frozen_bn", "model.mask_head.num_convs=3")
    transfer = init_weights(frozen, read_weights(path), class_names=["cat", "dog", "owl"])
    third = "roi_heads.mask_head.convs.2"
    assert transfer.fresh == {f"{third}.weight": "missing there", f"{third}.bias": "missing there"}
    assert transfer.unused == ["rpn.convs.1.weight", "rpn.convs.1.bias"]
    assert transfer.mapped == []
    path = checkpoint(frozen, ["cat", "dog", "owl"], tmp_path / "b.ckpt")
    counting = make_tiny_model("model.mask_head.num_convs=3")
    assert init_weights(counting, read_weights(path), class_names=["cat", "dog", "owl"]).complete


def test_weights_of_another_backbone_are_no_start(make_tiny_model: Factory, tmp_path: Path) -> None:
    path = checkpoint(make_tiny_model(), ["cat", "dog", "owl"], tmp_path / "a.ckpt")
    weights = read_weights(path)
    renamed = {name.replace("backbone.", "backbone.body."): v for name, v in weights.state.items()}
    weights.state.clear()
    weights.state.update(renamed)
    with pytest.raises(UserError, match=r"init=.*a\.ckpt: no weight of its backbone fits"):
        init_weights(make_tiny_model(), weights, class_names=["cat", "dog", "owl"])

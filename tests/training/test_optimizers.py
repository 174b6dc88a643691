"""Parameter groups and learning rates, by hand."""

import pytest
import torch

from maskrcnn.training.optimizers import adam, adamw, parameter_groups, scaled_lr, sgd


def test_weight_decay_is_on_weights_alone(make_tiny_model):
    model = make_tiny_model("model.backbone.frozen_stages=1", "model.neck.norm=bn")
    decayed, spared = parameter_groups(model, lr=0.1)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert "weight_decay" not in decayed
    assert spared["weight_decay"] == 0
    assert decayed["lr"] == spared["lr"] == 0.1
    assert all(names[parameter].endswith("weight") for parameter in decayed["params"])
    modules = dict(model.named_modules())
    for parameter in spared["params"]:
        owner, _, kind = names[parameter].rpartition(".")
        assert kind == "bias" or isinstance(modules[owner], torch.nn.BatchNorm2d)
    grouped = [names[parameter] for group in (decayed, spared) for parameter in group["params"]]
    assert sorted(grouped) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    assert "backbone.conv1.weight" not in grouped


def test_backbone_learns_more_slowly_towards_the_pixels(make_tiny_model):
    model = make_tiny_model()
    groups = parameter_groups(model, lr=0.1, backbone_lr_factor=0.5, backbone_lr_decay=0.1)
    lr = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    assert len(lr) == sum(1 for _ in model.parameters())
    expected = {
        "rpn.objectness.weight": 0.1,
        "neck.lateral.0.0.bias": 0.1,
        "backbone.layer4.1.conv2.weight": 0.05,
        "backbone.layer4.0.downsample.1.bias": 0.05,
        "backbone.layer3.0.conv1.weight": 0.005,
        "backbone.layer1.0.bn1.weight": 5e-5,
        "backbone.conv1.weight": 5e-6,
        "backbone.bn1.bias": 5e-6,
    }
    names = dict(model.named_parameters())
    assert {name: lr[names[name]] for name in expected} == pytest.approx(expected)
    assert groups[0]["lr"] == 0.1  # the one that is logged


@pytest.mark.parametrize(("rule", "expected"), [(None, 0.02), ("linear", 0.08), ("sqrt", 0.04)])
def test_learning_rate_grows_with_the_batch(rule, expected):
    assert scaled_lr(0.02, rule, batch_size=64, reference=16) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("make", "kind"), [(adam, torch.optim.Adam), (adamw, torch.optim.AdamW), (sgd, torch.optim.SGD)]
)
def test_settings_reach_torch(make, kind, make_tiny_model):
    model = make_tiny_model()
    optimizer = make(
        model,
        batch_size=32,
        fused=False,
        lr=0.3,
        weight_decay=0.7,
        backbone_lr_factor=0.1,
        lr_scaling="linear",
        **({"momentum": 0.2, "nesterov": True} if make is sgd else {"betas": (0.1, 0.2), "eps": 0.4}),
    )
    assert type(optimizer) is kind
    head, head_norms, body, body_norms = optimizer.param_groups
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.6, 0.6, 0.06, 0.06])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.7, 0.0, 0.7, 0.0]
    for group in (head, head_norms, body, body_norms):
        assert not group["fused"]
        if make is sgd:
            assert (group["momentum"], group["nesterov"]) == (0.2, True)
        else:
            assert (group["betas"], group["eps"]) == ((0.1, 0.2), 0.4)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"backbone_lr_factor": 0.0}, "backbone_lr_factor"),
        ({"backbone_lr_decay": 1.5}, "backbone_lr_decay"),
        ({"reference_batch_size": 0}, "reference_batch_size"),
    ],
)
def test_wrong_value_is_named(settings, key, make_tiny_model):
    with pytest.raises(ValueError, match=key):
        adam(make_tiny_model(), batch_size=4, fused=False, **settings)

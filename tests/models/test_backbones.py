from collections import Counter
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d

from maskrcnn.models.backbones import ResNet


@pytest.mark.parametrize(
    ("name", "channels"), [("resnet18", [64, 128, 256, 512]), ("resnet50", [256, 512, 1024, 2048])]
)
def test_features_equal_torchvision(name: Any, channels: list[int]) -> None:
    torch.manual_seed(0)
    classifier = torchvision.models.get_model(name, weights=None).eval()
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    ours = ResNet(name=name, weights=None).eval()
    state = {n: v for n, v in classifier.state_dict().items() if not n.startswith("fc.")}
    assert ours.load_state_dict(state, strict=True)
    layers = {f"layer{i}": str(i) for i in (1, 2, 3, 4)}
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = IntermediateLayerGetter(classifier, layers)(pixels)
        found = ours(pixels)
    assert ours.out_channels == channels
    for feature, want, width, stride in zip(found, expected.values(), channels, (4, 8, 16, 32), strict=True):
        assert feature.shape == (1, width, 64 // stride, 96 // stride)
        torch.testing.assert_close(feature, want)


@pytest.mark.parametrize(
    ("norm", "kind"), [("bn", nn.BatchNorm2d), ("frozen_bn", FrozenBatchNorm2d), ("gn", nn.GroupNorm)]
)
def test_every_normalisation_is_of_the_chosen_kind(norm: Any, kind: type[nn.Module]) -> None:
    backbone = ResNet(name="resnet18", weights=None, norm=norm, norm_eps=0.25)
    kinds = (nn.BatchNorm2d, FrozenBatchNorm2d, nn.GroupNorm)
    found = [module for module in backbone.modules() if isinstance(module, kinds)]
    assert Counter(type(module) for module in found) == {kind: 20}
    assert {module.eps for module in found} == {0.25}
    norms = {f"{name}." for name, module in backbone.named_modules() if isinstance(module, kinds)}
    trained = [n for n, _ in backbone.named_parameters() if any(n.startswith(prefix) for prefix in norms)]
    assert len(trained) == (0 if norm == "frozen_bn" else 40)
    assert all(f.isfinite().all() for f in backbone(torch.randn(2, 3, 32, 32)))


def test_epsilon_enters_the_result() -> None:
    features = []
    for eps in (0.0, 1e-5, 3.0):
        torch.manual_seed(0)
        backbone = ResNet(name="resnet18", weights=None, norm="frozen_bn", norm_eps=eps)
        features.append(backbone(torch.ones(1, 3, 32, 32))[0])
    torch.testing.assert_close(features[0], features[1], rtol=1e-3, atol=1e-4)
    # The first normalisation alone divides by the root of 1 + 3.
    assert features[2].mean() < 0.7 * features[0].mean()


@pytest.mark.parametrize("frozen_stages", range(6))
def test_frozen_stages_are_counted_from_the_stem(frozen_stages: int) -> None:
    backbone = ResNet(name="resnet18", weights=None, frozen_stages=frozen_stages)
    stages = [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)]
    for index, prefixes in enumerate(stages):
        parameters = [p for n, p in backbone.named_parameters() if n.split(".")[0] in prefixes]
        assert parameters
        assert {p.requires_grad for p in parameters} == {index >= frozen_stages}
    features = backbone(torch.randn(2, 3, 32, 32))
    assert [f.requires_grad for f in features] == [index >= frozen_stages for index in (1, 2, 3, 4)]


@pytest.mark.parametrize(("frozen_stages", "synchronised"), [(0, False), (2, False), (0, True)])
def test_gradient_checkpointing_changes_no_number(frozen_stages: int, synchronised: bool) -> None:
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = []
    for gradient_checkpointing in (False, True):
        torch.manual_seed(1)
        backbone = ResNet(
            name="resnet18",
            weights=None,
            frozen_stages=frozen_stages,
            gradient_checkpointing=gradient_checkpointing,
        )
        if synchronised:
            backbone = nn.SyncBatchNorm.convert_sync_batchnorm(backbone)
        calls: Counter[str] = Counter()
        for name in ("layer1", "layer4"):
            backbone.get_submodule(name).register_forward_pre_hook(lambda *_, n=name, c=calls: c.update([n]))
        for _ in range(2):
            sum(feature.square().mean() for feature in backbone(pixels)).backward()
        assert calls["layer4"] == (4 if gradient_checkpointing else 2)
        gradients = {name: p.grad for name, p in backbone.named_parameters() if p.requires_grad}
        found.append(gradients | dict(backbone.named_buffers()))
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name
    assert found[1]["bn1.num_batches_tracked"] == found[1]["layer4.1.bn2.num_batches_tracked"] == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [("name", "vgg16"), ("norm", "layer_norm"), ("frozen_stages", -1), ("frozen_stages", 6)],
)
def test_invalid_arguments_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must"):
        ResNet(**{"name": "resnet18", "weights": None, name: value})

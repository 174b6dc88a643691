import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import SqueezeExcitation

from maskrcnn.errors import UserError
from maskrcnn.models.backbones import MobileNet, ResNet, Timm
from maskrcnn.models.backbones.norms import FrozenBatchNorm2d
from maskrcnn.models.backbones.stages import Backbone

LAYERS = {f"layer{i}": str(i) for i in (1, 2, 3, 4)}
# Network -> where torchvision's copy makes c2..c5, and their channels.
FAMILIES: dict[str, tuple[type[Backbone], dict[str, str] | list[int], list[int]]] = {
    "resnet18": (ResNet, LAYERS, [64, 128, 256, 512]),
    "resnet34": (ResNet, LAYERS, [64, 128, 256, 512]),
    "resnet50": (ResNet, LAYERS, [256, 512, 1024, 2048]),
    "resnext50_32x4d": (ResNet, LAYERS, [256, 512, 1024, 2048]),
    "mobilenet_v2": (MobileNet, [3, 6, 13, 18], [24, 32, 96, 1280]),
    "mobilenet_v3_large": (MobileNet, [3, 6, 12, 16], [24, 40, 112, 960]),
    "mobilenet_v3_small": (MobileNet, [1, 3, 8, 12], [16, 24, 48, 576]),
}
SMALL = ["resnet18", "mobilenet_v2", "mobilenet_v3_small"]
SIZES = [(16, 24), (8, 12), (4, 6), (2, 3)]  # of c2..c5 for 64 x 96 pixels
NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d, nn.GroupNorm)


def make(name: str, **arguments: Any) -> Any:
    return FAMILIES[name][0](name=name, **{"weights": None} | arguments)


def trained(network: nn.Module) -> nn.Module:
    """With statistics as if it had seen pictures, so that a wrong one shows."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


@pytest.mark.parametrize("squeeze_excitation", [False, True])
def test_the_stride_moves_into_the_first_convolution(squeeze_excitation: bool) -> None:
    torch.manual_seed(0)
    strided, usual = (
        ResNet(name="resnet50", weights=None, squeeze_excitation=squeeze_excitation, stride_in_1x1=choice).eval()
        for choice in (True, False)
    )
    strided.load_state_dict(usual.state_dict(), strict=True)
    for number, stage in enumerate((strided.layer1, strided.layer2, strided.layer3, strided.layer4)):
        strides = [(block.conv1.stride, block.conv2.stride) for block in stage]
        assert strides == [((min(number, 1) + 1,) * 2, (1, 1))] + [((1, 1), (1, 1))] * (len(stage) - 1)
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found, others = strided(pixels), usual(pixels)
        block = strided.layer2[0]
        x = block.relu(block.bn1(block.conv1(others[0])))
        whole = block.relu(block.bn1(usual.layer2[0].conv1(others[0])))
    torch.testing.assert_close(x, whole[:, :, ::2, ::2])
    torch.testing.assert_close(found[0], others[0])
    for feature, other, size in zip(found[1:], others[1:], SIZES[1:], strict=True):
        assert feature.shape[-2:] == size
        assert (feature - other).abs().max() > 0.01


@pytest.mark.parametrize("name", FAMILIES)
def test_features_equal_torchvision(name: str) -> None:
    torch.manual_seed(0)
    classifier = trained(torchvision.models.get_model(name, weights=None))
    _, places, channels = FAMILIES[name]
    ours = make(name).eval()
    state = {n: v for n, v in classifier.state_dict().items() if not n.startswith(("fc.", "classifier."))}
    assert ours.load_state_dict(state, strict=True)
    pixels = torch.randn(1, 3, 64, 96)
    layers = classifier if isinstance(places, dict) else classifier.features
    taps = places if isinstance(places, dict) else {str(index): str(index) for index in places}
    with torch.no_grad():
        expected = IntermediateLayerGetter(layers, taps)(pixels)
        found = ours(pixels)
    assert ours.out_channels == channels
    for feature, want, width, size in zip(found, expected.values(), channels, SIZES, strict=True):
        assert feature.shape == (1, width, *size)
        torch.testing.assert_close(feature, want)


@pytest.mark.parametrize("name", ["resnet101", "resnet152", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2"])
@pytest.mark.parametrize("squeeze_excitation", [False, True])
def test_large_networks_have_torchvisions_parameters(name: Any, squeeze_excitation: bool) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None)
        ours = ResNet(name=name, weights=None, squeeze_excitation=squeeze_excitation)
    expected = {n: v.shape for n, v in theirs.state_dict().items() if not n.startswith("fc.")}
    found = {n: v.shape for n, v in ours.state_dict().items() if ".se." not in n}
    assert found == expected
    convolutions = [
        {
            n: (m.stride, m.groups, m.padding)
            for n, m in net.named_modules()
            if isinstance(m, nn.Conv2d) and "se." not in n
        }
        for net in (ours, theirs)
    ]
    assert convolutions[0] == convolutions[1]
    assert ours.out_channels == [256, 512, 1024, 2048]
    gates = 4 * sum(len(stage[0]) for stage in ours.layers()[1:])
    assert len(ours.state_dict()) - len(found) == gates * squeeze_excitation


@pytest.mark.parametrize("norm", ["bn", "frozen_bn", "gn"])
@pytest.mark.parametrize(("name", "count"), [("resnet18", 20), ("mobilenet_v2", 52), ("mobilenet_v3_small", 34)])
def test_every_normalisation_is_of_the_chosen_kind(name: str, count: int, norm: str) -> None:
    kind = dict(zip(("bn", "frozen_bn", "gn"), NORMS, strict=True))[norm]
    backbone = make(name, norm=norm, norm_eps=0.25)
    found = [module for module in backbone.modules() if isinstance(module, NORMS)]
    assert Counter(type(module) for module in found) == {kind: count}
    assert {module.eps for module in found} == {0.25}
    norms = {f"{name}." for name, module in backbone.named_modules() if isinstance(module, NORMS)}
    learned = [n for n, _ in backbone.named_parameters() if any(n.startswith(prefix) for prefix in norms)]
    assert len(learned) == (0 if norm == "frozen_bn" else 2 * count)
    assert all(f.isfinite().all() for f in backbone(torch.randn(2, 3, 32, 32)))


@pytest.mark.parametrize(("name", "eps", "momentum"), [("mobilenet_v2", 1e-5, 0.1), ("mobilenet_v3_small", 1e-3, 0.01)])
def test_mobilenets_normalise_as_they_were_trained(name: str, eps: float, momentum: float) -> None:
    theirs = torchvision.models.get_model(name, weights=None).features
    for network in (theirs, make(name)):
        norms = {(m.eps, m.momentum) for m in network.modules() if isinstance(m, nn.BatchNorm2d)}
        assert norms == {(eps, momentum)}


def test_epsilon_enters_the_result() -> None:
    features = []
    for eps in (0.0, 1e-5, 3.0):
        torch.manual_seed(0)
        backbone = ResNet(name="resnet18", weights=None, norm="frozen_bn", norm_eps=eps)
        features.append(backbone(torch.ones(1, 3, 32, 32))[0])
    torch.testing.assert_close(features[0], features[1], rtol=1e-3, atol=1e-4)
    # The first normalisation alone divides by the root of 1 + 3.
    assert features[2].mean() < 0.7 * features[0].mean()


STAGES = {
    "resnet18": [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)],
    "mobilenet_v2": [
        [f"features.{i}" for i in r] for r in (range(2), range(2, 4), range(4, 7), range(7, 14), range(14, 19))
    ],
}


@pytest.mark.parametrize("frozen_stages", range(6))
@pytest.mark.parametrize("name", STAGES)
def test_frozen_stages_are_counted_from_the_stem(name: str, frozen_stages: int) -> None:
    backbone = make(name, frozen_stages=frozen_stages)
    counted = 0
    for index, prefixes in enumerate(STAGES[name]):
        starts = tuple(f"{prefix}." for prefix in prefixes)
        parameters = [p for n, p in backbone.named_parameters() if n.startswith(starts)]
        counted += len(parameters)
        assert {p.requires_grad for p in parameters} == {index >= frozen_stages}
        assert {id(p) for p in parameters} == {id(p) for p in backbone.stages[index].parameters()}
    assert counted == len(list(backbone.parameters()))
    features = backbone(torch.randn(2, 3, 32, 32))
    assert [f.requires_grad for f in features] == [index >= frozen_stages for index in (1, 2, 3, 4)]


def gradients_and_buffers(backbone: Backbone, steps: int = 2) -> dict[str, Tensor]:
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(2)
    for _ in range(steps):
        sum(feature.square().mean() for feature in backbone(pixels)).backward()
    gradients = {name: p.grad for name, p in backbone.named_parameters() if p.requires_grad}
    assert all(gradient is not None for gradient in gradients.values())
    return gradients | dict(backbone.named_buffers())


@pytest.mark.parametrize(("frozen_stages", "synchronised"), [(0, False), (2, False), (0, True)])
@pytest.mark.parametrize("name", SMALL)
def test_gradient_checkpointing_changes_no_number(name: str, frozen_stages: int, synchronised: bool) -> None:
    found = []
    for gradient_checkpointing in (False, True):
        torch.manual_seed(1)
        backbone = make(name, frozen_stages=frozen_stages, gradient_checkpointing=gradient_checkpointing)
        if synchronised:
            backbone = nn.SyncBatchNorm.convert_sync_batchnorm(backbone)
        calls: list[int] = []
        backbone.layers()[4][0].register_forward_pre_hook(lambda *_, c=calls: c.append(1))
        found.append(gradients_and_buffers(backbone))
        assert len(calls) == (4 if gradient_checkpointing else 2)
    for key, value in found[0].items():
        assert torch.equal(value, found[1][key]), key
    assert {int(value) for key, value in found[1].items() if key.endswith("num_batches_tracked")} == {2}


# --- squeeze-and-excitation


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_squeeze_excitation_ends_each_residual_branch(name: Any) -> None:
    backbone = ResNet(name=name, weights=None, squeeze_excitation=True)
    gates = {n: m for n, m in backbone.named_modules() if isinstance(m, SqueezeExcitation)}
    assert len(gates) == {"resnet18": 8, "resnet50": 16}[name]
    for stage, channels in zip((1, 2, 3, 4), backbone.out_channels, strict=True):
        gate = gates[f"layer{stage}.1.se"]
        assert gate.fc1.weight.shape == (channels // 16, channels, 1, 1)
        assert gate.fc2.weight.shape == (channels, channels // 16, 1, 1)
    block = backbone.layer1[1].eval()
    x = torch.rand(1, backbone.out_channels[0], 8, 8)
    for gate, result in ((-1e4, x), (1e4, None)):  # shut: the shortcut alone; open: the block without it
        nn.init.constant_(block.se.fc2.bias, gate)
        if result is None:
            plain = ResNet(name=name, weights=None).layer1[1].eval()
            plain.load_state_dict(block.state_dict(), strict=False)
            result = plain(x)
        torch.testing.assert_close(block(x), result)


def test_squeeze_excitation_starts_almost_open_and_learns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = trained(ResNet(name="resnet18", weights=None))
    torch.save(plain.state_dict(), tmp_path / "w.pth")
    gated = ResNet(name="resnet18", weights=str(tmp_path / "w.pth"), squeeze_excitation=True).eval()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(gated(pixels), plain(pixels), strict=True):
            assert 0.0 < (ours - theirs).norm() / theirs.norm() < 0.1
    gradients = gradients_and_buffers(gated.train(), steps=1)
    assert all(gradients[name].abs().sum() > 0 for name in gradients if ".se." in name and name.endswith("weight"))


def test_weights_with_squeeze_excitation_load_wholly(tmp_path: Path) -> None:
    source = ResNet(name="resnet18", weights=None, squeeze_excitation=True)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    loaded = ResNet(name="resnet18", weights=str(tmp_path / "w.pth"), squeeze_excitation=True)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in loaded.state_dict().items())


# --- weights


@pytest.mark.parametrize("norm", ["bn", "frozen_bn", "gn"])
def test_mobilenet_takes_a_classifiers_file(tmp_path: Path, norm: str) -> None:
    torch.manual_seed(3)
    state = trained(torchvision.models.mobilenet_v2(weights=None)).state_dict()
    torch.save(state, tmp_path / "w.pth")
    found = make("mobilenet_v2", weights=str(tmp_path / "w.pth"), norm=norm).state_dict()
    assert len(found) == {"bn": 312, "frozen_bn": 260, "gn": 156}[norm]
    for name, value in found.items():
        assert torch.equal(value, state[name]), name


def test_mobilenet_refuses_the_weights_of_another(tmp_path: Path) -> None:
    torch.save(torchvision.models.mobilenet_v3_small(weights=None).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"^model\.backbone\.weights=.*w\.pth: does not fit mobilenet_v2: features\."):
        make("mobilenet_v2", weights=str(tmp_path / "w.pth"))


@pytest.mark.parametrize(("name", "file"), [("mobilenet_v2", "mobilenet_v2-"), ("resnext50_32x4d", "resnext50_32x4d-")])
def test_without_network_the_file_and_its_place_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, file: str
) -> None:
    def fail(self: WeightsEnum, *args: Any, **kwargs: Any) -> Any:
        raise URLError("no route to host")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", fail)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=rf"put {file}\w+\.pth into {tmp_path}/checkpoints, or set"):
        make(name, weights="default")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize(
    ("key", "value"),
    [("name", "vgg16"), ("norm", "layer_norm"), ("frozen_stages", -1), ("frozen_stages", 6)],
)
def test_invalid_arguments_are_named(name: str, key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{key} must"):
        FAMILIES[name][0](**{"name": name, "weights": None, key: value})


# --- timm


@pytest.fixture
def timm() -> ModuleType:
    return pytest.importorskip("timm")


# BatchNorm, EfficientNet's own feature class, LayerNorm, channels last with windows.
TIMM = ["test_resnet", "test_efficientnet", "test_convnext", "swin_tiny_patch4_window7_224"]


def file_of(network: nn.Module, path: Path) -> str:
    torch.save(network.state_dict(), path)
    return str(path)


@pytest.mark.parametrize("name", TIMM)
def test_timm_features_equal_timms_own(timm: ModuleType, tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    any_size = {"strict_img_size": False, "always_partition": True} if name.startswith("swin") else {}
    classifier = trained(timm.create_model(name, **any_size))
    ours = Timm(name=name, weights=file_of(classifier, tmp_path / "w.pth")).eval()
    pixels = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = classifier.forward_intermediates(pixels, intermediates_only=True, output_fmt="NCHW")[-4:]
        found = ours(pixels)
    assert ours.out_channels == [feature.shape[1] for feature in expected]
    for feature, want, size in zip(found, expected, SIZES, strict=True):
        assert feature.shape[2:] == size
        torch.testing.assert_close(feature, want)


@pytest.mark.parametrize("name", TIMM)
def test_timm_frozen_and_checkpointed(timm: ModuleType, name: str) -> None:
    found = []
    for gradient_checkpointing in (False, True):
        torch.manual_seed(1)
        backbone = Timm(name=name, weights=None, frozen_stages=2, gradient_checkpointing=gradient_checkpointing)
        assert [{p.requires_grad for p in stage.parameters()} for stage in backbone.stages] == [{False}] * 2 + [
            {True}
        ] * 3
        in_stages = [p for stage in backbone.stages for p in stage.parameters()]
        assert len(in_stages) == len(list(backbone.parameters()))
        found.append(gradients_and_buffers(backbone, steps=1))
    for key, value in found[0].items():
        assert torch.equal(value, found[1][key]), key


# The last has a BatchNorm beside the convolutions of a block, for the same maps.
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "repvgg_a0"])
def test_timm_batch_norm_can_be_frozen_and_replaced(timm: ModuleType, tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    path = file_of(trained(timm.create_model(name)), tmp_path / "w.pth")
    plain, frozen = Timm(name=name, weights=path), Timm(name=name, weights=path, norm="frozen_bn")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        want = plain.eval()(pixels)
        synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(plain)
        assert any(isinstance(module, nn.SyncBatchNorm) for module in synchronised.modules())
        # In training mode the frozen one still takes the file's statistics.
        for found in (frozen.train()(pixels), synchronised.eval()(pixels)):
            for feature, expected in zip(found, want, strict=True):
                torch.testing.assert_close(feature, expected)


def test_timm_reads_safetensors(timm: ModuleType, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    classifier = timm.create_model("test_convnext")
    save_file(classifier.state_dict(), tmp_path / "model.safetensors")
    backbone = Timm(name="test_convnext", weights=str(tmp_path / "model.safetensors"))
    assert torch.equal(backbone.net["stages_0"].blocks[0].mlp.fc1.weight, classifier.stages[0].blocks[0].mlp.fc1.weight)
    (tmp_path / "bad.safetensors").write_bytes(b"no weights at all")
    for file, problem in (
        ("bad.safetensors", "not a checkpoint, or a damaged one"),
        ("none.safetensors", "no such file"),
    ):
        with pytest.raises(UserError, match=rf"^model\.backbone\.weights=.*{file}: {problem}"):
            Timm(name="test_convnext", weights=str(tmp_path / file))


def test_timm_refuses_the_weights_of_another(timm: ModuleType, tmp_path: Path) -> None:
    path = file_of(timm.create_model("test_resnet"), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth: does not fit test_convnext: stem_0\.weight is missing"):
        Timm(name="test_convnext", weights=path)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"name": "convnext_tinny"}, "^name must be a network of timm, such as convnext_tiny, .*'convnext_tinny'"),
        ({"name": "vit_tiny_patch16_224"}, "^name must .* with maps of stride 4, 8, 16 and 32, got vit_tiny"),
        ({"name": "test_nfnet", "norm": "frozen_bn"}, "^norm must be null for test_nfnet"),
        ({"name": "test_resnet", "norm": "gn"}, "^norm must be null or frozen_bn"),
        ({"name": "test_resnet", "frozen_stages": 6}, "^frozen_stages must be between 0 and 5"),
        ({"name": "maxvit_nano_rw_256"}, "^name must be a network for pictures of any size, got maxvit_nano"),
        ({"name": "levit_128s"}, "^name must .* with maps of stride 4, 8, 16 and 32, got levit_128s"),
    ],
)
def test_timm_names_what_it_cannot_use(timm: ModuleType, arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Timm(**{"weights": None} | arguments)


def test_timm_without_network_says_which_file_to_get(timm: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/nowhere")
    with pytest.raises(
        UserError, match=r"^model\.backbone\.weights=default: cannot download .* test_convnext "
    ) as caught:
        Timm(name="test_convnext")
    assert "model.safetensors of https://huggingface.co/timm/test_convnext.r160_in1k" in str(caught.value)


def test_timm_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        UserError, match=r"^model\.backbone: timm is not installed; pip install 'maskrcnn-lightning\[timm\]'"
    ):
        Timm(name="convnext_tiny", weights=None)

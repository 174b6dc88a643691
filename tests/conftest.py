import gc
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FrozenBatchNorm2d

from maskrcnn.config import build, config_folder
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.ops import slots

TINY = (
    "model/backbone=resnet18",
    "model.input.min_size=64",
    "model.input.max_size=128",
    "model.neck.out_channels=32",
    "model.rpn.post_nms_top_n_train=50",
    "model.rpn.post_nms_top_n_test=50",
    "model.box_head.hidden_dim=64",
    "model.mask_head.num_convs=2",
    "model.mask_head.channels=16",
)

ModelMaker = Callable[..., MaskRCNN]

THREADS = torch.get_num_threads()


@pytest.fixture(scope="session", autouse=True)
def _tidied_up(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Leave nothing behind where all went well, not even what several tests shared."""
    gc.freeze()  # what is imported stays: looking through it for garbage takes a tenth of the time
    yield
    if not request.session.testsfailed:
        shutil.rmtree(tmp_path_factory.getbasetemp(), ignore_errors=True)


@pytest.fixture(autouse=True)
def _one_thread(request: pytest.FixtureRequest) -> None:
    """Two processes run the tests, on tensors so small that threads would only wait for each other."""
    torch.set_num_threads(THREADS if request.node.get_closest_marker("slow") else 1)


@pytest.fixture
def as_on_accelerator(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, compute as where the host would have to wait for shapes that depend on numbers."""
    return lambda: monkeypatch.setattr(slots, "_WITHOUT_WAITING", ())


@pytest.fixture(scope="session")
def make_model() -> ModelMaker:
    """Build the model of a preset in `conf/model`, with random weights unless told otherwise."""

    def make(*overrides: str, preset: str = "mask_rcnn", num_classes: int = 3, **extra: Any) -> MaskRCNN:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            cfg = compose(f"model/{preset}", overrides=["model.backbone.weights=null", *overrides])
        torch.manual_seed(0)
        model: MaskRCNN = build(cfg.model, key="model", num_classes=num_classes, **extra)
        return model

    return make


@pytest.fixture(scope="session")
def make_tiny_model(make_model: ModelMaker) -> ModelMaker:
    """The same with a ResNet-18 and narrow heads, for pictures of about 64 pixels."""

    def make(*overrides: str, **rest: Any) -> MaskRCNN:
        return make_model(*TINY, *overrides, **rest)

    return make


@pytest.fixture(scope="session")
def make_tiny_torchvision() -> Callable[..., TorchvisionMaskRCNN]:
    """torchvision's counterpart of the tiny model with the preset `torchvision`, or `torchvision_v2`."""

    def make(*, num_classes: int = 3, v2: bool = False, **settings: Any) -> TorchvisionMaskRCNN:
        torch.manual_seed(0)
        norm = nn.BatchNorm2d if v2 else None
        body = resnet18(weights=None, norm_layer=norm or FrozenBatchNorm2d)
        layers = {f"layer{i}": str(i - 1) for i in (1, 2, 3, 4)}
        model = TorchvisionMaskRCNN(
            BackboneWithFPN(body, layers, in_channels_list=[64, 128, 256, 512], out_channels=32, norm_layer=norm),
            min_size=64,
            max_size=128,
            rpn_head=RPNHead(32, 3, conv_depth=2 if v2 else 1),
            rpn_post_nms_top_n_train=50,
            rpn_post_nms_top_n_test=50,
            box_head=FastRCNNConvFCHead((32, 7, 7), [32] * 4, [64], norm) if v2 else TwoMLPHead(32 * 7 * 7, 64),
            box_predictor=FastRCNNPredictor(64, num_classes + 1),
            mask_head=MaskRCNNHeads(32, (16, 16), 1, norm_layer=norm),
            mask_predictor=MaskRCNNPredictor(16, 16, num_classes + 1),
            **settings,
        ).eval()
        scramble_norms(model)
        if v2:
            sharpen_heads(model)
        return model

    return make


@pytest.fixture(scope="session")
def make_torchvision() -> Callable[..., TorchvisionMaskRCNN]:
    """maskrcnn_resnet50_fpn with frozen BatchNorm; random heads that give confident, varied detections."""

    def make(**settings: Any) -> TorchvisionMaskRCNN:
        torch.manual_seed(0)
        backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=5)
        model = TorchvisionMaskRCNN(backbone, 91, **settings).eval()
        scramble_norms(model)
        sharpen_heads(model)
        return model

    return make


@torch.no_grad()
def scramble_norms(model: nn.Module) -> None:
    """Give every normalisation its own statistics, so that a mix-up of two of them shows."""
    for name, module in model.named_modules():
        if isinstance(module, FrozenBatchNorm2d | nn.BatchNorm2d):
            closes_block = name.endswith(("bn3", "layer1.0.bn2", "layer1.1.bn2"))
            module.weight.uniform_(0.2, 0.4) if closes_block else module.weight.uniform_(0.8, 1.2)
            module.bias.normal_(std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)


@torch.no_grad()
def sharpen_heads(model: TorchvisionMaskRCNN) -> None:
    """Scale the random predictions up, around their mean over the RoIs of one picture."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(std=0.02)
    model.rpn.head.cls_logits.weight.mul_(30)
    model.rpn.head.bbox_pred.weight.mul_(5)
    seen: list[Tensor] = []
    hook = model.roi_heads.box_head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model([checkered(torch.Generator().manual_seed(0), (160, 224))])
    hook.remove()
    predictor = model.roi_heads.box_predictor
    spread = seen[0].std(dim=0).norm()
    for layer, scale in ((predictor.cls_score, 3.0), (predictor.bbox_pred, 0.5)):
        layer.weight.mul_(scale / (layer.weight.std() * spread))
        layer.bias.copy_(-layer.weight @ seen[0].mean(dim=0))
    model.roi_heads.mask_predictor.mask_fcn_logits.weight.mul_(200)


def checkered(generator: torch.Generator, size: tuple[int, int]) -> Tensor:
    """A picture [3, h, w] in 0..1 of 7 x 7 coloured fields."""
    fields = torch.rand(1, 3, 7, 7, generator=generator)
    return nn.functional.interpolate(fields, size=size, mode="nearest")[0]


@pytest.fixture(scope="session")
def make_images() -> Callable[..., list[Tensor]]:
    """Pictures of given (height, width), the same for the same seed."""

    def make(sizes: Sequence[tuple[int, int]], *, seed: int = 1) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [checkered(generator, size) for size in sizes]

    return make


@pytest.fixture(scope="session")
def make_targets() -> Callable[..., list[dict[str, Tensor]]]:
    """Targets with `counts[i]` instances inside a picture of `sizes[i]`; masks are random 28 x 28 crops."""

    def make(
        sizes: Sequence[tuple[int, int]], counts: Sequence[int], *, num_classes: int = 3, seed: int = 2
    ) -> list[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        targets = []
        for (height, width), count in zip(sizes, counts, strict=True):
            limit = torch.tensor([width, height])
            side = limit * (0.2 + 0.4 * torch.rand(count, 2, generator=generator))
            corner = (limit - side) * torch.rand(count, 2, generator=generator)
            targets.append(
                {
                    "boxes": torch.cat((corner, corner + side), dim=1),
                    "labels": torch.randint(1, num_classes + 1, (count,), generator=generator),
                    "masks": torch.randint(0, 2, (count, 28, 28), generator=generator, dtype=torch.uint8) * 255,
                    "has_mask": torch.ones(count, dtype=torch.bool),
                }
            )
        return targets

    return make

"""Networks of timm (PyTorch Image Models), such as ConvNeXt and Swin.

in   [B, 3, H, W], H and W multiples of 32
out  list of [B, C_i, H / 2^i, W / 2^i], i = 2..5 (c2..c5)
"""

from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from maskrcnn.errors import UserError
from maskrcnn.models.backbones.norms import FrozenBatchNorm2d
from maskrcnn.models.backbones.stages import Backbone, Layers
from maskrcnn.models.weights import load_backbone_weights

_STRIDES = (4, 8, 16, 32)
_WEIGHTS = "model.backbone.weights"

# What networks built for pictures of one size need to take others: Swin pads its windows then.
_ANY_SIZE = ({"strict_img_size": False, "always_partition": True}, {"strict_img_size": False})
# EfficientNet and MobileNet have a class of their own for feature maps, unless asked for the row of layers.
_AS_LAYERS = {"feature_cfg": {"feature_cls": "list", "flatten_sequential": True}}


class Timm(Backbone):
    """A network of timm that has maps of stride 4, 8, 16 and 32.

    Args:
        name: The network in timm, with the tag of its weights or without: `convnext_tiny`, `convnext_tiny.fb_in1k`.
        weights: `default` for timm's pretrained weights, a state-dict file (`.pth`, `.safetensors`) in timm's names,
            or null for random ones. Some were trained with other `model.input.mean` and `std` than ImageNet's:
            `timm.get_pretrained_cfg(name)` has them.
        norm: Null for the normalisation that the network comes with; `frozen_bn` fixes statistics and affine of its
            BatchNorm, for small batches.
        frozen_stages: How many of stem, stage 2, ... 5 get no gradient, counted from the stem.
        gradient_checkpointing: Compute stages 2..5 a second time in the backward pass instead of keeping their
            activations (Chen et al. 2016): less memory, the same numbers, about a third more time.

    Attributes:
        out_channels: Channels of c2..c5.

    Raises:
        UserError: timm is not installed, or the weights cannot be loaded.
        ValueError: Detection cannot use the network.
    """

    def __init__(
        self,
        *,
        name: str = "convnext_tiny",
        weights: str | None = "default",
        norm: Literal["frozen_bn"] | None = None,
        frozen_stages: int = 0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if norm not in (None, "frozen_bn"):
            raise ValueError(f"norm must be null or frozen_bn, got {norm!r}")
        net = _network(name, pretrained=weights == "default")
        if weights not in (None, "default"):
            load_backbone_weights(net, name=name, weights=weights)
        last = dict(zip(net.feature_info.reduction(), net.return_layers, strict=True))
        if not set(_STRIDES) <= set(last):
            raise ValueError(f"name must be a network with maps of stride 4, 8, 16 and 32, got {name}: {sorted(last)}")
        order = list(net)
        ends = [order.index(last[stride]) + 1 for stride in _STRIDES]
        # The stem goes to the map of stride 2; where there is none, c2 comes out of one layer.
        stem = order.index(last[2]) + 1 if 2 in last else ends[0] - 1
        self._bounds = list(pairwise([0, stem, *ends]))
        self._channels_last = str(getattr(net, "output_fmt", "")).endswith("NHWC")
        self.net = nn.ModuleDict({key: _plain_batch_norm(net[key], norm) for key in order[: ends[-1]]})
        if norm and not any(isinstance(module, FrozenBatchNorm2d) for module in self.modules()):
            raise ValueError(f"norm must be null for {name}, which has no BatchNorm")
        self.out_channels = _probe(self, name)
        self.gradient_checkpointing = gradient_checkpointing
        self.freeze(frozen_stages)

    def layers(self) -> list[Layers]:
        """Layers of the stem and of stages 2..5, in the order they are applied."""
        layers = list(self.net.values())
        return [layers[first:end] for first, end in self._bounds]

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Maps c2..c5, finest first."""
        features = super().forward(pixels)
        return [x.permute(0, 3, 1, 2).contiguous() for x in features] if self._channels_last else features


def _network(name: str, *, pretrained: bool) -> Any:
    """The network as timm's row of layers."""
    if find_spec("timm") is None:
        raise UserError("model.backbone: timm is not installed; pip install 'maskrcnn-lightning[timm]'")
    timm = import_module("timm")
    if name not in timm.list_pretrained() and name not in timm.list_models():
        similar = ", ".join(get_close_matches(name, timm.list_models()))
        raise ValueError(f"name must be a network of timm{similar and f', such as {similar}'}, got {name!r}")
    published = timm.get_pretrained_cfg(name)
    if pretrained and not (published and published.has_weights):
        raise UserError(f"{_WEIGHTS}=default: timm has no weights of {name}; set it to a local file, or to null")
    sizes = _ANY_SIZE if published and published.fixed_input_size else ()
    for options in (*sizes, {}, _AS_LAYERS):
        try:
            net = timm.create_model(name, features_only=True, pretrained=pretrained, **options)
        except (TypeError, AssertionError):
            continue  # it has no such option
        except OSError as error:
            raise UserError(_where_to_get(published, name, error)) from None
        except RuntimeError as error:
            raise ValueError(f"name={name}: {error}") from error
        if isinstance(net, timm.models.FeatureListNet):
            return net
    raise ValueError(
        f"name must be a network that timm runs layer by layer, with maps of stride 4, 8, 16 and 32, got {name}"
    )


def _where_to_get(published: Any, name: str, error: OSError) -> str:
    url = f"https://huggingface.co/{published.hf_hub_id}"
    file = f"model.safetensors of {url}" if published.hf_hub_id else published.url
    return (
        f"{_WEIGHTS}=default: cannot download the weights of {name} ({error}); put {file} on this machine "
        f"and set {_WEIGHTS} to it, or to null for random weights"
    )


def _plain_batch_norm(module: nn.Module, norm: str | None) -> nn.Module:
    """The same module with timm's BatchNorm-and-activation taken apart, and BatchNorm frozen if `norm` says so.

    In one piece it would lose its activation where BatchNorm is replaced by SyncBatchNorm.
    """
    for name, child in module.named_children():
        setattr(module, name, _plain_batch_norm(child, norm))
    if not isinstance(module, nn.BatchNorm2d):
        return module
    rest = list(module.children())  # what timm put behind it
    if not rest and norm is None:
        return module
    kind: Any = nn.BatchNorm2d if norm is None else FrozenBatchNorm2d
    plain = kind(module.num_features, eps=module.eps)
    if norm is None:
        plain.momentum = module.momentum
    plain.load_state_dict(module.state_dict(), strict=False)
    return nn.Sequential(plain, *rest)


def _probe(backbone: Backbone, name: str) -> list[int]:
    """Channels of c2..c5; some networks take no picture but those of their own size."""
    height, width = 64, 96
    try:
        with torch.no_grad():
            features = backbone.eval()(torch.zeros(1, 3, height, width))
        sizes = [tuple(feature.shape[2:]) for feature in features]
    except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise ValueError(f"name must be a network for pictures of any size, got {name} ({error})") from error
    if sizes != [(height // stride, width // stride) for stride in _STRIDES]:
        raise ValueError(f"name must be a network with maps of stride 4, 8, 16 and 32, got {name}: {sizes}")
    backbone.train()
    return [feature.shape[1] for feature in features]

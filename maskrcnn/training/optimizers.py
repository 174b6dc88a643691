"""Optimizers: what decays, how fast each stage of the backbone learns, how lr grows with the batch.

An optimizer of your own is a callable of the same kind: (model, *, batch_size, fused, ...) -> Optimizer.
"""

from collections import defaultdict
from typing import Any, Literal

import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import nn
from torch.optim import Optimizer

Rule = Literal["linear", "sqrt"]


def adam(
    model: nn.Module,
    *,
    batch_size: int,
    fused: bool,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    backbone_lr_factor: float = 1.0,
    backbone_lr_decay: float = 1.0,
    lr_scaling: Rule | None = None,
    reference_batch_size: int = 16,
) -> Optimizer:
    """Adam (Kingma and Ba 2015), its weight decay as an L2 term of the loss.

    Args:
        model: Whose parameters are trained.
        batch_size: Pictures of one step, on all devices together.
        fused: One kernel for all parameters, which can leave a step out without the host knowing.
        lr: Learning rate.
        betas: Decay of the two running means.
        eps: Added to the denominator.
        weight_decay: Of weights alone, neither of biases nor of normalisation.
        backbone_lr_factor: The backbone's part of `lr`.
        backbone_lr_decay: And once more this factor for each stage before its last, down to the stem.
        lr_scaling: How `lr`, meant for `reference_batch_size`, grows with the batch: `linear` (Goyal et al. 2017),
            `sqrt` (Krizhevsky 2014), or not at all.
        reference_batch_size: Pictures of a step that `lr` is meant for.
    """
    lr = scaled_lr(lr, lr_scaling, batch_size=batch_size, reference=reference_batch_size)
    groups = parameter_groups(model, lr=lr, backbone_lr_factor=backbone_lr_factor, backbone_lr_decay=backbone_lr_decay)
    return torch.optim.Adam(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)


def adamw(
    model: nn.Module,
    *,
    batch_size: int,
    fused: bool,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.05,
    backbone_lr_factor: float = 1.0,
    backbone_lr_decay: float = 1.0,
    lr_scaling: Rule | None = None,
    reference_batch_size: int = 16,
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019); the arguments are those of `adam`."""
    lr = scaled_lr(lr, lr_scaling, batch_size=batch_size, reference=reference_batch_size)
    groups = parameter_groups(model, lr=lr, backbone_lr_factor=backbone_lr_factor, backbone_lr_decay=backbone_lr_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)


def sgd(
    model: nn.Module,
    *,
    batch_size: int,
    fused: bool,
    lr: float = 0.02,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 1e-4,
    backbone_lr_factor: float = 1.0,
    backbone_lr_decay: float = 1.0,
    lr_scaling: Rule | None = None,
    reference_batch_size: int = 16,
) -> Optimizer:
    """Stochastic gradient descent with momentum; the other arguments are those of `adam`."""
    lr = scaled_lr(lr, lr_scaling, batch_size=batch_size, reference=reference_batch_size)
    groups = parameter_groups(model, lr=lr, backbone_lr_factor=backbone_lr_factor, backbone_lr_decay=backbone_lr_decay)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=fused)


def scaled_lr(lr: float, rule: Rule | None, *, batch_size: int, reference: int) -> float:
    """Learning rate for a batch of another size than the one it is meant for, and a line that says so."""
    if reference < 1:
        raise ValueError(f"reference_batch_size must be at least 1, got {reference}")
    if rule is None:
        return lr
    ratio = batch_size / reference
    scaled = lr * (ratio if rule == "linear" else ratio**0.5)
    rank_zero_only(print)(f"lr {scaled:g}: {lr:g} is for {reference} pictures a step, {batch_size} by the {rule} rule")
    return scaled


def parameter_groups(
    model: nn.Module, *, lr: float, backbone_lr_factor: float = 1.0, backbone_lr_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate, the highest first, and by whether they decay.

    Args:
        model: Its `backbone` lists its `stages` from the pixels on.
        lr: Learning rate of everything but the backbone.
        backbone_lr_factor: The backbone's part of it.
        backbone_lr_decay: Factor for each stage before the backbone's last.
    """
    for key, value in (("backbone_lr_factor", backbone_lr_factor), ("backbone_lr_decay", backbone_lr_decay)):
        if not 0 < value <= 1:
            raise ValueError(f"{key} must be above 0 and at most 1, got {value}; see model.backbone.frozen_stages")
    part = {
        parameter: backbone_lr_factor * backbone_lr_decay**distance
        for distance, stage in enumerate(reversed(model.backbone.stages))  # type: ignore[arg-type, union-attr]
        for parameter in stage.parameters()
    }
    groups = defaultdict(list)
    for parameter in model.parameters():
        if parameter.requires_grad:
            decays = parameter.dim() > 1  # neither biases nor normalisation
            groups[part.get(parameter, 1.0), decays].append(parameter)
    return [
        {"params": parameters, "lr": lr * factor} | ({} if decays else {"weight_decay": 0.0})
        for (factor, decays), parameters in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]

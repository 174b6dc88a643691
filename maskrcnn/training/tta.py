"""What test-time augmentation gains and costs."""

from typing import Any

from pytorch_lightning import LightningDataModule, Trainer

from maskrcnn.evaluation.coco import KINDS
from maskrcnn.models.tta import AugmentedMaskRCNN
from maskrcnn.training.module import MaskRCNNModule

_COSTS = ("model", "masks")  # stages of a prediction, from decoded pictures to run-length encoded masks


def validate(
    trainer: Trainer, module: MaskRCNNModule, data: LightningDataModule, *, augmented: AugmentedMaskRCNN | None
) -> dict[str, Any]:
    """Validate; with test-time augmentation without it first, then with it, and print what it gains and costs.

    The scores of the module are in the end those with it.

    Returns:
        For `metrics.json`: the numbers of both as `tta`, or nothing where there is no augmentation.
    """
    if not augmented:
        trainer.validate(module, datamodule=data, verbose=False)
        return {}
    sides = []
    for module.augmented in (None, augmented):
        trainer.validate(module, datamodule=data, verbose=False)
        ap = {f"{kind}_ap": module.scores[kind]["ap"] for kind in KINDS if kind in module.scores}
        seconds = sum(module.watch.seconds[stage] for stage in _COSTS)
        sides.append(ap | {"seconds_per_image": seconds / max(module.watch.pictures, 1)})
    without, with_it = sides
    if trainer.is_global_zero:
        print(f"\n{_gain_table(augmented, without, with_it)}")
    return {"tta": {"flip": augmented.flip, "scales": list(augmented.scales), "without": without, "with": with_it}}


def _gain_table(augmented: AugmentedMaskRCNN, without: dict[str, float], with_it: dict[str, float]) -> str:
    scales = ", ".join(f"{scale:g}" for scale in augmented.scales)
    views = f"views at scale {scales}" + (", each mirrored too" if augmented.flip else "")
    lines = [f"test-time augmentation ({views}); every picture was predicted without and with it, without -> with:"]
    for name, before in without.items():
        after = with_it[name]
        if name == "seconds_per_image":
            lines.append(f"  seconds per picture  {before:.3g} -> {after:.3g} ({after / max(before, 1e-9):.1f} times)")
        else:
            label = name.replace("_ap", " AP")
            lines.append(f"  {label:19}  {before:.3f} -> {after:.3f} ({after - before:+.3f})")
    return "\n".join(lines)

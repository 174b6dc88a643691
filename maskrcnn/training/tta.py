"""What test-time augmentation gains and costs."""

import time
from typing import Any

from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer

from maskrcnn.evaluation.coco import KINDS
from maskrcnn.models.tta import AugmentedMaskRCNN
from maskrcnn.training.module import MaskRCNNModule


class PredictionClock(Callback):
    """Measures what a picture costs in the last validation, from the decoded picture to run-length encoded masks.

    The first batch, in which libraries warm up, is left out where there are others.
    """

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last validation."""
        self._batches: list[tuple[float, int]] = []

    def on_validation_batch_start(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self._mark = time.perf_counter()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Stop it; encoding the masks has waited for the device."""
        self._batches.append((time.perf_counter() - self._mark, len(batch[1])))

    @property
    def seconds_per_image(self) -> float:
        """On this process; 0 where no picture came to it."""
        counted = self._batches[1:] or self._batches
        return sum(seconds for seconds, _ in counted) / max(sum(images for _, images in counted), 1)


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
    clock = PredictionClock()
    trainer.callbacks.append(clock)  # type: ignore[attr-defined]
    sides = []
    for module.augmented in (None, augmented):
        trainer.validate(module, datamodule=data, verbose=False)
        ap = {f"{kind}_ap": module.scores[kind]["ap"] for kind in KINDS if kind in module.scores}
        sides.append(ap | {"seconds_per_image": clock.seconds_per_image})
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
            lines.append(f"  seconds per picture  {before:.3g} -> {after:.3g} ({after / before:.1f} times)")
        else:
            label = name.replace("_ap", " AP")
            lines.append(f"  {label:19}  {before:.3f} -> {after:.3f} ({after - before:+.3f})")
    return "\n".join(lines)

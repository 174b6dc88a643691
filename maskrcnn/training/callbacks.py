"""What a run shows and writes; the only module of training that touches files."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.callbacks.progress.rich_progress import RichProgressBarTheme
from pytorch_lightning.loggers import TensorBoardLogger
from rich.progress import BarColumn, ProgressColumn

from maskrcnn.data.datamodule import DetectionDataModule
from maskrcnn.data.sample import Sample
from maskrcnn.evaluation.coco import KINDS, format_table
from maskrcnn.evaluation.visualize import draw_instances, side_by_side
from maskrcnn.training.module import MaskRCNNModule

# Short enough for six of them on one line of a terminal.
_SHORT_NAMES = {
    "train/loss": "loss",
    "train/loss_objectness": "obj",
    "train/loss_rpn_box_reg": "rpn",
    "train/loss_classifier": "cls",
    "train/loss_box_reg": "box",
    "train/loss_mask": "mask",
}


class ProgressBar(RichProgressBar):
    """A progress bar with the losses, narrow enough for a terminal of 80 columns."""

    def __init__(self) -> None:
        super().__init__(theme=RichProgressBarTheme(metrics_format=".2f"))

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """Epoch, bar, batches, elapsed and remaining time; the losses follow."""
        description, _, batches, times, _ = super().configure_columns(trainer)
        return [description, BarColumn(bar_width=10), batches, times]

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The losses under short names."""
        metrics = super().get_metrics(trainer, pl_module)
        return {short: metrics[name] for name, short in _SHORT_NAMES.items() if name in metrics}


class Speed(Callback):
    """Logs `perf/images_per_second` of the whole run, all devices together, every `log_every_n_steps`."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock: an epoch that is resumed in its middle has no start."""
        self._images, self._since = 0, time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start it again, so that validation is not counted."""
        self._images, self._since = 0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch; log now and then."""
        self._images += len(batch[1]) * trainer.world_size
        if (batch_idx + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            now = time.perf_counter()
            pl_module.log("perf/images_per_second", self._images / (now - self._since), batch_size=1)
            self._images, self._since = 0, now


class ScoreLine(Callback):
    """Prints one line with the AP after each validation of a training run."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Box and mask AP."""
        assert isinstance(pl_module, MaskRCNNModule)
        if trainer.sanity_checking or not trainer.is_global_zero or trainer.state.fn != "fit":
            return
        scores = {kind: pl_module.scores[kind] for kind in KINDS if kind in pl_module.scores}
        parts = [f"{kind} AP {numbers['ap']:.3f} (AP50 {numbers['ap50']:.3f})" for kind, numbers in scores.items()]
        print(f"epoch {trainer.current_epoch}: {', '.join(parts)}", flush=True)


class Pictures(Callback):
    """Draws predictions beside ground truth after each validation, to the run folder and to TensorBoard.

    Args:
        folder: Where the JPEG files go.
        count: How many pictures, from the start of the validation set.
        score_thresh: Detections with a lower score are not drawn.
    """

    def __init__(self, *, folder: str, count: int = 8, score_thresh: float = 0.5) -> None:
        if count < 0:
            raise ValueError(f"count must be at least 0, got {count}")
        self.folder = Path(folder)
        self.count = count
        self.score_thresh = score_thresh

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the first `count` pictures of those that were validated."""
        assert isinstance(pl_module, MaskRCNNModule)
        if trainer.sanity_checking or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        dataset = trainer.datamodule.datasets["val"]  # type: ignore[attr-defined]
        boards = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        by_image: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in pl_module.metric.image_ids}
        for result in pl_module.metric.results:
            by_image[result["image_id"]].append(result)
        self.folder.mkdir(parents=True, exist_ok=True)
        for index in range(min(self.count, len(dataset))):
            sample = dataset[index]
            if sample.image_id not in by_image:
                continue
            picture = self._draw(sample, by_image[sample.image_id], dataset.categories)
            Image.fromarray(picture).save(self.folder / f"{sample.image_id}.jpg", quality=90)
            for board in boards:
                board.add_image(f"val/{sample.image_id}", picture, trainer.global_step, dataformats="HWC")

    def _draw(self, sample: Sample, results: list[dict[str, Any]], categories: list[dict[str, Any]]) -> np.ndarray:
        results = [result for result in results if result["score"] >= self.score_thresh]
        name_of = {category["id"]: category["name"] for category in categories}
        x, y, width, height = np.array([result["bbox"] for result in results], dtype=float).reshape(-1, 4).T
        prediction = draw_instances(
            sample.image,
            boxes=np.stack((x, y, x + width, y + height), axis=1),
            masks=[result["segmentation"] for result in results],
            names=[name_of[result["category_id"]] for result in results],
            scores=[result["score"] for result in results],
        )
        truth = draw_instances(
            sample.image,
            boxes=np.array([outline.box for outline in sample.outlines]),
            masks=[outline.rle(sample.size) for outline in sample.outlines],
            names=[categories[label - 1]["name"] for label in sample.labels],
        )
        return side_by_side(prediction, truth)


def announce(trainer: Trainer, module: MaskRCNNModule, data: DetectionDataModule) -> None:
    """Say in a few lines what is about to be trained."""
    if not trainer.is_global_zero:
        return
    parameters = sum(p.numel() for p in module.model.parameters())
    print(
        f"Mask R-CNN, {parameters / 1e6:.1f} M parameters, {len(module.categories)} classes; "
        f"{trainer.num_devices * trainer.num_nodes} x {trainer.accelerator.name()}, {trainer.precision}\n"
        f"{len(data.datasets['train'])} training and {len(data.datasets['val'])} validation pictures\n"
        f"run folder: {trainer.default_root_dir}",
        flush=True,
    )


def conclude(trainer: Trainer, module: MaskRCNNModule) -> float | None:
    """Print the last validation's tables and where everything is; returns its mask AP."""
    if not module.scores or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    write_report(trainer, module)
    if trainer.is_global_zero:
        folder = Path(trainer.default_root_dir)
        print(
            f"\npictures:    {folder / 'pictures'}\ncheckpoints: {folder / 'checkpoints'}\n"
            f"curves:      tensorboard --logdir {folder}\n"
            f"score again: python evaluate.py ckpt={folder / 'checkpoints' / 'last.ckpt'}"
        )
    return module.scores["mask"]["ap"]


def write_report(trainer: Trainer, module: MaskRCNNModule, *, predictions: bool = False) -> None:
    """Print both COCO tables, write `metrics.json` and, if asked for, the COCO results file `predictions.json`."""
    if not trainer.is_global_zero:
        return
    folder = Path(trainer.default_root_dir)
    if module.scores:
        write_scores(folder, module.scores, images=len(module.metric.image_ids))
    else:
        print(f"\n{len(module.metric.image_ids)} images without annotations: predictions alone")
    if predictions:
        _write_json(folder / "predictions.json", module.metric.results)
        print(f"\npredictions: {folder / 'predictions.json'}\npictures:    {folder / 'pictures'}")


def write_scores(folder: Path, scores: dict[str, dict[str, float]], *, images: int) -> None:
    """Print a COCO table for each kind and write the numbers to `metrics.json`."""
    for kind in KINDS:
        if kind in scores:
            print(f"\n{kind} ({images} images)\n{format_table(scores[kind], kind)}")
    if "voc" in scores:
        print("\nVOC AP50: " + ", ".join(f"{name.split('_')[0]} {ap:.3f}" for name, ap in scores["voc"].items()))
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "metrics.json", {**scores, "images": images}, indent=2)


def _write_json(path: Path, content: Any, *, indent: int | None = None) -> None:
    path.write_text(json.dumps(content, indent=indent), encoding="utf-8")

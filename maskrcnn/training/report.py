"""The scores of a run: lines, tables and files."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from maskrcnn.evaluation.analysis import COLUMNS, ClassScore, class_rows, format_class_table
from maskrcnn.evaluation.coco import KINDS, format_table
from maskrcnn.training.loggers import Board, last_step
from maskrcnn.training.module import MaskRCNNModule
from maskrcnn.training.stopwatch import Stopwatch

_PRINTED_CLASSES = 20  # a longer table is only written


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


class ClassTable(Callback):
    """Shows the scores of each class after each validation of a training run, in `per_class.csv` and the loggers.

    Args:
        folder: Where the file goes.
    """

    def __init__(self, *, folder: str) -> None:
        self.folder = Path(folder)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the file; the loggers keep one table for each validation."""
        assert isinstance(pl_module, MaskRCNNModule)
        trial = trainer.sanity_checking or trainer.fast_dev_run  # type: ignore[attr-defined]
        if trial or not trainer.is_global_zero or trainer.state.fn != "fit":
            return
        classes = pl_module.metric.classes
        _write_class_table(self.folder, classes)
        for logger in trainer.loggers:
            if isinstance(logger, Board):
                logger.add_table("val/per_class", COLUMNS, class_rows(classes), last_step(trainer))


def conclude(trainer: Trainer, module: MaskRCNNModule) -> float | None:
    """Print the last validation's tables and where everything is; returns its mask AP."""
    if not module.scores or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    write_report(trainer, module)
    if trainer.is_global_zero:
        folder = Path(trainer.default_root_dir)
        curves = [f"curves:      {logger.where}" for logger in trainer.loggers if hasattr(logger, "where")]
        print(
            f"\npictures:    {folder / 'pictures'}\ncheckpoints: {folder / 'checkpoints'}",
            *curves,
            f"score again: python evaluate.py ckpt={folder / 'checkpoints' / 'last.ckpt'}",
            sep="\n",
        )
    return module.scores["mask"]["ap"]


def write_report(
    trainer: Trainer, module: MaskRCNNModule, *, predictions: bool = False, more: Mapping[str, Any] | None = None
) -> None:
    """Print the tables, write the scores and, if asked for, the COCO results file `predictions.json`.

    Args:
        trainer: Its folder is where the files go.
        module: Has been validated.
        predictions: Whether that file is written.
        more: What `metrics.json` holds besides the scores.
    """
    if not trainer.is_global_zero:
        return
    folder = Path(trainer.default_root_dir)
    if module.scores:
        write_scores(folder, module.scores, module.metric.classes, images=len(module.metric.image_ids), more=more)
    else:
        print(f"\n{len(module.metric.image_ids)} images without annotations: predictions alone")
    if predictions:
        _write_json(folder / "predictions.json", module.metric.results)
        print(f"\npredictions: {folder / 'predictions.json'}\npictures:    {folder / 'pictures'}")


def write_scores(
    folder: Path,
    scores: Mapping[str, dict[str, float]],
    classes: Sequence[ClassScore],
    *,
    images: int,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Print a COCO table for each kind and one of the classes; write `metrics.json` and `per_class.csv`."""
    for kind in KINDS:
        if kind in scores:
            print(f"\n{kind} ({images} images)\n{format_table(scores[kind], kind)}")
    if "voc" in scores:
        print("\nVOC AP50: " + ", ".join(f"{name.split('_')[0]} {ap:.3f}" for name, ap in scores["voc"].items()))
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "metrics.json", {**scores, "images": images, **(more or {})}, indent=2)
    _write_class_table(folder, classes)
    if len(classes) <= _PRINTED_CLASSES:
        print(f"\n{format_class_table(classes)}")
    else:
        print(f"\n{len(classes)} classes: {folder / 'per_class.csv'}")


def write_speed(folder: Path, watch: Stopwatch, *, images: int) -> None:
    """Print what evaluating so many images took; write `speed.json`."""
    numbers = watch.numbers(images)
    stages = ", ".join(f"{stage} {numbers[f'{stage}_ms']:.3g}" for stage in watch.seconds)
    memory = f"{numbers['main_memory_gb']:.1f} GB of main memory"
    if "gpu_memory_gb" in numbers:
        memory += f", {numbers['gpu_memory_gb']:.1f} GB of the GPU"
    print(f"\nms/image: {stages}\nspeed:    {numbers['images_per_second']:.3g} images/s; at most {memory}")
    _write_json(folder / "speed.json", numbers, indent=2)


def _write_class_table(folder: Path, classes: Sequence[ClassScore]) -> None:
    with (folder / "per_class.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *class_rows(classes)])


def _write_json(path: Path, content: Any, *, indent: int | None = None) -> None:
    path.write_text(json.dumps(content, indent=indent), encoding="utf-8")

"""Score a checkpoint or a results file, or compare runs: `python evaluate.py ckpt=...`, `python evaluate.py --help`."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from maskrcnn.config import build, command, plain
from maskrcnn.data.datamodule import DetectionDataModule
from maskrcnn.errors import UserError
from maskrcnn.evaluation.analysis import ClassScore
from maskrcnn.evaluation.coco import score_classes
from maskrcnn.evaluation.results import match_categories, read_results, remarks
from maskrcnn.loading import load_model
from maskrcnn.report.comparison import compare_runs
from maskrcnn.report.evaluation import write_evaluation
from maskrcnn.training.module import MaskRCNNModule
from maskrcnn.training.report import write_report, write_scores, write_speed
from maskrcnn.training.stopwatch import Stopwatch
from maskrcnn.training.trainer import build_trainer
from maskrcnn.training.tta import validate


@command("evaluate", owned_by_checkpoint=True)
def main(cfg: DictConfig) -> float | None:
    """Print tables; write metrics.json, predictions.json, speed.json and report.html. Returns the mask AP."""
    if sum(cfg[source] is not None for source in ("ckpt", "predictions", "compare")) != 1:
        raise UserError(
            "ckpt, predictions, compare: give one of them, ckpt=file.ckpt, predictions=results.json or compare=[a,b]"
        )
    if cfg.tta and cfg.ckpt is None:
        raise UserError("tta: makes a model look at each picture several times; give it a model with ckpt=")
    data = build(cfg.data, key="data", trust=cfg.trust)
    data.load(evaluate=cfg.split, pictures=cfg.ckpt is not None)
    folder = Path(cfg.trainer.default_root_dir)
    if cfg.compare is not None:
        compare_runs(folder, plain(cfg)["compare"], data, split=cfg.split)
        return None
    if cfg.predictions is not None:
        return score_file(cfg, data)

    model, categories = load_model(cfg.ckpt, plain(cfg.model), trust=cfg.trust)
    category_ids = match_categories(categories, data.categories, source=f"ckpt={cfg.ckpt}")
    module = MaskRCNNModule(
        model=model, categories=categories, category_ids=category_ids, ground_truth=data.ground_truth
    )
    trainer = build_trainer(plain(cfg))
    gain = validate(trainer, module, data, augmented=build(cfg.tta, key="tta", trust=cfg.trust, model=model))
    write_report(trainer, module, predictions=True, more=gain)
    if trainer.is_global_zero:
        write_speed(folder, module.watch, images=len(module.metric.image_ids))
        if module.scores:
            found = module.metric
            explain(cfg, data, found.results, module.scores, found.classes, image_ids=found.image_ids)
    return module.scores.get("mask", {}).get("ap")


def score_file(cfg: DictConfig, data: DetectionDataModule) -> float | None:
    """The same for a COCO results file."""
    ground_truth, folder = data.ground_truth, Path(cfg.trainer.default_root_dir)
    if ground_truth is None:
        raise UserError(f"predictions: split={cfg.split} has no annotations to score them with")
    watch = Stopwatch()
    results, kinds = read_results(Path(cfg.predictions).expanduser(), ground_truth)
    watch.lap("load")
    scores, classes = score_classes(ground_truth, results, image_ids=data.val_image_ids, kinds=kinds)
    watch.lap("scoring")
    write_scores(folder, scores, classes, images=len(data.val_image_ids))
    write_speed(folder, watch, images=len(data.val_image_ids))
    explain(cfg, data, results, scores, classes, image_ids=data.val_image_ids)
    return scores.get("mask", scores.get("box", {})).get("ap")


def explain(
    cfg: DictConfig,
    data: DetectionDataModule,
    results: list[dict[str, Any]],
    scores: dict[str, dict[str, float]],
    classes: list[ClassScore],
    *,
    image_ids: list[int],
) -> None:
    """Say what is odd about the results and, if asked for, where they are wrong."""
    ground_truth = data.ground_truth
    assert ground_truth is not None
    notes = remarks(results, ground_truth, image_ids)
    for note in notes:
        print(f"note: {note}")
    if cfg.report:
        folder = Path(cfg.trainer.default_root_dir)
        page = write_evaluation(folder, data, results, scores=scores, classes=classes, image_ids=image_ids, notes=notes)
        print(f"\nreport: {page}")


if __name__ == "__main__":
    main()

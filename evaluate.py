"""Score a checkpoint or a results file: `python evaluate.py ckpt=...`, `python evaluate.py --help`."""

from pathlib import Path

from omegaconf import DictConfig

from maskrcnn.config import build, command, plain
from maskrcnn.errors import UserError
from maskrcnn.evaluation.coco import score_classes
from maskrcnn.evaluation.results import match_categories, read_results
from maskrcnn.loading import load_model
from maskrcnn.training.module import MaskRCNNModule
from maskrcnn.training.report import write_report, write_scores
from maskrcnn.training.trainer import build_trainer


@command("evaluate", owned_by_checkpoint=True)
def main(cfg: DictConfig) -> float | None:
    """Print both COCO tables; write metrics.json and predictions.json. Returns the mask AP."""
    if (cfg.ckpt is None) == (cfg.predictions is None):
        raise UserError("ckpt, predictions: give one of them, ckpt=file.ckpt or predictions=results.json")
    data = build(cfg.data, key="data", trust=cfg.trust)
    data.load(evaluate=cfg.split, pictures=cfg.predictions is None)
    ground_truth = data.ground_truth
    folder = Path(cfg.trainer.default_root_dir)
    if cfg.predictions is not None:
        if ground_truth is None:
            raise UserError(f"predictions: split={cfg.split} has no annotations to score them with")
        results, kinds = read_results(Path(cfg.predictions).expanduser(), ground_truth)
        scores, classes = score_classes(ground_truth, results, image_ids=data.val_image_ids, kinds=kinds)
        write_scores(folder, scores, classes, images=len(data.val_image_ids))
        return scores.get("mask", scores.get("box", {})).get("ap")

    model, categories = load_model(cfg.ckpt, plain(cfg.model), trust=cfg.trust)
    category_ids = match_categories(categories, data.categories, source=f"ckpt={cfg.ckpt}")
    module = MaskRCNNModule(model=model, categories=categories, category_ids=category_ids, ground_truth=ground_truth)
    trainer = build_trainer(plain(cfg))
    trainer.validate(module, datamodule=data, verbose=False)
    write_report(trainer, module, predictions=True)
    return module.scores.get("mask", {}).get("ap")


if __name__ == "__main__":
    main()

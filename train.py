"""Train Mask R-CNN: `python train.py experiment=demo`, `python train.py --help`."""

from pathlib import Path

from omegaconf import DictConfig
from pytorch_lightning import seed_everything

from maskrcnn.config import build, build_trainer, command, plain
from maskrcnn.models.weights import init_weights, read_weights
from maskrcnn.training.callbacks import announce, conclude
from maskrcnn.training.checkpoints import read_training_state
from maskrcnn.training.loggers import continue_curves
from maskrcnn.training.module import MaskRCNNModule


@command("train", resumable=True)
def main(cfg: DictConfig) -> float | None:
    """Compose, build, fit; returns the mask AP of the last validation, which a sweep maximises."""
    trust = cfg.trust
    data = build(cfg.data, key="data", trust=trust)
    seed_everything(cfg.seed, workers=True, verbose=False)
    data.load(train=True)
    cfg.model.num_classes = len(data.categories)
    done = None if cfg.resume is None else read_training_state(Path(cfg.resume))["global_step"]
    if cfg.init is not None or cfg.resume is not None:
        cfg.model.backbone.weights = None  # they come with the others
    model = build(cfg.model, key="model", trust=trust)
    cfg.model.backbone.weights = None  # from here on they are in the checkpoint
    if cfg.init is not None and cfg.resume is None:
        fresh = init_weights(model, read_weights(cfg.init, key="init"), class_names=data.class_names)
        print(f"init={cfg.init}: {'all weights taken over' if not fresh else 'not taken from it: ' + ', '.join(fresh)}")

    module = MaskRCNNModule(
        model=model,
        categories=data.categories,
        ground_truth=data.ground_truth,
        optimizer=build(cfg.optim, key="optim", trust=trust),
        schedule=build(cfg.schedule, key="schedule", trust=trust),
        config=plain(cfg),
        seed=cfg.seed,
    )
    trainer = build_trainer(cfg)
    announce(trainer, module, data)
    if done is not None:
        continue_curves(trainer, done)
    trainer.fit(module, datamodule=data, ckpt_path=cfg.resume, weights_only=True)
    if cfg.resume is not None and not module.scores:
        trainer.validate(module, datamodule=data, verbose=False)  # the run was killed behind its last validation
    return conclude(trainer, module)


if __name__ == "__main__":
    main()

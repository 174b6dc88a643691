"""Train Mask R-CNN: `python train.py experiment=demo`, `python train.py --help`."""

from omegaconf import DictConfig
from pytorch_lightning import seed_everything

from maskrcnn.config import build, build_trainer, command, plain
from maskrcnn.models.weights import init_weights, read_weights
from maskrcnn.training.callbacks import announce, conclude
from maskrcnn.training.module import MaskRCNNModule


@command("train")
def main(cfg: DictConfig) -> float | None:
    """Compose, build, fit; returns the mask AP of the last validation, which a sweep maximises."""
    trust = cfg.trust
    data = build(cfg.data, key="data", trust=trust)
    seed_everything(cfg.seed, workers=True, verbose=False)
    data.load(train=True)
    cfg.model.num_classes = len(data.categories)
    if cfg.init is not None:
        cfg.model.backbone.weights = None  # they come with the others
    model = build(cfg.model, key="model", trust=trust)
    cfg.model.backbone.weights = None  # from here on they are in the checkpoint
    if cfg.init is not None:
        fresh = init_weights(model, read_weights(cfg.init, key="init"), class_names=data.class_names)
        print(f"init={cfg.init}: {'all weights taken over' if not fresh else 'not taken from it: ' + ', '.join(fresh)}")

    module = MaskRCNNModule(
        model=model,
        categories=data.categories,
        ground_truth=data.ground_truth,
        optimizer=build(cfg.optim, key="optim", trust=trust),
        schedule=build(cfg.schedule, key="schedule", trust=trust),
        config=plain(cfg),
    )
    trainer = build_trainer(cfg)
    announce(trainer, module, data)
    trainer.fit(module, datamodule=data)
    return conclude(trainer, module)


if __name__ == "__main__":
    main()

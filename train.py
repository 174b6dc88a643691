"""Train Mask R-CNN: `python train.py experiment=demo`, `python train.py --help`."""

from pathlib import Path

from omegaconf import DictConfig
from pytorch_lightning import seed_everything

from maskrcnn.config import build, command, model_config, plain
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.models.weights import Differences, Transfer, Weights, differing_settings, init_weights, read_weights
from maskrcnn.training.checkpoints import read_training_state
from maskrcnn.training.initialization import announce_transfer
from maskrcnn.training.interruption import stoppable
from maskrcnn.training.loggers import start_curves
from maskrcnn.training.module import MaskRCNNModule
from maskrcnn.training.rehearsal import rehearse
from maskrcnn.training.report import conclude
from maskrcnn.training.slurm import requeued_checkpoint
from maskrcnn.training.summary import announce
from maskrcnn.training.trainer import build_trainer


@command("train", resumable=True)
def main(cfg: DictConfig) -> float | None:
    """Compose, build, fit; returns the mask AP of the last validation, which a sweep maximises."""
    trust = cfg.trust
    cfg.resume = requeued_checkpoint(Path(cfg.trainer.default_root_dir)) or cfg.resume
    trainer = build_trainer(plain(cfg))
    rehearse(plain(cfg))
    weights = read_weights(cfg.init, key="init") if cfg.init is not None and cfg.resume is None else None
    data = build(cfg.data, key="data", trust=trust)
    seed_everything(cfg.seed, workers=True, verbose=False)
    data.load(train=True)
    cfg.model.num_classes = len(data.categories)
    done = None if cfg.resume is None else read_training_state(Path(cfg.resume))["global_step"]
    if cfg.init is not None or cfg.resume is not None:
        cfg.model.backbone.weights = None  # they come with the others
    model = build(cfg.model, key="model", trust=trust)
    cfg.model.backbone.weights = None  # from here on they are in the checkpoint
    start = take_over(cfg, weights, model, data.class_names) if weights else None

    module = MaskRCNNModule(
        model=model,
        categories=data.categories,
        ground_truth=data.ground_truth,
        optimizer=build(cfg.optim, key="optim", trust=trust),
        schedule=build(cfg.schedule, key="schedule", trust=trust),
        batch_size=data.batch_size,
        compile=cfg.compile,
        config=plain(cfg),
        seed=cfg.seed,
    )
    announce(trainer, module, data)
    if start:
        announce_transfer(trainer, *start)
    start_curves(trainer, plain(cfg), first_step=done)
    with stoppable():
        trainer.fit(module, datamodule=data, ckpt_path=cfg.resume, weights_only=True)
    if module.scored_step != trainer.global_step:  # no validation was due, or the run was killed behind it
        trainer.validate(module, datamodule=data, verbose=False)
    return conclude(trainer, module)


def take_over(
    cfg: DictConfig, weights: Weights, model: MaskRCNN, class_names: list[str]
) -> tuple[Transfer, Differences]:
    """Start `model` from the weights `init=`; also says for which other settings they were made."""
    transfer = init_weights(model, weights, class_names=class_names)
    return transfer, differing_settings(model_config(weights), plain(cfg.model))


if __name__ == "__main__":
    main()

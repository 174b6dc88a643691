"""Write a trained model for other programs: `python -m maskrcnn.export ckpt=best.ckpt output=model.onnx`."""

from pathlib import Path

from maskrcnn.config import Config, command, plain
from maskrcnn.errors import UserError
from maskrcnn.export.writers import SUFFIXES, write_model
from maskrcnn.loading import load_model
from maskrcnn.models.exported.metadata import make_metadata
from maskrcnn.models.mask_rcnn import MaskRCNN

PRECISIONS = ("fp32", "fp16")


@command("export", owned_by_checkpoint=True)
def main(cfg: Config) -> None:
    """Write the model of `ckpt=` with all that a program needs to use it."""
    if cfg.ckpt is None:
        raise UserError("ckpt: give the model, ckpt=outputs/.../checkpoints/best.ckpt")
    if cfg.format not in SUFFIXES:
        raise UserError(f"format={cfg.format}: must be one of {', '.join(SUFFIXES)}")
    if cfg.precision not in PRECISIONS:
        raise UserError(f"precision={cfg.precision}: must be one of {', '.join(PRECISIONS)}")
    suffix = SUFFIXES[cfg.format]
    output = Path(cfg.output).expanduser() if cfg.output else Path(cfg.folder) / f"model{suffix}"
    if output.suffix != suffix:
        raise UserError(f"output={output}: a file of format={cfg.format} ends in {suffix}")
    config = plain(cfg)
    model, categories = load_model(cfg.ckpt, config["model"], trust=cfg.trust)
    if not isinstance(model, MaskRCNN):
        raise UserError(f"ckpt={cfg.ckpt}: is exported already; give the checkpoint that it was made of")
    metadata = make_metadata(model, categories, config, precision=cfg.precision)
    write_model(model, output, metadata, format=cfg.format, half=cfg.precision == "fp16")
    print(f"{output}: {cfg.format}, {cfg.precision}, {len(categories)} classes, {output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

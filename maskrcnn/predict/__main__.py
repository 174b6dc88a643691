"""Predict on pictures, videos and cameras: `python -m maskrcnn.predict ckpt=best.ckpt source=photo.jpg`."""

import sys
from pathlib import Path

from maskrcnn.config import Config, command, plain
from maskrcnn.errors import UserError
from maskrcnn.predict.pictures import predict_pictures
from maskrcnn.predict.predictor import build_predictor
from maskrcnn.predict.run import Run
from maskrcnn.predict.settings import read_settings
from maskrcnn.predict.sources import find_sources
from maskrcnn.predict.videos import predict_video


@command("predict", owned_by_checkpoint=True)
def main(cfg: Config) -> None:
    """Predict on all that `source=` names; the exit code says whether all of it could be read."""
    if cfg.ckpt is None:
        raise UserError("ckpt: give the model, ckpt=outputs/.../checkpoints/best.ckpt")
    output = Path(cfg.folder)
    settings = read_settings(plain(cfg))
    sources = find_sources(settings.source, output=output)
    predictor = build_predictor(cfg)
    predictor.labels_of(settings.classes)
    run = Run(predictor=predictor, settings=settings, output=output)
    for problem in sources.problems:
        run.report(problem)
    if sources.others:
        print(f"{len(sources.others)} files are no pictures or videos by their names, such as {sources.others[0]}")
    if sources.videos and (settings.cutouts or settings.export):
        print("cutouts, export: for pictures alone, not for the frames of a video", file=sys.stderr)
    try:
        if sources.pictures:
            predict_pictures(run, sources.pictures[: settings.limit])
        for video in sources.videos:
            predict_video(run, video)
    finally:
        run.print_summary()
    if run.problems:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

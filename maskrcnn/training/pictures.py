"""Pictures of what the model finds."""

from pathlib import Path
from typing import Any

from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer

from maskrcnn.evaluation.visualize import draw_results, draw_truth, side_by_side
from maskrcnn.training.loggers import Board, last_step
from maskrcnn.training.module import MaskRCNNModule


class Pictures(Callback):
    """Draws predictions beside ground truth after each validation, to the run folder and to the loggers.

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
        boards = [logger for logger in trainer.loggers if isinstance(logger, Board)]
        by_image: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in pl_module.metric.image_ids}
        for result in pl_module.metric.results:
            if result["score"] >= self.score_thresh:
                by_image[result["image_id"]].append(result)
        self.folder.mkdir(parents=True, exist_ok=True)
        for index in range(min(self.count, len(dataset))):
            sample = dataset[index]
            if sample.image_id not in by_image:
                continue
            found = draw_results(sample, by_image[sample.image_id], dataset.categories)
            picture = side_by_side(found, draw_truth(sample, dataset.categories))
            Image.fromarray(picture).save(self.folder / f"{sample.image_id}.jpg", quality=90)
            for board in boards:
                board.add_picture(f"val/{sample.image_id}", picture, last_step(trainer))

"""Prediction on picture files."""

import os
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from maskrcnn.errors import UserError
from maskrcnn.ops.masks import crop_rle
from maskrcnn.predict.annotation_files import write_labelme, write_yolo, write_yolo_classes
from maskrcnn.predict.coco_file import CocoFile
from maskrcnn.predict.predictor import to_array
from maskrcnn.predict.result import Result
from maskrcnn.predict.run import Run
from maskrcnn.predict.sources import Source


def predict_pictures(run: Run, pictures: list[Source]) -> None:
    """Predict in batches; write `predictions.json` and what else is wanted. Unreadable files are reported."""
    if "yolo" in run.settings.export:
        write_yolo_classes(run.output / "yolo", run.predictor.class_names)
    with (
        warnings.catch_warnings(),
        CocoFile(run.output / "predictions.json", categories=run.predictor.categories) as file,
        run.bar("pictures", len(pictures)) as advance,
    ):
        warnings.filterwarnings("ignore", module="PIL")  # metadata, large pictures
        for batch in _batches(_read(run, pictures, advance), run.settings.batch_size):
            results = run.predict([image for _, image in batch])
            for (source, image), result in zip(batch, results, strict=True):
                file.write(result, file_name=str(source.origin))
                _write(run, source, image, result)
                run.done["pictures"] += 1
                advance()


def _read(run: Run, pictures: list[Source], advance: Callable[[], None]) -> Iterator[tuple[Source, np.ndarray]]:
    """The pictures in their order; threads decode the next ones meanwhile."""
    workers = run.settings.num_workers
    threads = min(os.cpu_count() or 1, 8) if workers is None else max(workers, 1)
    waiting: deque[tuple[Source, Future[np.ndarray]]] = deque()
    rest = iter(pictures)
    pool = ThreadPoolExecutor(threads)
    try:
        for _ in pictures:
            for source in islice(rest, run.settings.batch_size + threads - len(waiting)):
                waiting.append((source, pool.submit(to_array, Path(source.origin))))  # type: ignore[arg-type]
            source, image = waiting.popleft()
            try:
                yield source, image.result()
            except UserError as error:
                run.report(str(error))
                advance()
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(items: Iterator[tuple[Source, np.ndarray]], size: int) -> Iterator[list[tuple[Source, np.ndarray]]]:
    while batch := list(islice(items, size)):
        yield batch


def _write(run: Run, source: Source, image: np.ndarray, result: Result) -> None:
    assert isinstance(source.origin, Path)
    if run.settings.overlays:
        path = run.output / "overlays" / f"{source.name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(result.draw(image)).save(path, quality=92, subsampling=0)  # coloured text stays sharp
    if run.settings.cutouts:
        _write_cutouts(run.output / "cutouts" / source.name, image, result)
    if "yolo" in run.settings.export:
        write_yolo(run.output / "yolo", source.name, result)
    if "labelme" in run.settings.export:
        write_labelme(run.output / "labelme", source.name, result, source.origin)


def _write_cutouts(folder: Path, image: np.ndarray, result: Result) -> None:
    """A PNG for each instance, as large as its mask, which is its transparency."""
    for number, (name, rle) in enumerate(zip(result.names, result.rles, strict=True), start=1):
        mask, (left, top) = crop_rle(rle)
        if mask.size:
            folder.mkdir(parents=True, exist_ok=True)
            pixels = image[top : top + mask.shape[0], left : left + mask.shape[1]]
            plain_name = re.sub(r"[^\w-]+", "_", name)
            Image.fromarray(np.dstack((pixels, mask * np.uint8(255)))).save(folder / f"{number:03}_{plain_name}.png")

"""Prediction on videos and cameras, frame by frame."""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from maskrcnn.errors import UserError
from maskrcnn.predict.coco_file import CocoFile
from maskrcnn.predict.run import Run
from maskrcnn.predict.sources import Source

Frame = tuple[np.ndarray, float]  # RGB, and its time in seconds

_USUAL_RATE = 30.0  # frames per second, where a file or a camera does not say
_DAMAGED = 0.9  # share of its frames below which a video is; files often miscount by a few


def predict_video(run: Run, source: Source) -> None:
    """Write `overlays/<name>.mp4` and `frames/<name>.json`. What is done stays when the user interrupts.

    A camera is predicted frame by frame until its limit or until the user interrupts, which is its regular end.
    """
    is_camera = isinstance(source.origin, int)
    label = f"camera {source.origin}" if is_camera else str(source.origin)
    with ExitStack() as stack:
        capture = cv2.VideoCapture(source.origin if isinstance(source.origin, int) else str(source.origin))
        stack.callback(capture.release)
        if not capture.isOpened():
            run.report(f"{label}: cannot be opened")
            return
        rate = _property(capture, cv2.CAP_PROP_FPS) or _USUAL_RATE
        promised = 0 if is_camera else int(_property(capture, cv2.CAP_PROP_FRAME_COUNT))
        limit = run.settings.limit
        expected = min(promised or limit or 0, limit or promised) or None
        file = stack.enter_context(
            CocoFile(run.output / "frames" / f"{source.name}.json", categories=run.predictor.categories)
        )
        video = stack.enter_context(_video_file(run.output / "overlays" / f"{source.name}.mp4", rate))
        advance = stack.enter_context(run.bar(source.name, expected))
        frames = islice(_read(capture, rate=None if is_camera else rate), limit)
        number = 0
        try:
            while batch := list(islice(frames, 1 if is_camera else run.settings.batch_size)):
                results = run.predict([image for image, _ in batch])
                for (image, seconds), result in zip(batch, results, strict=True):
                    file.write(result, file_name=label, frame=number, time=round(seconds, 3))
                    if run.settings.overlays:
                        video.write(result.draw(image))
                    number += 1
                    run.done["videos"] += number == 1
                    run.done["frames"] += 1
                    advance()
        except KeyboardInterrupt:
            if not is_camera:
                raise
    if not number and not is_camera:
        run.report(f"{label}: holds no frame that can be read")
    elif number < _DAMAGED * (expected or 0):
        run.report(f"the rest of {label}: it ends after {number} of {expected} frames")


def _read(capture: cv2.VideoCapture, *, rate: float | None) -> Iterator[Frame]:
    """Frames as they come; their time is by the rate of a file, or by the clock."""
    start, number = time.monotonic(), 0
    while True:
        is_there, image = capture.read()
        if not is_there:
            return
        yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB), number / rate if rate else time.monotonic() - start
        number += 1


def _property(capture: cv2.VideoCapture, name: int) -> float:
    """A property, 0 where it is not known."""
    value = capture.get(name)
    return value if math.isfinite(value) and value > 0 else 0.0


class _VideoFile:
    """An MP4 file of RGB frames, opened with the first, whose size it takes."""

    def __init__(self, path: Path, rate: float) -> None:
        self._path = path
        self._rate = rate
        self.writer: cv2.VideoWriter | None = None

    def write(self, frame: np.ndarray) -> None:
        if self.writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            size = (frame.shape[1], frame.shape[0])
            self.writer = cv2.VideoWriter(str(self._path), cv2.VideoWriter.fourcc(*"mp4v"), self._rate, size)
            if not self.writer.isOpened():
                raise UserError(f"{self._path}: cannot be written as an MP4 video; leave it out with overlays=false")
        self.writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))


@contextmanager
def _video_file(path: Path, rate: float) -> Iterator[_VideoFile]:
    file = _VideoFile(path, rate)
    try:
        yield file
    finally:
        if file.writer is not None:
            file.writer.release()

"""One run of the command: what it is asked for, what it has done, and what it tells the user meanwhile."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from maskrcnn.predict.predictor import Predictor
from maskrcnn.predict.result import Result
from maskrcnn.predict.settings import Settings


class Run:
    """Predicts, counts and reports.

    Args:
        predictor: The model.
        settings: What the user asks for.
        output: Where the files go.
    """

    def __init__(self, *, predictor: Predictor, settings: Settings, output: Path) -> None:
        self.predictor = predictor
        self.settings = settings
        self.output = output
        self.done: Counter[str] = Counter()  # pictures, videos, frames, instances
        self.problems = 0
        self._started = time.perf_counter()
        self._bar = Progress(
            TextColumn("{task.description}", table_column=Column(max_width=20, no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            _SpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
            expand=True,
        )

    def predict(self, images: Sequence[np.ndarray]) -> list[Result]:
        """What is found in pictures of one batch."""
        results = self.predictor.predict(
            images, threshold=self.settings.threshold, classes=self.settings.classes, batch_size=len(images)
        )
        self.done["instances"] += sum(len(result) for result in results)
        return results

    def report(self, problem: str) -> None:
        """Tell what is skipped, in one line; the command then ends with exit code 1."""
        self.problems += 1
        print(f"skipped: {problem}", file=sys.stderr, flush=True)

    @contextmanager
    def bar(self, name: str, total: int | None) -> Iterator[Callable[[], None]]:
        """Show a bar, where there is a terminal.

        Args:
            name: Of what is being done.
            total: How much there is to do; None where nobody knows.

        Yields:
            What moves it by one.
        """
        with self._bar:
            task = self._bar.add_task(name, total=total)
            try:
                yield lambda: self._bar.advance(task)
            finally:
                self._bar.remove_task(task)

    def print_summary(self) -> None:
        """Say what was done and where it is."""
        done, seconds = self.done, time.perf_counter() - self._started
        if not done["pictures"] and not done["frames"]:
            return
        parts = []
        if done["pictures"]:
            parts.append(_count(done["pictures"], "picture"))
        if done["videos"]:
            parts.append(f"{_count(done['frames'], 'frame')} of {_count(done['videos'], 'video')}")
        print(f"{', '.join(parts)}: {_count(done['instances'], 'instance')} in {seconds:.1f} s")
        for name in ("overlays", "predictions.json", "frames", "cutouts", "yolo", "labelme"):
            if name in self.written:
                print(f"{name.partition('.')[0] + ':':<13}{self.output / name}")

    @property
    def written(self) -> set[str]:
        """The entries of the output folder that this run wrote."""
        settings, pictures, frames = self.settings, self.done["pictures"], self.done["frames"]
        wanted = {
            "overlays": settings.overlays,
            "predictions.json": pictures,
            "frames": frames,
            "cutouts": settings.cutouts and pictures,
            **{name: name in settings.export and pictures for name in ("yolo", "labelme")},
        }
        return {name for name, is_there in wanted.items() if is_there}


class _SpeedColumn(ProgressColumn):
    """Pictures or frames per second."""

    def render(self, task: Task) -> Text:
        """The speed over the last while."""
        return Text(f"{task.speed:.1f}/s" if task.speed else "-/s")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")

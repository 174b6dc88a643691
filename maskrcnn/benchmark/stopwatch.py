"""Time spent in single functions, watched from outside."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from time import perf_counter
from typing import Any
from unittest import mock

Stage = tuple[Any, str, str]  # a class or module, the name of a function in it, and the stage it belongs to


class Stopwatch:
    """Seconds per stage; what a watched function spends in another watched one counts there alone.

    Attributes:
        seconds: Of each stage so far.
        calls: How many calls were timed.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls = 0
        self._inner = [0.0]  # of each call under way, the seconds in watched calls that it made

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function; its time goes to `stage`."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            start = perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                elapsed = perf_counter() - start
                self.seconds[stage] += elapsed - self._inner.pop()
                self._inner[-1] += elapsed
                self.calls += 1

        return timed

    @contextmanager
    def watch(self, stages: Iterable[Stage]) -> Iterator[None]:
        """Replace functions by timed ones for a while."""
        with ExitStack() as stack:
            for owner, name, stage in stages:
                stack.enter_context(mock.patch.object(owner, name, self.timed(stage, getattr(owner, name))))
            yield


def cost_of_a_call(repeats: int = 20000) -> float:
    """Seconds that timing adds to one call."""

    def nothing() -> None:
        pass

    timed = Stopwatch().timed("", nothing)
    marks = [perf_counter()]
    for function in (nothing, timed):
        for _ in range(repeats):
            function()
        marks.append(perf_counter())
    return max(marks[2] - 2 * marks[1] + marks[0], 0.0) / repeats

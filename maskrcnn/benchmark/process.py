"""Processes of their own, so that neither memory nor warm caches pass from one measurement to the next."""

import gc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from multiprocessing.util import Finalize
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from maskrcnn.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")

_here: list[Any] = []  # in the process of a `Resident`, its object


def in_own_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What a function of a module returns, called in a process of its own that ends behind it.

    What the function raises is raised here.

    Raises:
        UserError: The process was ended from outside.
    """
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as executor:
        return _result(executor, function, *args, **kwargs)


class Resident:
    """An object that lives in a process of its own; what it does is asked for by the names of its methods.

    Args:
        make: A class or function of a module that makes the object, called in that process.
        args: Of `make`.

    Raises:
        UserError: The process was ended from outside; so do calls.
    """

    def __init__(self, make: Callable[..., Any], *args: Any) -> None:
        self._executor = ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"))
        try:
            _result(self._executor, _move_in, make, *args)
        except BaseException:
            self._executor.shutdown()
            raise

    def call(self, method: str, *args: Any) -> Any:
        """What the object's method returns; what it raises is raised here."""
        return _result(self._executor, _call, method, *args)

    def __enter__(self) -> "Resident":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._executor.shutdown()


def _move_in(make: Callable[..., Any], *args: Any) -> None:
    _here.append(make(*args))
    # A loader takes its workers along only if it goes while the process still stands.
    Finalize(None, _move_out, exitpriority=1)


def _move_out() -> None:
    _here.clear()
    gc.collect()


def _call(method: str, *args: Any) -> Any:
    return getattr(_here[0], method)(*args)


def _result(executor: ProcessPoolExecutor, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    try:
        return executor.submit(function, *args, **kwargs).result()
    except BrokenProcessPool as error:
        raise UserError("its process was ended by the system; was there too little memory?") from error

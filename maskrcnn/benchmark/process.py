"""A fresh process for each measurement, so that neither memory nor warm caches pass from one to the next."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

from maskrcnn.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")


def in_own_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What a function of a module returns, called in a process of its own that ends behind it.

    What the function raises is raised here.

    Raises:
        UserError: The process was ended from outside.
    """
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as executor:
        try:
            return executor.submit(function, *args, **kwargs).result()
        except BrokenProcessPool as error:
            raise UserError("its process was ended by the system; was there too little memory?") from error

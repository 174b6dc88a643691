"""What the C library does with memory that tensors on the CPU no longer need."""

import ctypes
import platform

# Of mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = -1


def keep_freed_memory() -> bool:
    """Keep freed memory in the process, for the next tensor; true where the C library can (glibc).

    By itself it hands the memory of large tensors back to the system, which has to clear every page of it before the
    next tensor may use it: on a CPU that is a tenth of a prediction and more of a training step.
    """
    if not _is_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))


def hand_back_freed_memory() -> None:
    """Hand what is free now back to the system, once."""
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"

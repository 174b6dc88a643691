import os
import platform
from pathlib import Path

import pytest
import torch

from maskrcnn.memory import hand_back_freed_memory, keep_freed_memory

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
MIB = 2**20


def resident() -> int:
    """Bytes of memory that the process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@needs_glibc
def test_freed_memory_is_kept_until_it_is_handed_back():
    assert keep_freed_memory()
    x = torch.ones(64 * MIB // 4)
    held = resident()
    del x
    assert resident() > held - 8 * MIB
    hand_back_freed_memory()
    assert resident() < held - 56 * MIB


def test_another_c_library_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()

import platform
import resource

import pytest
import torch

from maskrcnn.memory import hand_back_freed_memory, keep_freed_memory

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


@needs_glibc
def test_freed_memory_serves_the_next_tensor_without_a_page_fault():
    assert keep_freed_memory()
    x = torch.zeros(2**24)  # 64 MB
    for _ in range(3):
        x + 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        x + 1
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < 5 * 2**26 / resource.getpagesize() / 100


@needs_glibc
def test_kept_memory_can_be_handed_back():
    assert keep_freed_memory()
    torch.ones(2**24)  # 64 MB
    hand_back_freed_memory()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults > 2**26 / resource.getpagesize() / 2


def test_another_c_library_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()

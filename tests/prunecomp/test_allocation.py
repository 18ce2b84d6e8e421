"""Memory that the C library holds for nothing goes back to the system."""

import psutil
import pytest

from prunecomp.calibration import allocation
from prunecomp.calibration.allocation import Heap

BLOCK = 100 << 10  # smaller than what glibc maps by itself
COUNT = 6 * allocation.HELD // BLOCK


@pytest.mark.skipif(allocation._library() is None, reason="needs glibc 2.33")
def test_holes_are_given_back_once_they_are_large():
    heap = Heap()
    blocks = [bytearray(BLOCK) for _ in range(COUNT)]
    full = psutil.Process().memory_info().rss
    heap.tidy()
    assert psutil.Process().memory_info().rss > full - allocation.HELD / 4  # all is in use
    del blocks[: COUNT // 8 : 2]
    heap.tidy()
    grown = bytearray(b"x" * 2 * allocation.GROWN)
    heap.tidy()
    assert psutil.Process().memory_info().rss > full - allocation.HELD / 4  # too little to matter
    del blocks[::2]
    grown += bytearray(b"x" * 2 * allocation.GROWN)
    heap.tidy()
    assert psutil.Process().memory_info().rss < full - 2 * allocation.HELD
    assert all(len(block) == BLOCK for block in blocks)


@pytest.mark.skipif(allocation._library() is None, reason="needs glibc 2.33")
def test_nothing_is_asked_while_memory_does_not_grow(monkeypatch):
    heap = Heap()
    monkeypatch.setattr(heap, "_idle", lambda: pytest.fail("asked"))
    heap.tidy()


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocation, "_library", lambda: None)
    Heap().tidy()

"""Memory that the C library holds for nothing goes back to the system."""

import json
import mmap
import os
import subprocess
import sys

import psutil
import pytest

from prunecomp.calibration import allocation
from prunecomp.calibration.allocation import Heap

BLOCK = 100 << 10  # smaller than what glibc maps by itself
COUNT = 6 * allocation.HELD // BLOCK


def more_memory() -> mmap.mmap:
    """Twice what makes the heap be looked at; not of the heap, which may have had it free."""
    size = 2 * allocation.GROWN
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for _ in range(size >> 20):
        pages.write(bytes(1 << 20))
    return pages


@pytest.mark.skipif(allocation._library() is None, reason="needs glibc 2.33")
def test_holes_are_given_back_once_they_are_large():
    allocation._library().malloc_trim(0)  # what earlier tests have left is no part of this
    heap = Heap()
    blocks = [bytearray(BLOCK) for _ in range(COUNT)]
    full = psutil.Process().memory_info().rss
    heap.tidy()
    assert psutil.Process().memory_info().rss > full - allocation.HELD / 4  # all is in use
    del blocks[: COUNT // 8 : 2]
    heap.tidy()
    grown = [more_memory()]
    heap.tidy()
    assert psutil.Process().memory_info().rss > full - allocation.HELD / 4  # too little to matter
    del blocks[::2]
    grown.append(more_memory())
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


TOUCH = """
import json, resource, torch
from prunecomp.calibration import allocation
allocation.prepare()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        several = [torch.ones(3 << 20, dtype=torch.uint8) for _ in range(4)]
        del several
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(json.dumps(faults()))
"""


@pytest.mark.skipif(allocation._library() is None, reason="needs glibc 2.33")
@pytest.mark.parametrize(
    ("asked", "kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": str(1 << 20)}, False)]
)
def test_what_was_freed_is_used_again(asked, kept):
    """Unless the environment wants it otherwise; a fault is a page that is new."""
    ours = {"GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"}
    environment = {n: v for n, v in os.environ.items() if n not in ours} | asked
    found = subprocess.run(
        [sys.executable, "-c", TOUCH], env=environment, check=True, capture_output=True, text=True
    )
    pages = 20 * 4 * (3 << 20) // mmap.PAGESIZE
    assert (json.loads(found.stdout) < pages / 10) is kept

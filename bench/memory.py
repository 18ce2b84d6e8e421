"""What a model takes: the KV cache that fits, and the peak of the processes that serve it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.environment import gpu_bytes_by_process

_INFO = re.compile(r"^vllm:cache_config_info\{(.*)\}", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def kv_cache_tokens(metrics: str) -> int | None:
    """Tokens that the KV cache of a vLLM server holds, from the text at its ``/metrics``.

    Blocks times tokens per block; of all data-parallel engines together.
    """
    total = 0
    for found in _INFO.finditer(metrics):
        labels = dict(_LABEL.findall(found.group(1)))
        blocks, size = labels.get("num_gpu_blocks", ""), labels.get("block_size", "")
        if blocks.isdecimal() and size.isdecimal():
            total += int(blocks) * int(size)
    return total or None


def _peak_rss(pid: int) -> int:
    """The largest resident set that a process ever had; 0 where it is gone."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _peak(pids: Iterable[int]) -> dict[str, Any]:
    pids = set(pids)
    on_gpu = sum(size for pid, size in gpu_bytes_by_process().items() if pid in pids)
    if on_gpu:
        return {"peak_bytes": on_gpu, "peak_of": "GPU"}
    rss = sum(map(_peak_rss, pids))
    return {"peak_bytes": rss or None, "peak_of": "process RSS" if rss else None}


def peak_of_tree(pid: int) -> dict[str, Any]:
    """``peak_bytes`` and ``peak_of`` of all processes below `pid`.

    On a GPU what they hold now, which for vLLM is the most it takes; else the sum of the largest
    resident sets, in which pages that processes share count for each.
    """
    import psutil

    try:
        below = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        below = []
    return _peak(process.pid for process in below)


def peak_of_process() -> dict[str, Any]:
    """The same of this process and all below it."""
    import os

    import psutil

    below = psutil.Process().children(recursive=True)
    return _peak([os.getpid(), *(process.pid for process in below)])

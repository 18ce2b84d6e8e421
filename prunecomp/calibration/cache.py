"""Keeps boundary activations, so that a sweep starts where something changed."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import weakref
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import torch


@dataclass(frozen=True)
class CacheBudget:
    """Bytes of activations that may be kept, from the fastest place to the slowest.

    Attributes:
        device: where the model runs.
        host: main memory, for a device that has memory of its own.
        disk: a temporary file, which is gone when the process is, however it ends.
    """

    device: int
    host: int = 0
    disk: int = 0


def free_disk() -> int:
    """Half of what is free where temporary files go."""
    return shutil.disk_usage(tempfile.gettempdir()).free // 2


class _OnDisk:
    """Tensors in a file without a name."""

    def __init__(self, batches: Sequence[torch.Tensor]) -> None:
        self._file: BinaryIO = tempfile.TemporaryFile(prefix="prunecomp-")  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._like = [(h.shape, h.dtype, h.device) for h in batches]
        for hidden in batches:
            data = hidden.detach().cpu().contiguous().flatten().view(torch.uint8)
            self._file.write(data.numpy().data)

    def read(self) -> list[torch.Tensor]:
        self._file.seek(0)
        batches = []
        for shape, dtype, device in self._like:
            data = torch.empty(shape, dtype=dtype)
            self._file.readinto(data.flatten().view(torch.uint8).numpy().data)
            batches.append(data.to(device))
        return batches


class _OnHost:
    """Tensors in main memory, of a device that has memory of its own."""

    def __init__(self, batches: Sequence[torch.Tensor]) -> None:
        self._device = batches[0].device
        self._batches = [hidden.cpu() for hidden in batches]

    def read(self) -> list[torch.Tensor]:
        return [hidden.to(self._device) for hidden in self._batches]


class ActivationCache:
    """Boundary activations by boundary, within budgets of bytes.

    Boundary 0 is always kept. Of the others every `stride`-th is, where the stride is the
    smallest with which all kept ones fit the budgets; the rest are recomputed when needed. A
    boundary goes to the fastest place that has room when it comes.
    """

    def __init__(self, *, boundaries: int, bytes_per_boundary: int, budget: CacheBudget) -> None:
        size = max(1, bytes_per_boundary)
        self._room = {
            "device": budget.device // size, "host": budget.host // size,
            "disk": budget.disk // size,
        }  # fmt: skip
        self.stride = -(-boundaries // max(1, sum(self._room.values())))
        self._all = boundaries, size
        self._held: dict[int, tuple[str, Sequence[torch.Tensor] | _OnHost | _OnDisk]] = {}
        self._scale: dict[int, float] = {}

    @property
    def spare(self) -> CacheBudget:
        """What is left of the budgets when all that may be kept is."""
        (wanted, size), left = self._all, {}
        for place, room in self._room.items():
            taken = min(room, wanted)
            left[place], wanted = (room - taken) * size, wanted - taken
        return CacheBudget(**left)

    @property
    def held(self) -> Collection[int]:
        """The boundaries that are kept now."""
        return self._held.keys()

    def put(self, boundary: int, batches: Sequence[torch.Tensor]) -> None:
        """Keeps the list, not a copy, if there is room; nobody writes to activations in place."""
        if boundary % self.stride:
            return
        self._held.pop(boundary, None)
        self._scale.pop(boundary, None)
        taken = [place for place, _ in self._held.values()]
        place = next((p for p, room in self._room.items() if taken.count(p) < room), "device")
        if place == "disk":
            with contextlib.suppress(OSError):  # a full disk: it is computed again instead
                self._held[boundary] = place, _OnDisk(batches)
        else:
            self._held[boundary] = place, batches if place == "device" else _OnHost(batches)

    def get(self, boundary: int) -> Sequence[torch.Tensor] | None:
        """What is kept of `boundary`, if anything."""
        if boundary not in self._held:
            return None
        kept = self._held[boundary][1]
        batches = kept.read() if isinstance(kept, (_OnHost, _OnDisk)) else kept
        scale = self._scale.get(boundary, 1.0)
        return batches if scale == 1.0 else [(h.float() * scale).to(h.dtype) for h in batches]

    def scale(self, factor: float) -> None:
        """All that is held counts as `factor` times what it was; nothing is touched."""
        self._scale = {b: self._scale.get(b, 1.0) * factor for b in self._held}

    def nearest(self, boundary: int) -> tuple[int, Sequence[torch.Tensor]] | None:
        """The last kept boundary at or before `boundary`."""
        held = [b for b in self._held if b <= boundary]
        if not held:
            return None
        found = self.get(max(held))
        assert found is not None
        return max(held), found

    def truncate_after(self, boundary: int) -> None:
        """Forgets everything behind `boundary`."""
        self._held = {b: h for b, h in self._held.items() if b <= boundary}

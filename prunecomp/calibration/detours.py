"""Keeps what candidates met on their way, for the next round."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prunecomp.calibration.cache import ActivationCache, CacheBudget

#: Streams that may be on disk: each is an open file, and systems allow about a thousand.
MOST_FILES = 256


class Detours:
    """Streams that went around a span of layers, at some of the boundaries behind it.

    What goes around a span and has not come to the next cut goes the same way in the next round;
    only the layers behind the cut are to be run again.
    """

    def __init__(self, *, boundaries: int, bytes_per_boundary: int, budget: CacheBudget) -> None:
        self._boundaries, self._size = boundaries, max(1, bytes_per_boundary)
        self._share = _share(boundaries, self._size, budget)
        self._ways: dict[int, ActivationCache] = {}

    def put(self, span: range, boundary: int, batches: Sequence[torch.Tensor]) -> None:
        """Keeps the stream at `boundary` that went around `span`, if there is room."""
        if self._share is None:
            return
        if span.start not in self._ways:
            self._ways[span.start] = _way(self._boundaries, span.stop, self._size, self._share)
        self._ways[span.start].put(boundary, batches)

    def reached(self, span: range) -> int:
        """The last boundary of this way that is held; where none is, the first it has."""
        way = self._ways.get(span.start)
        return max(way.held, default=span.stop) if way else span.stop

    def get(self, span: range) -> Sequence[torch.Tensor] | None:
        """The stream there, if one is held."""
        way = self._ways.get(span.start)
        return way.get(self.reached(span)) if way else None

    def truncate_after(self, boundary: int) -> None:
        """Forgets everything behind `boundary`."""
        for way in self._ways.values():
            way.truncate_after(boundary)

    def scale(self, factor: float) -> None:
        """All that is held counts as `factor` times what it was."""
        for way in self._ways.values():
            way.scale(factor)


def _share(boundaries: int, size: int, budget: CacheBudget) -> CacheBudget | None:
    """What each way may hold, if that is anything."""
    ways = max(1, boundaries - 2)
    disk = min(budget.disk, MOST_FILES * size)
    share = CacheBudget(budget.device // ways, budget.host // ways, disk // ways)
    return share if max(share.device, share.host, share.disk) >= size else None


def _way(boundaries: int, first: int, size: int, share: CacheBudget) -> ActivationCache:
    return ActivationCache(
        boundaries=max(1, boundaries - first), bytes_per_boundary=size, budget=share
    )


def bytes_on_device(
    *, boundaries: int, bytes_per_boundary: int, budget: CacheBudget, width: int
) -> int:
    """What `Detours` will hold there at most, with every span of `width` as a candidate."""
    share = _share(boundaries, bytes_per_boundary, budget)
    if share is None:
        return 0
    total = 0
    for first in range(width, boundaries):
        stride = _way(boundaries, first, bytes_per_boundary, share).stride
        held = sum(b % stride == 0 for b in range(first + 1, boundaries))
        total += min(held, share.device // bytes_per_boundary)
    return total * bytes_per_boundary

"""Keeps boundary activations, so that a sweep starts where something changed."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class ActivationCache:
    """Boundary activations by boundary, within a budget of bytes.

    Boundary 0 is always kept. Of the others every `stride`-th is, where the stride is the
    smallest with which all kept ones fit the budget; the rest are recomputed when needed.
    """

    def __init__(self, *, boundaries: int, bytes_per_boundary: int, budget: int) -> None:
        fit = max(1, budget // max(1, bytes_per_boundary))
        self.stride = -(-boundaries // fit)
        self._held: dict[int, Sequence[torch.Tensor]] = {}

    def put(self, boundary: int, batches: Sequence[torch.Tensor]) -> None:
        """Keeps the list, not a copy; nobody writes to activations in place."""
        if boundary % self.stride == 0:
            self._held[boundary] = batches

    def get(self, boundary: int) -> Sequence[torch.Tensor] | None:
        """What is kept of `boundary`, if anything."""
        return self._held.get(boundary)

    def nearest(self, boundary: int) -> tuple[int, Sequence[torch.Tensor]] | None:
        """The last kept boundary at or before `boundary`."""
        held = [b for b in self._held if b <= boundary]
        return (max(held), self._held[max(held)]) if held else None

    def truncate_after(self, boundary: int) -> None:
        """Forgets everything behind `boundary`."""
        self._held = {b: h for b, h in self._held.items() if b <= boundary}

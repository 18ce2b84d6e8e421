"""Contiguous block: the N layers that together turn the stream least."""

from __future__ import annotations

from collections.abc import Sequence

from prunecomp.calibration.needs import Need
from prunecomp.calibration.runner import Runner
from prunecomp.plan import PrunePlan


class ContiguousBlock:
    """``1 - mean_t cos(h_l, h_{l+N})``; the block with the lowest, l ... l+N-1, is removed.

    Source: LLM-Streamline, arXiv 2403.19135, equation 2. The cosine is over channels, one per
    token; see `cl_sequence` for what the research code does.
    """

    summary = "the block of N layers with the closest input and output (LLM-Streamline)"
    protect = (0, 0)
    block = True
    needs = Need.STREAM
    axis = "channels"

    def scores(
        self, runner: Runner, plan: PrunePlan, positions: Sequence[int], width: int
    ) -> list[float]:
        cosines = runner.cosines(width, axis=self.axis)
        return [1.0 - cosines[p] for p in positions]


METRIC = ContiguousBlock()

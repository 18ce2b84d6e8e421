"""Block Influence: how little a layer turns the stream."""

from __future__ import annotations

from collections.abc import Sequence

from prunecomp.calibration.needs import Need
from prunecomp.calibration.runner import Runner
from prunecomp.plan import PrunePlan


class BlockInfluence:
    """``BI_l = 1 - mean_t cos(h_l, h_{l+1})``; the lowest is removed.

    Source: ShortGPT, arXiv 2403.03853, equation 1. The research code of Prune&Comp sums over
    tokens instead of averaging, which multiplies every score by the same number and ranks alike.
    """

    summary = "1 - cosine between a layer's input and output (ShortGPT)"
    protect = (0, 0)
    block = False
    needs = Need.STREAM

    def scores(
        self, runner: Runner, plan: PrunePlan, positions: Sequence[int], width: int
    ) -> list[float]:
        cosines = runner.cosines(width)
        return [1.0 - cosines[p] for p in positions]


METRIC = BlockInfluence()

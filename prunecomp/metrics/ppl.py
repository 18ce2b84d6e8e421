"""Perplexity: what the model loses without the layer."""

from __future__ import annotations

from collections.abc import Sequence

from prunecomp.calibration.needs import Need
from prunecomp.calibration.runner import Runner
from prunecomp.plan import PrunePlan


class Perplexity:
    """Calibration loss, in nats per token, of the model with the layer skipped; the lowest goes.

    Source: SLEB, arXiv 2402.09025, metric 3. Ranking by loss is ranking by perplexity. Each
    candidate starts from its own boundary, or from a kept one in front of the last cut. SLEB's code
    spares the first and the last layer; use ``--protect-first 1 --protect-last 1`` for that.
    """

    summary = "calibration loss with the layer skipped (SLEB)"
    protect = (0, 0)
    block = False
    needs = Need.CANDIDATES

    def scores(
        self, runner: Runner, plan: PrunePlan, positions: Sequence[int], width: int
    ) -> list[float]:
        left = plan.recipe.num_removed - len(plan.removed)
        again = plan.recipe.strategy == "iterative" and left > width
        return runner.losses_without([range(p, p + width) for p in positions], again=again)


METRIC = Perplexity()

"""The one loop: score, choose, compensate, cut, again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from prunecomp.calibration.needs import declared
from prunecomp.calibration.runner import Runner
from prunecomp.compensators.base import Compensator, Context
from prunecomp.errors import NumericError
from prunecomp.metrics.base import Metric
from prunecomp.plan import PrunePlan
from prunecomp.rounds import PruneRound, RemoveSpan


def candidates(plan: PrunePlan, live: Sequence[int], width: int) -> list[int]:
    """Positions where a span of `width` live layers starts that holds no protected layer."""
    first = plan.recipe.protect_first
    last = plan.source.num_hidden_layers - plan.recipe.protect_last
    return [
        p for p in range(len(live) - width + 1) if live[p] >= first and live[p + width - 1] < last
    ]


def _check_numbers(factor: float, scores: Mapping[int, float], metric: str) -> None:
    """Refuses what a plan cannot say.

    Raises:
        NumericError: a score, or the factor, is not finite.
    """
    found = {"the factor": factor, **{f"the score of layer {k}": v for k, v in scores.items()}}
    for what, value in found.items():
        if not math.isfinite(value):
            raise NumericError(
                f"--metric {metric}: {what} came out as {value}; the weights are damaged, or "
                "--dtype is too narrow for them"
            )


def select(
    plan: PrunePlan,
    runner: Runner,
    metric: Metric,
    compensator: Compensator,
    *,
    on_round: Callable[[PrunePlan], None] = lambda plan: None,
) -> PrunePlan:
    """Adds rounds to `plan` until the recipe's number of layers is removed.

    ``iterative`` scores the model anew before every round, as it then is, factors included.
    ``one-shot`` ranks once, on the base model; each factor is still measured on the model as it
    then is. Of equal scores the earlier layer goes.

    Args:
        plan: with rounds already done, `runner` standing where they left off, to resume.
        on_round: called with the plan so far after each round.
    """
    recipe = plan.recipe
    width = recipe.num_removed if metric.block else runner.model.checkpoint.family.removal_unit
    ranking = dict(plan.rounds[0].scores) if plan.rounds else {}
    while len(plan.removed) < recipe.num_removed:
        live = runner.live
        positions = candidates(plan, live, width)
        if recipe.strategy == "iterative" or not plan.rounds:
            values = metric.scores(declared(runner, metric), plan, positions, width)
            ranking = {live[p]: v for p, v in zip(positions, values, strict=True)}
        else:
            # A run that closes over a gap was not ranked.
            positions = [p for p in positions if live[p + width - 1] - live[p] == width - 1]
        best = min(positions, key=lambda p: ranking[live[p]])
        context = Context(declared(runner, compensator), plan, best, best + width)
        repair = compensator.repair(context)
        scores = {live[p]: ranking[live[p]] for p in positions}
        _check_numbers(repair.factor, scores, recipe.metric)
        cut = RemoveSpan(tuple(live[best : best + width]))
        plan = plan.with_round(PruneRound(cut, repair, scores))
        runner.advance(plan)
        on_round(plan)
    return plan

"""The one loop: score, choose, compensate, cut, again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prunecomp.calibration.needs import declared
from prunecomp.calibration.runner import Runner
from prunecomp.compensators.base import Compensator, Context
from prunecomp.errors import UsageError
from prunecomp.families.base import ModelFamily
from prunecomp.metrics.base import Metric
from prunecomp.plan import PrunePlan, Recipe
from prunecomp.rounds import PruneRound, RemoveSpan


def check_recipe(recipe: Recipe, family: ModelFamily, num_hidden_layers: int) -> None:
    """Refuses, before anything runs, what cannot be done.

    Raises:
        UsageError: too many layers are to go, or to be protected, or too odd a number.
    """
    if min(recipe.protect_first, recipe.protect_last) < 0:
        raise UsageError("--protect-first and --protect-last must not be negative")
    if recipe.num_removed < 1:
        raise UsageError(f"{recipe.num_removed} layers to remove; remove at least one")
    if recipe.num_removed >= num_hidden_layers:
        raise UsageError(
            f"cannot remove {recipe.num_removed} of {num_hidden_layers} layers: at least one must "
            "stay; give a smaller --layers or --ratio"
        )
    if recipe.num_removed % family.removal_unit:
        raise UsageError(
            f"cannot remove {recipe.num_removed} layers: of a {family.model_type} model, layers go "
            f"in runs of {family.removal_unit} ({family.removal_reason}); give a multiple of "
            f"{family.removal_unit}"
        )
    eligible = num_hidden_layers - recipe.protect_first - recipe.protect_last
    if recipe.num_removed > eligible:
        raise UsageError(
            f"cannot remove {recipe.num_removed} of {num_hidden_layers} layers while the first "
            f"{recipe.protect_first} and the last {recipe.protect_last} are protected; give a "
            "smaller --layers, or other --protect-first and --protect-last"
        )


def _candidates(plan: PrunePlan, live: Sequence[int], width: int) -> list[int]:
    """Positions where a span of `width` live layers starts that holds no protected layer."""
    first = plan.recipe.protect_first
    last = plan.source.num_hidden_layers - plan.recipe.protect_last
    return [
        p for p in range(len(live) - width + 1) if live[p] >= first and live[p + width - 1] < last
    ]


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
        positions = _candidates(plan, live, width)
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
        cut = RemoveSpan(tuple(live[best : best + width]))
        plan = plan.with_round(PruneRound(cut, repair, scores))
        runner.advance(plan)
        on_round(plan)
    return plan

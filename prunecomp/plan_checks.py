"""Whether a plan could have been made for a model: what `plan` refuses, `apply` refuses too.

A plan file may have been edited. Whether it is sound in itself, reading it tells
(`PrunePlan.from_json`); here it is held against the model.
"""

from __future__ import annotations

from prunecomp.errors import PlanError, UsageError
from prunecomp.families.base import ModelFamily
from prunecomp.fold import choose_fold
from prunecomp.plan import PrunePlan, Recipe


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


def check_plan(
    plan: PrunePlan, family: ModelFamily, depth: int, *, tied: bool, where: str = "the plan"
) -> None:
    """Refuses a plan that `plan` would not have made for such a model, or has not finished.

    Args:
        family: of the model that the plan is applied to.
        depth: its number of layers.
        tied: whether its head shares the embedding's weight.
        where: what to call the plan: its file.

    Raises:
        PlanError: see the message.
    """
    made_for = (plan.source.model_type, plan.source.num_hidden_layers)
    if made_for != (family.model_type, depth):
        raise PlanError(
            f"{where}: was made for another model (model type or the depth differs: "
            f"{made_for[0]} of {made_for[1]} layers, not {family.model_type} of {depth}); give "
            "the model that was planned"
        )
    done, wanted = len(plan.removed), plan.recipe.num_removed
    if not plan.rounds:
        raise PlanError(f"{where}: has no rounds, so it removes nothing; finish it with `plan`")
    if done != wanted:
        raise PlanError(
            f"{where}: recipe.num_removed is {wanted}, but the rounds remove {done} layers; finish "
            f"it with `plan --resume`, or take what is there with --rounds {len(plan.rounds)}"
        )
    try:
        choose_fold(plan.recipe.fold, family, tied=tied)
        check_recipe(plan.recipe, family, depth)
    except UsageError as error:
        raise PlanError(f"{where}: `plan` refuses this ({error}); make the plan again") from error
    check_rounds(plan, family, where=where)


def check_rounds(plan: PrunePlan, family: ModelFamily, *, where: str) -> None:
    """Refuses rounds that remove protected layers, or other runs than layers go in.

    Raises:
        PlanError: see the message.
    """
    recipe = plan.recipe
    eligible = range(recipe.protect_first, plan.source.num_hidden_layers - recipe.protect_last)
    for number, r in enumerate(plan.rounds, start=1):
        if r.removed[0] not in eligible or r.removed[-1] not in eligible:
            raise PlanError(
                f"{where}: round {number} removes layer {r.removed[0]} to {r.removed[-1]}, but the "
                f"first {recipe.protect_first} and the last {recipe.protect_last} layers are "
                "protected; make the plan again"
            )
        if len(r.removed) % family.removal_unit:
            raise PlanError(
                f"{where}: round {number} removes {len(r.removed)} layer(s), but of a "
                f"{family.model_type} model layers go in runs of {family.removal_unit} "
                f"({family.removal_reason}); make the plan again"
            )

"""A plan held against a model: whatever `plan` refuses, an edited plan is refused for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prunecomp.errors import PlanError, UsageError
from prunecomp.families import supported_types
from prunecomp.fold import choose_fold
from prunecomp.plan import CalibrationRecord, PrunePlan, Recipe, SourceModel
from prunecomp.plan_checks import check_plan
from prunecomp.rounds import PruneRound, RemoveSpan, Scale

FAMILIES = supported_types()
DEPTH = 8


def plan(model_type="llama", spans=((2,), (5,)), **recipe) -> PrunePlan:
    removed = sum(len(span) for span in spans)
    asked = Recipe("bi", "iterative", "magnitude", "downstream", removed, 0, 0, "float32", "cpu")
    return PrunePlan(
        source=SourceModel("m", model_type, DEPTH, {}),
        recipe=replace(asked, **recipe),
        calibration=CalibrationRecord("a.txt", 2, 4, 0, "00"),
        rounds=tuple(PruneRound(RemoveSpan(tuple(span)), Scale(1.1), {}) for span in spans),
    )


def check(made: PrunePlan, model_type="llama", depth=DEPTH, *, tied=False) -> None:
    check_plan(made, FAMILIES[model_type], depth, tied=tied, where="p.json")


def test_sound_plans():
    check(plan())
    check(plan(fold="upstream"), tied=True)
    check(plan(protect_first=2, protect_last=2))
    check(plan("gpt_oss", [(0, 1), (4, 5)]), "gpt_oss")
    check(plan("gpt_oss", [(0, 1, 2, 3)]), "gpt_oss")


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (plan(spans=()), "has no rounds"),
        (plan(num_removed=3), "num_removed is 3, but the rounds remove 2.*--rounds 2$"),
        (plan(num_removed=0), "num_removed is 0"),
        (plan(protect_first=3), "round 1 removes layer 2.*first 3"),
        (plan(protect_last=3), "round 2 removes layer 5.*last 3"),
        (plan(protect_first=-1), "must not be negative"),
        (plan(protect_first=4, protect_last=3), "cannot remove 2 of 8 layers while"),
        (plan("qwen2"), "qwen2 of 8 layers, not llama of 8"),
    ],
)
def test_plans_that_no_run_makes(made, says):
    with pytest.raises(PlanError, match=rf"^p\.json: .*{says}") as error:
        check(made)
    assert "; " in str(error.value)  # and what to do


def test_another_depth():
    with pytest.raises(PlanError, match="of 8 layers, not llama of 6"):
        check(plan(), depth=6)


@pytest.mark.parametrize("spans", [((1,),), ((1,), (4,)), ((0, 1, 2),), ((0, 1), (4,), (6,))])
def test_layers_that_go_in_runs(spans):
    with pytest.raises(PlanError, match="in runs of 2"):
        check(plan("gpt_oss", spans), "gpt_oss")


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
@pytest.mark.parametrize("fold", ["downstream", "upstream"])
@pytest.mark.parametrize("tied", [False, True])
def test_every_fold_of_every_family_is_as_plan_has_it(model_type, fold, tied):
    family = FAMILIES[model_type]
    made = plan(model_type, [tuple(range(family.removal_unit))], fold=fold)
    refused = fold == "upstream" and choose(fold, family, tied=tied) is None
    if refused:
        with pytest.raises(PlanError, match=f"`plan` refuses this .--fold {fold}: not possible"):
            check(made, model_type, tied=tied)
    else:
        check(made, model_type, tied=tied)


def choose(fold, family, *, tied) -> str | None:
    try:
        return choose_fold(fold, family, tied=tied)
    except UsageError:
        return None


def test_a_prefix_of_an_unfinished_plan_is_whole():
    unfinished = plan(num_removed=5)
    with pytest.raises(PlanError, match="--rounds 2"):
        check(unfinished)
    check(unfinished.prefix(2))
    check(unfinished.prefix(1))


def test_factors_that_only_come_to_something_in_the_end():
    """Any product of some of them has to be a number, in the order of the rounds as well."""
    spans = [(i,) for i in (40, 38, 36, 34, 32, 30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6)]
    rounds = [
        {"removed": list(span), "factor": 2.0**60 if n < 9 else 2.0**-60, "scores": {}}
        for n, span in enumerate([*spans[::2], *spans[1::2]])
    ]
    document = replace(plan(spans=()), source=SourceModel("m", "llama", 64, {})).to_json()
    document |= {"rounds": rounds, "removed_layers": sorted(i for s in spans for i in s)}
    document["recipe"]["num_removed"] = len(spans)
    del document["kept_layers"], document["schema_version"]
    with pytest.raises(PlanError, match="doublings and halvings"):
        PrunePlan.from_json({"schema_version": 1, **document}, where="p.json")

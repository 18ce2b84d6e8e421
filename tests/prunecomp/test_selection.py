"""Layers and factors against naive loops over full passes of transformers (tests/oracles).

The oracle folds as published (everything before the cut is multiplied), the package downstream,
so these tests also say that the place of the fold does not change what is chosen.
"""

from __future__ import annotations

import pytest

from prunecomp.errors import UsageError
from tests.oracles import tiny_models
from tests.oracles.prune import prune

COUNT = {"bi": 4}
PROTECT = {"mag": (1, 1), "taylor": (1, 1)}

#: Every combination on one model, the repository's default strategy and its opposite on all.
EVERYTHING = [
    ("llama-bias", metric, strategy, compensation)
    for metric in ("bi", "ppl", "taylor", "mag")
    for strategy in ("iterative", "one-shot")
    for compensation in ("magnitude", "none")
] + [
    ("llama-bias", metric, "one-shot", compensation)
    for metric in ("cl", "cl_sequence")
    for compensation in ("magnitude", "none")
]
THE_REST = [
    (name, metric, "one-shot" if metric == "cl" else "iterative", "magnitude")
    for name in ("llama-tied", "mistral", "qwen2", "qwen3-tied")
    for metric in ("bi", "cl", "ppl", "taylor", "mag")
] + [
    (name, metric, "one-shot", "magnitude")
    for name in ("mistral", "qwen3-tied")
    for metric in ("bi", "ppl")
]


def assert_same(plan, expected, *, factor=1e-4, score=1e-3):
    """Same spans in the same order, factors and scores close.

    Scores such as 1 - cos are small differences of large numbers: they are compared relative to
    the largest score of their round.
    """
    assert [r.removed for r in plan.rounds] == [r.removed for r in expected]
    for ours, oracle in zip(plan.rounds, expected, strict=True):
        assert oracle.margin > 1e-4  # else the choice would be a matter of rounding
        assert ours.factor == pytest.approx(oracle.factor, rel=factor)
        assert ours.scores.keys() == oracle.scores.keys()
        scale = max(abs(v) for v in oracle.scores.values())
        for layer, value in oracle.scores.items():
            assert ours.scores[layer] == pytest.approx(value, abs=score * scale)


@pytest.fixture(scope="module")
def oracle(tiny_model, tiny_ids):
    """``oracle(name, metric, strategy, compensation)``: the naive loop's rounds, once each."""
    done = {}

    def get(*case):
        if case not in done:
            name, metric, strategy, compensation = case
            done[case] = prune(
                tiny_model(name), tiny_ids, metric=metric, strategy=strategy,
                compensation=compensation, count=COUNT.get(metric, 3),
                protect=PROTECT.get(metric, (0, 0)),
            )  # fmt: skip
        return done[case]

    return get


@pytest.mark.parametrize(("name", "metric", "strategy", "compensation"), EVERYTHING + THE_REST)
def test_choice_is_that_of_the_naive_loop(name, metric, strategy, compensation, make_plan, oracle):
    first, last = PROTECT.get(metric, (0, 0))
    plan = make_plan(
        name, layers=COUNT.get(metric, 3), metric=metric, strategy=strategy,
        compensation=compensation, protect_first=first, protect_last=last,
    )  # fmt: skip
    expected = oracle(name, metric, strategy, compensation)
    assert_same(plan, expected, score=1e-5 if metric in {"ppl", "mag"} else 1e-4)
    if compensation == "none":
        assert [r.factor for r in plan.rounds] == [1.0] * len(plan.rounds)
    else:
        assert max(r.factor for r in plan.rounds) > 1.05


@pytest.mark.parametrize("metric", ["bi", "ppl", "mag"])
def test_tiny_models_tell_the_variants_apart(metric, oracle):
    """Otherwise the test above could not fail for a package that ignores its options."""

    def order(strategy, compensation):
        return [r.removed for r in oracle("llama-bias", metric, strategy, compensation)]

    iterative = order("iterative", "magnitude")
    assert iterative != order("one-shot", "magnitude")
    assert iterative != order("iterative", "none")


@pytest.mark.parametrize("metric", ["bi", "taylor"])
@pytest.mark.parametrize("fold", ["downstream", "upstream"])
def test_realistic_eps_against_explicit_scaling(metric, fold, make_plan, tiny_ids, tmp_path):
    """eps 1e-5, embeddings of std 0.02: choice and factors are those of a scaling at the cut.

    The norms' eps does not scale with the stream, so neither fold is exact. Largest relative
    deviation of a factor, measured: downstream 2e-5, upstream 2e-3.
    """
    model = tiny_models.build(
        "llama-bias", rms_norm_eps=1e-5, embedding_std=0.02, initializer_range=0.05
    )
    plan = make_plan(
        "llama-bias", directory=tiny_models.write(model, tmp_path / "model"), layers=3,
        metric=metric, fold=fold, protect_first=0, protect_last=0,
    )  # fmt: skip
    expected = prune(
        model, tiny_ids, metric=metric, strategy="iterative", compensation="magnitude",
        count=3, form="explicit",
    )  # fmt: skip
    bound = {"downstream": 1e-4, "upstream": 1e-2}[fold]
    assert_same(plan, expected, factor=bound, score=1e-2)


def test_protected_layers_by_default(make_plan, tiny_model, tiny_ids):
    """Taylor+ and Mag+ spare the first four and the last two."""
    for metric in ("taylor", "mag"):
        plan = make_plan("llama-bias", layers=2, metric=metric)
        assert (plan.recipe.protect_first, plan.recipe.protect_last) == (4, 2)
        expected = prune(
            tiny_model("llama-bias"), tiny_ids, metric=metric, strategy="iterative",
            compensation="magnitude", count=2, protect=(4, 2),
        )  # fmt: skip
        assert_same(plan, expected, score=1e-4)
        assert set(plan.removed) == {4, 5}
        with pytest.raises(UsageError, match="while the first 4 and the last 2 are protected"):
            make_plan("llama-bias", layers=3, metric=metric)


def test_protection_applies_to_blocks(make_plan, tiny_model, tiny_ids):
    plan = make_plan("mistral", layers=3, metric="cl", protect_first=2, protect_last=2)
    expected = prune(
        tiny_model("mistral"), tiny_ids, metric="cl", strategy="one-shot", count=3,
        compensation="magnitude", protect=(2, 2),
    )  # fmt: skip
    assert_same(plan, expected, score=1e-4)
    assert list(plan.rounds[0].scores) == [2, 3]


def test_all_layers_but_one_can_go(make_plan, tiny_directory):
    plan = make_plan("qwen3-tied", layers=tiny_models.DEPTH - 1, compensation="none")
    assert len(plan.kept) == 1
    with pytest.raises(UsageError, match="at least one must stay"):
        make_plan("qwen3-tied", layers=tiny_models.DEPTH)


@pytest.mark.parametrize("metric", ["bi", "taylor", "ppl"])
def test_fold_does_not_change_the_plan(metric, make_plan):
    """With a negligible eps, which `tiny_models` has."""
    options = {"layers": 3, "metric": metric, "protect_first": 0, "protect_last": 0}
    down = make_plan("llama-tied", fold="downstream", **options)
    up = make_plan("llama-tied", fold="upstream", **options)
    assert [r.removed for r in down.rounds] == [r.removed for r in up.rounds]
    for a, b in zip(down.rounds, up.rounds, strict=True):
        assert a.factor == pytest.approx(b.factor, rel=1e-4)


def test_first_layer_and_large_factor(make_plan, tiny_model, tiny_ids):
    """Mistral's choice by loss takes layer 0, where the stream grows threefold."""
    plan = make_plan("mistral", layers=1, metric="ppl")
    expected = prune(
        tiny_model("mistral"), tiny_ids, metric="ppl", strategy="iterative", count=1,
        compensation="magnitude",
    )  # fmt: skip
    assert_same(plan, expected, score=1e-5)
    assert plan.rounds[0].removed == (0,)
    assert plan.rounds[0].factor > 2

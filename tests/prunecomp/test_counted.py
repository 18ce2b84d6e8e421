"""Tokens that do not count: a prefix, padding, and what stands between conversations.

Against the naive loops of tests/oracles, which take the mean over the tokens that count.
"""

from __future__ import annotations

import copy

import pytest
import torch

from bench import naive
from prunecomp.calibration.counted import Counted
from prunecomp.calibration.data import CalibrationSet, TextSource, save_tokens
from prunecomp.calibration.losses import sample_losses
from prunecomp.calibration.stats import cosine_sums, magnitudes, token_norms
from tests.oracles import tiny_models
from tests.oracles.prune import prune
from tests.oracles.stream import boundaries, magnitude_factor, mean_cosine_over_tokens
from tests.prunecomp.test_selection import assert_same

NAME = "llama-bias"
METRICS = ("bi", "cl", "cl_sequence", "ppl", "taylor", "mag")
PREFIX = (11, 5)


def ragged(ids: torch.Tensor) -> torch.Tensor:
    """A token in front, one in the middle of some samples, and padding of other lengths."""
    counted = torch.ones(ids.shape, dtype=torch.bool)
    counted[:, 0] = False
    counted[1::2, 6] = False
    for sample in range(len(ids)):
        counted[sample, ids.shape[1] - 2 * sample :] = sample == 0
    return counted


@pytest.fixture(scope="module")
def tokens(tiny_ids) -> dict[str, CalibrationSet]:
    """By what of them counts: ``prefix``, all behind two tokens; ``ragged``, see there."""
    ids, source = tiny_ids.clone(), TextSource("t")
    ids[:, :2] = torch.tensor(PREFIX)
    return {
        "prefix": CalibrationSet(ids, source, 0, "auto", PREFIX),
        "ragged": CalibrationSet(tiny_ids, source, 0, "auto", (), ragged(tiny_ids)),
    }


@pytest.fixture
def plan_on(tokens, make_plan, tmp_path):
    """``plan_on(which, metric, **options)``: through a file of tokens, as a replay has it."""

    def run(which, metric, **options):
        save_tokens(tokens[which] if isinstance(which, str) else which, tmp_path / "t.safetensors")
        return make_plan(
            NAME, layers=3, metric=metric, calibration=str(tmp_path / "t.safetensors"),
            protect_first=0, protect_last=0, **options,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("which", ["prefix", "ragged"])
@pytest.mark.parametrize("metric", METRICS)
def test_choice_is_that_of_the_naive_loop(which, metric, tokens, plan_on, tiny_model):
    each = tokens[which]
    strategy = "one-shot" if metric.startswith("cl") else "iterative"
    expected = prune(
        tiny_model(NAME), each.input_ids, metric=metric, strategy=strategy,
        compensation="magnitude", count=3, counted=each.counted,
    )  # fmt: skip
    assert_same(plan_on(which, metric), expected)


@pytest.mark.parametrize("metric", ["bi", "cl_sequence", "ppl", "taylor"])
def test_what_is_in_the_padding_changes_no_bit(metric, tokens, plan_on):
    one = tokens["ragged"]
    padding = ~one.counted & (torch.arange(one.input_ids.shape[1]) > 6)
    assert padding.any()
    other = CalibrationSet(
        one.input_ids.masked_fill(padding, 96), one.source, 0, "auto", (), one.mask
    )
    assert plan_on(one, metric).rounds == plan_on(other, metric).rounds


@pytest.mark.parametrize("metric", ["bi", "ppl", "taylor"])
@pytest.mark.parametrize("fold", ["downstream", "upstream"])
def test_batches_change_nothing(metric, fold, plan_on):
    one, three = (plan_on("ragged", metric, fold=fold, batch_size=n) for n in (1, 3))
    assert [r.removed for r in one.rounds] == [r.removed for r in three.rounds]
    for a, b in zip(one.rounds, three.rounds, strict=True):
        assert a.factor == pytest.approx(b.factor, rel=1e-5)
        assert a.scores == pytest.approx(b.scores, rel=1e-4)


def test_what_does_not_count_is_read_all_the_same(tokens, plan_on):
    """Another token in front gives another plan's figures."""
    one = tokens["prefix"]
    ids = one.input_ids.clone()
    ids[:, 0] = 50
    other = CalibrationSet(ids, one.source, 0, "auto", (50, PREFIX[1]))
    scores = [plan_on(each, "bi").rounds[0].scores for each in (one, other)]
    assert scores[0] != scores[1]


@pytest.mark.parametrize("metric", ["bi", "cl", "ppl", "taylor"])
def test_published_procedure_leaves_out_the_same_tokens(
    metric, tokens, plan_on, tiny_model, monkeypatch
):
    """`bench.naive`, which is what the cost of choosing is held against."""
    monkeypatch.setattr(naive, "SPARED", {})
    each, model = tokens["prefix"], copy.deepcopy(tiny_model(NAME))
    cuts = naive.prune(model, each.input_ids, metric, 3, lead=len(PREFIX))
    rounds = plan_on("prefix", metric).rounds
    assert [c.removed for c in cuts] == [r.removed for r in rounds]
    assert [c.factor for c in cuts] == pytest.approx([r.factor for r in rounds], rel=1e-4)


def test_statistics(tokens, tiny_model):
    each = tokens["ragged"]
    counted = Counted.of(each.counted)
    assert counted.lead == 1
    h = boundaries(tiny_model(NAME), each.input_ids)
    sums = cosine_sums(h[2], h[5], counted=counted)
    expected = mean_cosine_over_tokens(h[2], h[5], each.counted)
    assert float(sums.sum() / each.counted.sum()) == pytest.approx(expected, rel=1e-6)
    ratio = (magnitudes(h[5], counted) / magnitudes(h[2], counted)).double().mean()
    assert float(ratio) == pytest.approx(magnitude_factor(h[2], h[5], each.counted), rel=1e-5)
    norms = token_norms(h[2], counted)
    assert torch.allclose(norms, (h[2].norm(dim=2) * each.counted)[:, 1:])
    assert torch.equal(counted.predicted(each.input_ids), each.counted[:, 1:].sum(dim=1))


@pytest.mark.parametrize("which", ["prefix", "ragged"])
def test_losses_are_those_of_transformers_labels(which, tokens, tiny_directory, tiny_model):
    """The token behind the prefix is predicted; what is in front of it and padding are not."""
    from prunecomp.calibration.view import PlannedModel
    from prunecomp.checkpoint.reader import Checkpoint

    each = tokens[which]
    model = PlannedModel(
        Checkpoint(tiny_directory(NAME)), device=torch.device("cpu"), dtype=torch.float32
    )
    model.embed(each.input_ids)
    stream = boundaries(tiny_model(NAME), each.input_ids)[-1]
    counted = Counted.of(each.counted)
    found = sample_losses(model, stream, each.input_ids, counted).sum()
    labels = each.input_ids.masked_fill(~each.counted, -100)
    with torch.no_grad():
        expected = tiny_model(NAME)(input_ids=each.input_ids, labels=labels).loss
    assert float(found / counted.predicted(each.input_ids).sum()) == pytest.approx(
        float(expected), rel=1e-5
    )
    if which == "prefix":
        assert int(counted.predicted(each.input_ids)[0]) == tiny_models.TOKENS - len(PREFIX)

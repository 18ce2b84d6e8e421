"""Nested plans, resuming, repeating: the same plan and the same bytes."""

from __future__ import annotations

import json

import pytest

import cli
from prunecomp import pipeline
from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.errors import PlanError, UsageError
from prunecomp.pipeline import PlanRequest, resolve_recipe
from prunecomp.plan import read_plan
from prunecomp.progress import Progress
from tests.oracles import tiny_models

CASES = [
    ("llama-bias", {"metric": "bi"}),
    ("qwen2", {"metric": "ppl", "fold": "upstream"}),
    ("llama-tied", {"metric": "taylor", "protect_first": 1, "protect_last": 1}),
    ("mistral", {"metric": "bi", "strategy": "one-shot"}),
    ("qwen3-tied", {"metric": "mag", "protect_first": 0, "protect_last": 0, "fold": "upstream"}),
]


def files(directory) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*")}


@pytest.fixture
def run(monkeypatch, capsys):
    """``run(*arguments)``: the command line in this process; returns what it prints as JSON."""
    monkeypatch.setattr(cli, "silence_libraries", lambda **_: None)  # it changes the process

    def call(*arguments):
        capsys.readouterr()
        code = cli.main([*map(str, arguments), "--json", "--quiet"])
        out, err = capsys.readouterr()
        assert (code, err) == (0, "")
        return json.loads(out)

    return call


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join([case[0], *case[1]]))
def case(request, make_plan):
    """(model, options, plan of 4 rounds, what was known after each round)."""
    name, options = request.param
    saved = []
    plan = make_plan(name, layers=4, on_round=saved.append, **options)
    return name, options, plan, saved


def test_prefix_is_the_plan_of_fewer_rounds(case, make_plan):
    name, options, long, _ = case
    short = make_plan(name, layers=2, **options)
    prefix = long.prefix(2)
    assert prefix.rounds == short.rounds  # scores and factors too, bit for bit
    assert (prefix.source, prefix.calibration, prefix.versions) == (
        short.source, short.calibration, short.versions,
    )  # fmt: skip
    assert prefix.recipe == short.recipe
    for text, values in prefix.perplexity.items():
        assert values == {"base": short.perplexity[text]["base"]}
    assert long.prefix(4) == long


def test_resuming_gives_the_identical_plan(case, make_plan):
    """From some finished rounds, and from a complete plan."""
    name, options, full, saved = case
    assert [plan.rounds for plan in saved] == [full.rounds[:n] for n in (1, 2, 3, 4)]
    for done in (saved[1], full):
        assert make_plan(name, layers=4, resume=done, **options) == full


def test_a_shorter_plan_can_be_resumed_to_more_layers(make_plan):
    short = make_plan("llama-bias", layers=2)
    assert make_plan("llama-bias", layers=4, resume=short) == make_plan("llama-bias", layers=4)


def test_a_block_cannot_be_resumed_to_another_length(make_plan):
    """CL scores blocks of N layers; a plan for N layers is no start of one for N+1."""
    block = make_plan("llama-bias", layers=2, metric="cl")
    assert make_plan("llama-bias", layers=2, metric="cl", resume=block) == block
    with pytest.raises(PlanError, match="cannot resume"):
        make_plan("llama-bias", layers=3, metric="cl", resume=block)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"metric": "ppl"}, "options"),
        ({"fold": "upstream"}, "options"),
        ({"compensation": "none"}, "options"),
        ({"samples": 4}, "calibration tokens"),
        ({"layers": 1}, "removes 2 layers already"),
    ],
)
def test_resuming_something_else_is_refused(changed, what, make_plan):
    plan = make_plan("llama-bias", layers=2)
    with pytest.raises(PlanError, match=what):
        make_plan("llama-bias", **{"layers": 3, **changed}, resume=plan)
    with pytest.raises(PlanError, match="other model"):
        make_plan("mistral", layers=3, resume=plan)


def test_apply_rounds_equals_compress_layers(run, tiny_directory, tiny_tokens, tmp_path):
    """All files but the card and the manifest; of those, only what was measured or asked for."""
    model = tiny_directory("qwen2")
    shared = ["--calibration", tiny_tokens, "--dtype", "float32", "--device", "cpu"]
    run("plan", model, "-o", tmp_path / "plan.json", "--layers", 3, *shared)
    run("apply", model, tmp_path / "plan.json", "--rounds", 2, "-o", tmp_path / "a" / "model")
    run("compress", model, "-o", tmp_path / "b" / "model", "--layers", 2, *shared)
    a, b = files(tmp_path / "a" / "model"), files(tmp_path / "b" / "model")
    assert a.keys() == b.keys()
    assert {name for name in a if a[name] != b[name]} == {"README.md", "prunecomp.json"}
    manifests = [json.loads(each["prunecomp.json"]) for each in (a, b)]
    for manifest in manifests:
        del manifest["plan"]["recipe"]["num_removed"], manifest["plan"]["perplexity"]
    assert manifests[0] == manifests[1]


def test_two_runs_give_the_same_bytes(run, tiny_directory, tiny_tokens, tmp_path):
    """Wherever they go. And so does applying the manifest, as the model card says."""
    model = tiny_directory("llama-bias")
    for name in ("a", "b"):
        run("compress", model, "-o", tmp_path / name, "--layers", 3,
            "--calibration", tiny_tokens)  # fmt: skip
    first = files(tmp_path / "a")
    assert first == files(tmp_path / "b")
    run("apply", model, tmp_path / "a" / "prunecomp.json", "-o", tmp_path / "c")
    assert first == files(tmp_path / "c")


def test_saved_tokens_repeat_the_run(run, text_model, tmp_path):
    """``--save-tokens`` from text, then those tokens: the same rounds."""
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog; " * 40)
    shared = ["--layers", 2, "--dtype", "float32"]
    saved = tmp_path / "tokens.safetensors"
    first = run("plan", text_model, "-o", tmp_path / "1.json", "--calibration", text,
                "--samples", 4, "--seq-len", 16, "--save-tokens", saved, *shared)  # fmt: skip
    second = run("plan", text_model, "-o", tmp_path / "2.json", "--calibration", saved, *shared)
    assert first["rounds"] == second["rounds"]
    assert first["calibration"]["sha256"] == second["calibration"]["sha256"]
    assert json.loads((tmp_path / "1.json").read_text()) == first
    assert read_plan(tmp_path / "1.json").removed == tuple(first["removed_layers"])


def test_a_plan_is_applied_to_its_own_model_only(make_plan, tiny_directory, tmp_path, quiet):
    plan = make_plan("llama-tied", layers=1)
    other = tiny_models.write(tiny_models.build("llama-tied", seed=99), tmp_path / "other")
    for wrong in (other, tiny_directory("mistral")):
        with pytest.raises(PlanError, match="made for another model"):
            pipeline.apply_plan(Checkpoint(wrong), plan, tmp_path / "out", progress=quiet)
        assert not (tmp_path / "out").exists()


def test_perplexities_of_the_plan(make_plan, tiny_model, tiny_ids):
    """Base and pruned, on calibration and evaluation tokens, against transformers' own loss."""
    import math

    from tests.oracles.stream import loss
    from tests.oracles.surgery import by_hand

    plan = make_plan("llama-bias", layers=2)
    (values,) = plan.perplexity.values()
    base = tiny_model("llama-bias")
    pruned = by_hand(base, [(r.removed, r.factor) for r in plan.rounds], "upstream")
    assert values["base"] == pytest.approx(math.exp(loss(base, tiny_ids)), rel=1e-4)
    assert values["pruned"] == pytest.approx(math.exp(loss(pruned, tiny_ids)), rel=1e-4)


def test_evaluation_on_a_token_file(make_plan, tiny_model, tmp_path):
    """Of another shape than the calibration tokens, and fewer than 64 samples."""
    import math

    from safetensors.torch import save_file

    from tests.oracles.stream import loss

    ids = tiny_models.tokens(3, 12, seed=11)
    save_file({"input_ids": ids}, tmp_path / "evaluation.safetensors")
    plan = make_plan("llama-bias", layers=1, evaluation=str(tmp_path / "evaluation.safetensors"))
    (values,) = [v for text, v in plan.perplexity.items() if text.startswith("evaluation")]
    assert values["base"] == pytest.approx(math.exp(loss(tiny_model("llama-bias"), ids)), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either --layers N or --ratio R"),
        ({"layers": 1, "ratio": 0.5}, "either --layers N or --ratio R"),
        ({"ratio": 1.5}, "between 0 and 1"),
        ({"ratio": 0.01}, "less than one layer"),
        ({"layers": 0}, "at least one"),
        ({"layers": 8}, "at least one must stay"),
        ({"layers": 1, "protect_first": -1}, "must not be negative"),
        ({"layers": 1, "metric": "tayler"}, "unknown metric 'tayler'; did you mean 'taylor'"),
        ({"layers": 1, "compensation": "linear"}, "unknown compensation 'linear'"),
        ({"layers": 1, "strategy": "greedy"}, "unknown strategy 'greedy'"),
        ({"layers": 1, "dtype": "int8"}, "--dtype int8"),
        ({"layers": 1, "device": "tpu"}, "--device tpu"),
        ({"layers": 1, "device": "cuda:99"}, "--device cuda:99"),
    ],
)
def test_requests_that_cannot_be_carried_out(options, message, make_plan):
    with pytest.raises(UsageError, match=message):
        make_plan("llama-bias", **options)


def test_ratio(make_plan):
    assert len(make_plan("llama-bias", ratio=0.25, metric="mag").removed) == 2


@pytest.mark.parametrize(
    ("ratio", "count"), [(0.1, 1), (0.22, 2), (0.3125, 3), (0.4, 3), (0.4375, 4)]
)
def test_ratio_is_rounded_to_the_nearest_layer(tiny_directory, ratio, count):
    """Of 8 layers; a half is rounded up: 0.3125 x 8 = 2.5, 0.4375 x 8 = 3.5."""
    checkpoint = Checkpoint(tiny_directory("llama-bias"))
    recipe = resolve_recipe(checkpoint, PlanRequest(ratio=ratio), Progress(quiet=True))
    assert recipe.num_removed == count

"""What every family promises, on a tiny random model of the real class, for every fold.

The oracle is transformers' own forward of the unpruned model, in which the removed layers answer
with their input and the stream is multiplied by hand.
"""

from __future__ import annotations

import contextlib
import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.errors import UsageError
from prunecomp.families import FAMILIES
from prunecomp.fold import choose_fold
from prunecomp.pipeline import PlanRequest, apply_plan, compress, versions
from prunecomp.plan import CalibrationRecord, PrunePlan, Recipe, SourceModel
from prunecomp.progress import Progress
from prunecomp.rounds import PruneRound, RemoveSpan, Scale
from tests.families import tiny

DEPTH = tiny.DEPTH
QUIET = Progress(quiet=True)


CASES = tiny.cases()


@pytest.fixture(scope="module", params=CASES, ids=lambda c: f"{c[0]}-{c[1]}")
def case(request, tmp_path_factory):
    """(family, model, its directory)."""
    name, variant = request.param
    model = tiny.build(name, variant)
    directory = tmp_path_factory.mktemp(f"{name}-{variant}")
    model.save_pretrained(directory)
    return FAMILIES.get(name), model, directory


def layers_of(model, family):
    return model.get_submodule(family.layers)


def reload(directory):
    model, info = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return tiny.with_negligible_eps(model.eval())


@contextlib.contextmanager
def skipping(model, family, factors: dict[int, float]):
    """The model with these layers answering ``input * factor``."""
    handles = []
    for index, factor in factors.items():

        def answer(module, args, kwargs, output, factor=factor):
            hidden = (args[0] if args else kwargs["hidden_states"]) * factor
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        layer = layers_of(model, family)[index]
        handles.append(layer.register_forward_hook(answer, with_kwargs=True))
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def boundaries(model, family, ids):
    """The stream entering each layer, and the logits."""
    found = []

    def note(module, args, kwargs):
        found.append((args[0] if args else kwargs["hidden_states"]).clone())

    handles = [
        layer.register_forward_pre_hook(note, with_kwargs=True)
        for layer in layers_of(model, family)
    ]
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return found, logits


def plan_for(checkpoint, fold, rounds):
    removed = [layer for span, _ in rounds for layer in span]
    return PrunePlan(
        source=SourceModel(
            "tiny", checkpoint.family.model_type, checkpoint.num_hidden_layers, checkpoint.sha256()
        ),
        recipe=Recipe(
            "bi", "iterative", "magnitude", fold, len(removed), 0, 0, "float32", "cpu"
        ),
        calibration=CalibrationRecord("hand", 1, 1, 0, ""),
        rounds=tuple(
            PruneRound(RemoveSpan(tuple(span)), Scale(factor), {}) for span, factor in rounds
        ),
        versions=versions(),
    )  # fmt: skip


def factors_of(rounds) -> dict[int, float]:
    """By layer: a span passes the stream on, multiplied at its last layer."""
    return {i: (f if i == span[-1] else 1.0) for span, f in rounds for i in span}


def folds_of(checkpoint) -> list[str]:
    found = []
    for fold in ("downstream", "upstream"):
        with contextlib.suppress(UsageError):
            found.append(choose_fold(fold, checkpoint.family, tied=checkpoint.tied))
    return found


def removals(unit: int):
    """Spans with their factors: in the middle, first, last, and two that interrupt a pattern."""
    if unit == 1:
        return {
            "middle": [([3], 1.37)],
            "first": [([0], 0.8)],
            "last": [([DEPTH - 1], 1.2)],
            "scattered": [([4], 1.37), ([1], 0.81)],
            "block": [([2, 3], 1.3)],
        }
    return {
        "middle": [([2, 3], 1.37)],
        "odd": [([1, 2], 1.37)],
        "first": [([0, 1], 0.8)],
        "last": [([DEPTH - 2, DEPTH - 1], 1.2)],
    }


def assert_close(found, expected, tolerance=2e-4):
    error = (found - expected).abs().max() / expected.abs().max()
    assert error < tolerance, f"relative error {error:.2e}"


@pytest.mark.parametrize(
    ("case", "where"),
    [(c, where) for c in CASES for where in removals(FAMILIES.get(c[0]).removal_unit)],
    indirect=["case"],
    ids=lambda value: value if isinstance(value, str) else f"{value[0]}-{value[1]}",
)
def test_written_model_is_the_original_with_layers_skipped(case, where, tmp_path):
    """Logits, and every boundary up to the one scale that the fold leaves on it."""
    family, model, directory = case
    rounds = removals(family.removal_unit)[where]
    checkpoint, ids = Checkpoint(directory), tiny.tokens()
    removed = {layer for span, _ in rounds for layer in span}
    with skipping(model, family, factors_of(rounds)):
        expected, logits = boundaries(model, family, ids)
    expected = [h for i, h in enumerate(expected) if i not in removed]
    for fold in folds_of(checkpoint):
        plan = plan_for(checkpoint, fold, rounds)
        apply_plan(checkpoint, plan, tmp_path / fold, progress=QUIET)
        found, found_logits = boundaries(reload(tmp_path / fold), family, ids)
        assert_close(found_logits, logits)
        for layer, now, then in zip(plan.kept, found, expected, strict=True):
            scale = 1.0
            for span, factor in rounds:
                if fold == "upstream" and span[0] > layer:
                    scale *= factor  # too small by it before the cut, in the original
                if fold == "downstream" and span[0] < layer:
                    scale /= factor  # stays as small as before the cut
            assert_close(now, then * scale)


def test_folding_shows(case):
    """The oracle is sharp: without the factor the logits are others."""
    family, model, _ = case
    rounds = removals(family.removal_unit)["middle"]
    with skipping(model, family, factors_of(rounds)):
        _, scaled = boundaries(model, family, tiny.tokens())
    with skipping(model, family, dict.fromkeys(factors_of(rounds), 1.0)):
        _, plain = boundaries(model, family, tiny.tokens())
    assert (scaled - plain).abs().max() / scaled.abs().max() > 1e-2


def test_compress_and_generate(case, tmp_path):
    """The real command's path: what it measured is what transformers computes; the cache works."""
    directory = case[2]
    checkpoint, ids = Checkpoint(directory), tiny.tokens(6, 12, seed=5)
    source = tmp_path / "tokens.safetensors"
    from safetensors.torch import save_file

    save_file({"input_ids": ids}, source)
    request = PlanRequest(layers=2, calibration=str(source), dtype="float32")
    plan, _ = compress(checkpoint, request, tmp_path / "out", name="tiny", progress=QUIET)
    pruned = reload(tmp_path / "out")
    with torch.no_grad():
        logits = pruned(input_ids=ids, use_cache=False).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    (measured,) = plan.perplexity.values()
    assert measured["pruned"] == pytest.approx(float(loss.exp()), rel=1e-3)

    greedy = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    prompt = tiny.tokens(2, 9, seed=11)
    with_cache = pruned.generate(prompt, use_cache=True, **greedy)
    without = pruned.generate(prompt, use_cache=False, **greedy)
    assert with_cache.tolist() == without.tolist()
    assert with_cache.shape[1] == 17


def test_config_speaks_of_the_new_depth(case, tmp_path):
    """Every list with an entry per layer is known to the family, and rewritten."""
    family, model, directory = case
    resolved = model.config.to_dict()
    lists = {k for k, v in resolved.items() if isinstance(v, list) and len(v) == DEPTH}
    assert lists <= {key for rule in family.rules for key in rule.keys}
    checkpoint = Checkpoint(directory)
    plan = plan_for(checkpoint, "downstream", removals(family.removal_unit)["middle"])
    apply_plan(checkpoint, plan, tmp_path / "out", progress=QUIET)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    for key in lists:
        assert written[key] == [resolved[key][i] for i in plan.kept]


def test_defaults_are_those_of_transformers(case):
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    family, model, _ = case
    default = CONFIG_MAPPING[family.model_type]()
    assert family.tied_by_default == default.tie_word_embeddings
    assert family.architectures == (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family.model_type],)
    assert family.depth_key in default.to_dict()
    assert type(model).__name__ in family.architectures

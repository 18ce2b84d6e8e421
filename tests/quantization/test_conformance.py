"""What `tests/families/test_conformance.py` promises, for quantised checkpoints.

The oracle decodes the files without the package, into an ordinary model that transformers runs.
Where scales have 16 bits, factors are powers of two, so that a scale rounds to itself.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunecomp.calibration.view import PlannedModel
from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.errors import NumericError
from prunecomp.families import FAMILIES
from prunecomp.pipeline import PlanRequest, apply_plan, compress, make_plan
from tests.families import tiny
from tests.families.test_conformance import (
    QUIET,
    assert_close,
    boundaries,
    factors_of,
    folds_of,
    plan_for,
    reload,
    skipping,
)
from tests.oracles import quantised

SCHEMES = quantised.schemes()
HALF_SCALES = ("ct-int8-bf16-scales", "gptq", "awq")
#: Every scheme on a Llama; on the other kinds of stream, one per format.
CASES = [("llama", name) for name in SCHEMES] + [
    (family, name)
    for family in ("qwen3_moe", "gemma2", "olmo2", "qwen2")
    for name in ("ct-fp8-tensor-static", "fp8-block", "gptq-4")
]
COMPRESSED = [("llama", n) for n in ("ct-int8-w8a8", "fp8-block", "gptq-4", "awq")] + [
    ("qwen3_moe", "ct-fp8-tensor-static")
]


@pytest.fixture(scope="module", params=CASES, ids=lambda c: "-".join(c))
def case(request, tmp_path_factory):
    """(family, scheme, quantised directory, the model that it stands for, rounds)."""
    family, name = request.param
    directory = tmp_path_factory.mktemp(f"{family}-{name}")
    tiny.build(family, 0).save_pretrained(directory)
    scheme = SCHEMES[name]()
    quantised.quantise_directory(directory, scheme)
    quantised.decode_directory(directory, scheme, directory / "dense")
    factors = (2.0, 0.5) if name.startswith(HALF_SCALES) else (1.37, 0.81)
    rounds = [([4], factors[0]), ([1], factors[1])]
    return FAMILIES.get(family), scheme, directory, reload(directory / "dense"), rounds


def written(case, tmp_path, fold):
    """(directory that was written, checkpoint, plan)."""
    directory, rounds = case[2], case[4]
    checkpoint = Checkpoint(directory)
    plan = plan_for(checkpoint, fold, rounds)
    apply_plan(checkpoint, plan, tmp_path / fold, progress=QUIET)
    return tmp_path / fold, checkpoint, plan


def test_written_model_is_the_original_with_layers_skipped(case, tmp_path):
    """Logits and boundaries, for both folds, as for models that are not quantised."""
    family, scheme, directory, model, rounds = case
    ids = tiny.tokens()
    with skipping(model, family, factors_of(rounds)):
        expected, logits = boundaries(model, family, ids)
    for fold in folds_of(Checkpoint(directory)):
        output, _, plan = written(case, tmp_path, fold)
        quantised.decode_directory(output, scheme, tmp_path / f"{fold}-dense")
        found, found_logits = boundaries(reload(tmp_path / f"{fold}-dense"), family, ids)
        assert_close(found_logits, logits)
        for now, layer in zip(found, plan.kept, strict=True):
            scale = 1.0
            for span, factor in rounds:
                if fold == "upstream" and span[0] > layer:
                    scale *= factor
                if fold == "downstream" and span[0] < layer:
                    scale /= factor
            assert_close(now, expected[layer] * scale)


def test_nothing_but_scales_changes(case, tmp_path):
    """Codes, zero points and orders are byte for byte those of the source."""
    family, scheme, directory, _, _ = case
    output, checkpoint, plan = written(case, tmp_path, "downstream")
    before, after = load_file(directory / "model.safetensors"), load_file(
        output / "model.safetensors"
    )  # fmt: skip
    changed, compared = set(), 0
    for position, original in enumerate(plan.kept):
        prefix = f"{family.layers}.{original}."
        for name, tensor in before.items():
            if not name.startswith(prefix):
                continue
            relative = name.removeprefix(prefix)
            new = after.pop(f"{family.layers}.{position}.{relative}")
            assert (new.dtype, new.shape) == (tensor.dtype, tensor.shape)
            compared += 1
            if not torch.equal(*(t.flatten().view(torch.uint8) for t in (new, tensor))):
                changed.add(relative.rpartition(".")[2])
    assert compared
    assert not [name for name in after if ".layers." in name]
    reads = bool(family.readers)  # a norm is scaled there, and so are the projections before it
    norms = family.writers[0].startswith("post")
    allowed = {"weight"} if norms else {scheme.scale, "bias"}
    if reads:
        allowed |= {scheme.scale, *scheme.activations}
    assert changed
    assert changed <= allowed
    if norms and not reads:
        assert changed == {"weight"}  # of norms: no scale changes
    codes = {"weight", "weight_packed", "qweight"} & {n.rpartition(".")[2] for n in before}
    assert codes
    assert checkpoint.index.nbytes > Checkpoint(output).index.nbytes


def test_what_is_measured_is_what_is_written(case, tmp_path):
    """Weights in memory are bit for bit those that the written files stand for."""
    family, scheme = case[:2]
    for fold in folds_of(Checkpoint(case[2])):
        output, checkpoint, plan = written(case, tmp_path, fold)
        quantised.decode_directory(output, scheme, tmp_path / f"{fold}-dense")
        model = PlannedModel(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
        model.apply(plan)
        other = reload(tmp_path / f"{fold}-dense").get_submodule(family.layers)
        for position, original in enumerate(plan.kept):
            found = model.layer(original).state_dict()
            expected = other[position].state_dict()
            assert found.keys() == expected.keys()
            for name, tensor in expected.items():
                assert torch.equal(found[name], tensor), (fold, original, name)


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c in COMPRESSED],
    indirect=True,
    ids=lambda c: "-".join(c),
)
@pytest.mark.parametrize("metric", ["bi", "mag"])
def test_compress_measures_the_dequantised_model(case, metric, tmp_path):
    """The command's path, for a metric on the stream and one on the weights."""
    _, scheme, directory, _, _ = case
    ids = tiny.tokens(4, 12, seed=5)
    save_file({"input_ids": ids}, tmp_path / "tokens.safetensors")
    request = PlanRequest(
        layers=1, metric=metric, calibration=str(tmp_path / "tokens.safetensors"),
        dtype="float32", protect_first=0, protect_last=0,
    )  # fmt: skip
    output = tmp_path / "out"
    plan, result = compress(Checkpoint(directory), request, output, name="t", progress=QUIET)
    quantised.decode_directory(output, scheme, tmp_path / "dense")
    with torch.no_grad():
        logits = reload(tmp_path / "dense")(input_ids=ids, use_cache=False).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    (measured,) = plan.perplexity.values()
    assert measured["pruned"] == pytest.approx(float(loss.exp()), rel=1e-3)
    # the card speaks of weights, not of the words that they are packed into
    stored = load_file(tmp_path / "dense" / "model.safetensors")
    assert result.parameters == sum(t.numel() for t in stored.values())
    dense = make_plan(Checkpoint(directory / "dense"), request, name="t", progress=QUIET)
    assert dense.removed == plan.removed
    assert plan.rounds[0].scores == pytest.approx(dense.rounds[0].scores, rel=1e-3)


def test_config_keeps_its_scheme(case, tmp_path):
    output, checkpoint, _ = written(case, tmp_path, "downstream")
    settings = json.loads((output / "config.json").read_text())["quantization_config"]
    assert settings == checkpoint.config["quantization_config"]


def test_a_scale_that_overflows_is_an_error(tmp_path):
    tiny.build("llama", 0).save_pretrained(tmp_path / "model")
    quantised.quantise_directory(tmp_path / "model", SCHEMES["gptq-4"]())
    checkpoint = Checkpoint(tmp_path / "model")
    plan = plan_for(checkpoint, "upstream", [([3], 1e7)])
    with pytest.raises(NumericError, match=r"proj\.scales: times 1e\+07 does not fit"):
        apply_plan(checkpoint, plan, tmp_path / "out", progress=QUIET)
    assert not (tmp_path / "out").exists()

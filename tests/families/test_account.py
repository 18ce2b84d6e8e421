"""Every tensor of a layer is accounted for, in every form in which transformers writes it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.comparison import compare_with_source
from prunecomp.errors import CheckpointError, UnsupportedModelError, VerificationError
from prunecomp.families import FAMILIES
from prunecomp.families.base import any_expert
from prunecomp.pipeline import apply_plan
from prunecomp.verify import check_source_model
from tests.families import test_conformance as conformance
from tests.families import tiny

CASES = tiny.cases()
FUSED = {
    "deepseek_v2", "deepseek_v3", "ernie4_5_moe", "glm4_moe", "gpt_neox", "granitemoe",
    "granitemoeshared", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe",
}  # fmt: skip
FILE = "model.safetensors"


def identify(case) -> str:
    return f"{case[0]}-{case[1]}"


@pytest.fixture(scope="module", params=CASES, ids=identify)
def case(request, tmp_path_factory):
    """(family, model, its directory as published, the same with one tensor per parameter)."""
    name, variant = request.param
    model = tiny.build(name, variant)
    published, fused = tmp_path_factory.mktemp("published"), tmp_path_factory.mktemp("fused")
    model.save_pretrained(published)
    model.save_pretrained(fused, save_original_format=False)
    return FAMILIES.get(name), model, published, fused


def patterns(checkpoint) -> dict[str, str]:
    """Names inside a layer, with the first tensor of each."""
    found: dict[str, str] = {}
    for name in checkpoint:
        where = checkpoint.family.layer_of(name)
        if where is not None:
            found.setdefault(any_expert(where[1]), name)
    return found


def test_the_forms_differ_where_they_are_said_to(case):
    family, _, published, fused = case
    differ = set(load_file(published / FILE)) != set(load_file(fused / FILE))
    assert differ == (family.model_type in FUSED)


def test_both_forms_pass(case):
    for directory in case[2:]:
        check_source_model(Checkpoint(directory))


@pytest.mark.parametrize(
    "case", [c for c in CASES if c[0] in FUSED], indirect=True, ids=identify
)  # fmt: skip
def test_fused_experts_are_scaled(case, tmp_path):
    """The oracle is transformers' forward of the original with layers skipped by hand."""
    family, model, _, fused = case
    for where in ("middle", "scattered"):
        rounds = conformance.removals(family.removal_unit)[where]
        with conformance.skipping(model, family, conformance.factors_of(rounds)):
            _, expected = conformance.boundaries(model, family, tiny.tokens())
        checkpoint = Checkpoint(fused)
        for fold in conformance.folds_of(checkpoint):
            plan, output = conformance.plan_for(checkpoint, fold, rounds), tmp_path / where / fold
            apply_plan(checkpoint, plan, output, progress=conformance.QUIET)
            _, found = conformance.boundaries(conformance.reload(output), family, tiny.tokens())
            conformance.assert_close(found, expected)


def test_a_writer_or_reader_that_is_not_declared_is_refused(case):
    """From headers, in either form, by the name of a tensor."""
    for directory in case[2:]:
        checkpoint = Checkpoint(directory)
        family, there = checkpoint.family, patterns(checkpoint)
        for field, name in [("writers", w) for w in family.writers] + [
            ("readers", r) for r in family.readers
        ]:
            if name in there:
                left = tuple(each for each in getattr(family, field) if each != name)
                checkpoint.family = dataclasses.replace(family, **{field: left})
                with pytest.raises(UnsupportedModelError, match="nobody can say") as caught:
                    check_source_model(checkpoint)
                assert there[name] in str(caught.value)
                assert len(str(caught.value).replace(str(directory), "")) < 250


def test_no_tensor_is_declared_twice():
    for name in FAMILIES.names():
        family = FAMILIES.get(name)
        lists = [*family.writers, *family.readers, *family.others]
        assert len(lists) == len(set(lists)), name
        modules = {writer.rpartition(".")[0] for writer in (*family.writers, *family.readers)}
        assert not modules & set(family.others), name


def test_a_writer_that_was_not_scaled_is_found(case, tmp_path):
    """Each writer in turn gets back its value of the source; layers behind the cut are run."""
    family, _, published, _ = case
    source = Checkpoint(published)
    rounds = conformance.removals(family.removal_unit)["first"]
    plan = conformance.plan_for(source, "downstream", rounds)
    apply_plan(source, plan, tmp_path / "out", compare=False, progress=conformance.QUIET)
    file = tmp_path / "out" / FILE
    original, good = load_file(published / FILE), load_file(file)
    agreement = compare_with_source(
        source, Checkpoint(tmp_path / "out"), plan, progress=conformance.QUIET
    )
    assert agreement.layers < 1e-3
    for writer in {any_expert(source.family.layer_of(n)[1]) for n in good if ".0." in n}:
        if writer not in source.family.writers:
            continue
        bad = dict(good)
        for position, layer in enumerate(plan.kept):
            for name in good:
                where = source.family.layer_of(name)
                if where and where[0] == position and any_expert(where[1]) == writer:
                    bad[name] = original[source.family.tensor_name(layer, where[1])]
        save_file(bad, file, metadata={"format": "pt"})
        with pytest.raises(VerificationError, match=r"outputs of layer \d+ \(layer \d+ of"):
            compare_with_source(
                source, Checkpoint(tmp_path / "out"), plan, progress=conformance.QUIET
            )


@pytest.fixture
def llama(tmp_path):
    """``llama(name=tensor or None, ...)``: a directory with tensors added or left out."""
    model = tiny.build("llama", 0)

    def make(changes):
        model.save_pretrained(tmp_path / "llama")
        tensors = load_file(tmp_path / "llama" / FILE) | changes
        left = {name: value for name, value in tensors.items() if value is not None}
        save_file(left, tmp_path / "llama" / FILE, metadata={"format": "pt"})
        return Checkpoint(tmp_path / "llama")

    return make


LAYER = "model.layers.2."


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"mlp.adapter.weight": (4, 4)}, UnsupportedModelError, "mlp.adapter.weight [4, 4]"),
        ({"mlp.down_proj.lora_A.weight": (4, 4)}, CheckpointError, "lora_A"),
        ({"self_attn.o_proj.weight": None}, CheckpointError, "self_attn.o_proj.weight"),
        ({"self_attn.o_proj.weight": (0,)}, CheckpointError, "sharded training"),
        ({"mlp.up_proj.weight": (4, 4)}, CheckpointError, "is (4, 4), not (48, 32)"),
    ],
)
def test_what_does_not_add_up_is_named(llama, changes, error, says):
    made = {LAYER + n: None if s is None else torch.zeros(s) for n, s in changes.items()}
    with pytest.raises(error) as caught:
        check_source_model(llama(made))
    assert says in str(caught.value)
    assert LAYER in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lm_head.weight": None}, "lm_head.weight"),
        ({"model.norm.weight": torch.zeros(0)}, "model.norm.weight has the shape [0]"),
    ],
)
def test_outside_of_the_layers(llama, changes, says):
    with pytest.raises(CheckpointError) as caught:
        check_source_model(llama(changes))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("self_attn.rotary_emb.inv_freq", torch.ones(6)),
        ("self_attn.rotary_emb.cos_cached", torch.ones(1, 1, 8, 6)),
        ("self_attn.masked_bias", torch.tensor(-1e9)),
        ("self_attn.bias", torch.ones(1, 1, 8, 8, dtype=torch.bool)),
        ("mlp.up_proj.bias", torch.zeros(48)),  # as AutoGPTQ writes it for every module
    ],
)
@pytest.mark.parametrize("layers", [range(6), (0, 2, 5)])
def test_buffers_of_earlier_versions_are_taken(llama, tmp_path, name, value, layers):
    """In all layers or in some, which are then others in the result."""
    checkpoint = llama({f"model.layers.{i}.{name}": value.clone() for i in layers})
    plan = conformance.plan_for(checkpoint, "downstream", [([1], 1.2), ([4], 0.9)])
    apply_plan(checkpoint, plan, tmp_path / "out", progress=conformance.QUIET)
    held = {n for n in load_file(tmp_path / "out" / FILE) if n.endswith(name)}
    expected = {p for p, i in enumerate(plan.kept) if i in layers}
    assert held == {f"model.layers.{p}.{name}" for p in expected}


def test_experts_half_in_one_tensor_are_not_taken_for_whole(tmp_path):
    model = tiny.build("qwen3_moe", 0)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / FILE)
    tensors["model.layers.1.mlp.experts.down_proj"] = torch.zeros(4, 32, 24)
    save_file(tensors, tmp_path / FILE, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.experts"):
        check_source_model(Checkpoint(tmp_path))

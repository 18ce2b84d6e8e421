"""Where a factor goes: both folds against an explicit scaling, and the algebra of all edits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from prunecomp.errors import NumericError, UsageError
from prunecomp.families import family_for, supported_types
from prunecomp.fold import TensorEdit, choose_fold, compile_edits
from tests.oracles import tiny_models
from tests.oracles.surgery import by_hand
from tests.prunecomp.strategies import plans

ROUNDS = [((3,), 1.2), ((5,), 1.15)]


@torch.no_grad()
def _logits(model, ids):
    return model(input_ids=ids, use_cache=False).logits


def _deviations(model, directory, ids, written) -> dict[str, float]:
    """Relative deviation of the logits of each fold from those with an explicit scaling."""
    expected = _logits(by_hand(model, ROUNDS, "explicit"), ids)
    found = {}
    for fold in ("downstream", "upstream"):
        result = AutoModelForCausalLM.from_pretrained(written(directory, ROUNDS, fold))
        found[fold] = float((_logits(result, ids) - expected).norm() / expected.norm())
    return found


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_both_folds_are_the_explicit_scaling(name, tiny_model, tiny_directory, tiny_ids, written):
    """With a negligible eps (1e-12) both folds are exact to fp32 rounding.

    For the tied models this says, too, that upstream does not scale the logits: the reference
    leaves the weights, head included, as they are.
    """
    found = _deviations(tiny_model(name), tiny_directory(name), tiny_ids, written)
    assert max(found.values()) < 1e-5


@pytest.mark.parametrize("name", ["llama-bias", "llama-tied", "qwen2"])
def test_downstream_is_closer_with_a_realistic_eps(name, tiny_ids, written, tmp_path):
    """eps 1e-5, embeddings of std 0.02, and a stream that grows from layer to layer.

    Measured relative deviation of the logits from an explicit scaling module at the two cuts:

    | model      | downstream | upstream |
    |------------|-----------:|---------:|
    | llama-bias |     5.2e-5 |   2.1e-3 |
    | llama-tied |     2.2e-4 |   3.8e-3 |
    | qwen2      |     1.7e-4 |   3.6e-3 |

    Upstream disturbs the first norms, where eps weighs most against the small stream; downstream
    disturbs later ones. Where the stream does *not* grow (writers of std 0.02 on embeddings of
    std 0.02) the order can turn: downstream divides by the factor, which makes eps weigh more,
    and upstream multiplies, which makes it weigh less.
    """
    model = tiny_models.build(name, rms_norm_eps=1e-5, embedding_std=0.02, initializer_range=0.05)
    directory = tiny_models.write(model, tmp_path / "model")
    found = _deviations(model, directory, tiny_ids, written)
    assert found["downstream"] < 1e-3
    assert found["downstream"] < found["upstream"] / 5


#: Tensors of a checkpoint with everything a family can have, and some that no family names.
_RELATIVE = (
    "input_layernorm.weight", "post_attention_layernorm.weight", "self_attn.q_proj.weight",
    "self_attn.q_proj.bias", "self_attn.q_norm.weight", "self_attn.o_proj.weight",
    "self_attn.o_proj.bias", "mlp.up_proj.weight", "mlp.up_proj.bias", "mlp.down_proj.weight",
    "mlp.down_proj.bias", "self_attn.rotary_emb.inv_freq",
)  # fmt: skip
_WRITERS = {
    "self_attn.o_proj.weight", "self_attn.o_proj.bias", "mlp.down_proj.weight",
    "mlp.down_proj.bias",
}  # fmt: skip
_GLOBAL = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", "extra.weight")


@given(
    plan=plans(), family=st.sampled_from(["llama", "mistral", "qwen2", "qwen3"]), tied=st.booleans()
)
def test_edits_of_random_plans(plan, family, tied):
    """Kept and removed are all; each tensor once; scale is the product of the cuts behind it."""
    depth, kept = plan.source.num_hidden_layers, plan.kept
    assert sorted((*kept, *plan.removed)) == list(range(depth))
    names = [f"model.layers.{i}.{r}" for i in range(depth) for r in _RELATIVE] + list(_GLOBAL)
    edits = compile_edits(plan, supported_types()[family], names, tied=tied)
    wanted = {f"model.layers.{i}.{r}" for i in range(len(kept)) for r in _RELATIVE}
    assert sorted(edit.target for edit in edits) == sorted(wanted | set(_GLOBAL))

    total = math.prod(r.factor for r in plan.rounds)
    upstream = plan.recipe.fold == "upstream"
    for edit in edits:
        expected = 1.0
        if edit.source in _GLOBAL:
            assert edit.target == edit.source
            if upstream:
                special = {"model.embed_tokens.weight": total}
                if tied:
                    special |= {"lm_head.weight": total, "model.norm.weight": 1 / total}
                expected = special.get(edit.source, 1.0)
        else:
            _, _, layer, relative = edit.source.split(".", 3)
            assert edit.target == f"model.layers.{kept.index(int(layer))}.{relative}"
            if relative in _WRITERS:
                behind = [r.factor for r in plan.rounds if min(r.removed) > int(layer)]
                before = [1 / r.factor for r in plan.rounds if max(r.removed) < int(layer)]
                assert len(behind) + len(before) == len(plan.rounds)
                expected = math.prod(behind if upstream else before)
        assert edit.scale == pytest.approx(expected, rel=1e-12)
        assert edit.is_identity == (edit.scale == 1.0)


def test_upstream_overflow_is_refused():
    """An fp16 embedding that the factor would push past 65504."""
    edit = TensorEdit("model.embed_tokens.weight", "model.embed_tokens.weight", 3.0)
    with pytest.raises(NumericError, match=r"model.embed_tokens.weight.*--fold downstream"):
        edit.apply(lambda _: torch.tensor([1.0, 30000.0], dtype=torch.float16))


@pytest.mark.parametrize(
    ("dtype", "value", "scale"),
    [
        (torch.float16, 0.02, 1e-8), (torch.float16, 0.02, 1e-4), (torch.bfloat16, 1.0, 1e-39),
        (torch.float32, 1.0, 1e-46), (torch.float32, 1.0, 1e-200), (torch.float32, 1.0, 0.0),
    ],
)  # fmt: skip
def test_a_weight_that_vanishes_is_refused(dtype, value, scale):
    """All zero, or so small that nothing of it is exact any more."""
    with pytest.raises(NumericError, match="is too small for"):
        TensorEdit("a", "a", scale).apply(lambda _: torch.tensor([value, -value, 0.0], dtype=dtype))


def test_what_was_as_small_before_is_none_of_that():
    half = torch.tensor([0.0, 6e-8, -6e-8], dtype=torch.float16)
    for tensor in (torch.zeros(3), half, torch.tensor([]), torch.tensor([1e-42, 0.0])):
        TensorEdit("a", "a", 0.5).apply(lambda _, tensor=tensor: tensor)
    one = torch.tensor([1.0, 1e-8], dtype=torch.float16)  # the large one stays exact
    assert TensorEdit("a", "a", 0.5).apply(lambda _: one)[0] == 0.5
    assert (
        not TensorEdit("a", "a", 0.5, unit_offset=True).apply(lambda _: torch.tensor([1.0])).any()
    )


def test_edit_leaves_its_argument_alone():
    tensor = torch.ones(3)
    assert TensorEdit("a", "a", 2.0).apply(lambda _: tensor).tolist() == [2.0, 2.0, 2.0]
    assert tensor.tolist() == [1.0, 1.0, 1.0]


def test_choose_fold():
    family = supported_types()["llama"]
    for tied in (True, False):
        assert [choose_fold(f, family, tied=tied) for f in ("auto", "downstream", "upstream")] == [
            "downstream", "downstream", "upstream",
        ]  # fmt: skip
    with pytest.raises(UsageError, match="--fold sideways"):
        choose_fold("sideways", family, tied=False)


def test_a_tied_head_behind_a_norm_without_weights_cannot_be_folded_upstream():
    family = supported_types()["olmo"]
    assert choose_fold("upstream", family, tied=False) == "upstream"
    assert choose_fold("auto", family, tied=True) == "downstream"
    with pytest.raises(UsageError, match="--fold upstream"):
        choose_fold("upstream", family, tied=True)


def test_unit_offset():
    """A norm that multiplies by 1 + w: s (1 + w) - 1."""
    edit = TensorEdit("n", "n", 1.5, unit_offset=True)
    assert edit.apply(lambda _: torch.tensor([0.0, 1.0, -0.5])).tolist() == [0.5, 2.0, -0.25]


#: What the project promises by name.
PROMISED = [
    "llama",
    "mistral",
    "ministral",
    "qwen2",
    "qwen3",
    "phi3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "olmo",
    "olmo2",
    "olmo3",
    "granite",
    "smollm3",
    "stablelm",
    "starcoder2",
    "cohere",
    "cohere2",
    "glm4",
    "exaone4",
    "nemotron",
    "seed_oss",
    "hunyuan_v1_dense",
    "ernie4_5",
    "gpt2",
    "opt",
    "gpt_neox",
    "phi",
    "falcon",
    "bloom",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "olmoe",
    "granitemoe",
    "glm4_moe",
    "deepseek_v2",
    "deepseek_v3",
    "gpt_oss",
]


def test_supported_types():
    assert set(PROMISED) <= set(supported_types())
    with pytest.raises(UsageError, match=r"'qwen4' is not supported \(") as caught:
        family_for({"model_type": "qwen4"}, where="here")
    assert "did you mean" not in str(caught.value)  # it is another architecture

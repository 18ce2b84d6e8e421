"""Counted work against counts by hand, weight by weight."""

import pytest
from transformers import (
    DeepseekV2Config,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
)

from bench.ceiling import ideal
from bench.work import Counts, counts_of, total

# hidden 8, MLP 12, 4 query heads and 2 of keys and values, each of 4
Q, K, V, OUT, MLP = 8 * 16, 8 * 8, 8 * 8, 16 * 8, 3 * 8 * 12
LAYER = Q + K + V + OUT + MLP
COMMON = {
    "hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 4, "vocab_size": 50, "num_hidden_layers": 3, "dtype": "bfloat16",
    "tie_word_embeddings": False, "architectures": ["LlamaForCausalLM"],
}  # fmt: skip


def counts(config, tmp_path) -> Counts:
    config.save_pretrained(tmp_path)
    counts_of.cache_clear()
    return counts_of(tmp_path)


def test_llama_by_hand(tmp_path):
    found = counts(LlamaConfig(**COMMON), tmp_path)
    norms = 2 * 8
    assert found.dense == 3 * LAYER
    assert found.parameters == 3 * (LAYER + norms) + 8 + 2 * 50 * 8
    assert found.bytes == 2 * found.parameters
    assert found.kv_bytes_per_token == 3 * 2 * (2 * 4) * 2  # layers, keys and values, width, bytes
    prefill = found.prefill_flops_per_token(5)
    # token i of 5 sees i tokens: scores and sums, 2 operations each, 4 heads of 4
    seen = (1 + 2 + 3 + 4 + 5) / 5
    assert prefill.layers == 3 * (2 * LAYER + 2 * 2 * 4 * 4 * seen)
    assert prefill.head == 2 * 50 * 8 / 5  # asked for the last token only
    decode = found.decode_bytes_per_token(10, 1)
    assert decode.layers == 3 * LAYER * 2
    assert (decode.embedding, decode.head) == (8 * 2, 50 * 8 * 2)
    assert decode.kv_cache == 10 * 96
    four = found.decode_bytes_per_token(10, 4)  # weights are read once for all, caches are not
    assert (four.layers, four.head) == (decode.layers / 4, decode.head / 4)
    assert (four.kv_cache, four.embedding) == (decode.kv_cache, decode.embedding)


def test_tied_head_is_read_and_stored_once(tmp_path):
    found = counts(LlamaConfig(**{**COMMON, "tie_word_embeddings": True}), tmp_path)
    assert found.head == 50 * 8
    assert found.parameters == 3 * (LAYER + 16) + 8 + 50 * 8


def test_mixture_of_experts_by_hand(tmp_path):
    config = MixtralConfig(**{
        **COMMON, "architectures": ["MixtralForCausalLM"], "num_local_experts": 8,
        "num_experts_per_tok": 2,
    })  # fmt: skip
    found = counts(config, tmp_path)
    router = 8 * 8
    assert found.dense == 3 * (Q + K + V + OUT + router)
    assert (found.expert, found.experts, found.per_token) == (3 * 8 * MLP, 8, 2)
    prefill = found.prefill_flops_per_token(1)
    assert prefill.layers == 3 * (2 * (Q + K + V + OUT + router + 2 * MLP) + 2 * 2 * 16)
    one = found.decode_bytes_per_token(0, 1)
    assert one.layers == pytest.approx(2 * 3 * (Q + K + V + OUT + router + 2 * MLP))
    # of 8 experts, a step with 3 tokens misses one with probability (6/8)^3
    three = found.decode_bytes_per_token(0, 3)
    met = 8 * (1 - (6 / 8) ** 3)
    assert three.layers == pytest.approx(2 * 3 * (Q + K + V + OUT + router + met * MLP) / 3)


def test_windows(tmp_path):
    config = MistralConfig(
        **{**COMMON, "architectures": ["MistralForCausalLM"], "sliding_window": 2}
    )
    found = counts(config, tmp_path)
    seen = (1 + 2 + 2 + 2) / 4
    assert found.prefill_flops_per_token(4).layers == 3 * (2 * LAYER + 2 * 2 * 16 * seen)
    assert found.decode_bytes_per_token(10, 1).kv_cache == 96 * 2
    assert "window" in found.kv_note


def test_other_caches(tmp_path):
    latent = counts(DeepseekV2Config(
        **{k: v for k, v in COMMON.items() if k not in ("head_dim", "architectures")},
        architectures=["DeepseekV2ForCausalLM"], q_lora_rank=None, kv_lora_rank=6,
        qk_rope_head_dim=2, qk_nope_head_dim=4, v_head_dim=4, first_k_dense_replace=3,
    ), tmp_path)  # fmt: skip
    assert latent.kv_bytes_per_token == 3 * (6 + 2) * 2
    state = counts(MambaConfig(
        hidden_size=8, state_size=4, num_hidden_layers=3, vocab_size=50,
        architectures=["MambaForCausalLM"],
    ), tmp_path)  # fmt: skip
    assert state.kv_bytes_per_token is None
    assert "state" in state.kv_note
    old = counts(GPT2Config(
        n_embd=8, n_head=2, n_layer=3, vocab_size=50, n_positions=16,
        architectures=["GPT2LMHeadModel"],
    ), tmp_path)  # fmt: skip
    assert old.dense == 3 * (8 * 24 + 8 * 8 + 2 * 8 * 32)
    assert old.kv_bytes_per_token == 3 * 2 * 8 * 4


def test_ideal_speedups(tmp_path):
    base = counts(LlamaConfig(**COMMON), tmp_path)
    pruned = counts(LlamaConfig(**{**COMMON, "num_hidden_layers": 2}), tmp_path)
    lengths = {"input_tokens": 6, "output_tokens": 8}
    layer = 2 * LAYER + 2 * 2 * 16 * 3.5
    prefill = (3 * layer + 2 * 400 / 6) / (2 * layer + 2 * 400 / 6)
    assert ideal(base, pruned, stage="prefill", batch=1, **lengths) == pytest.approx(prefill)
    rest, cache = 16 + 800, 10 * 32
    decode = (3 * (2 * LAYER + cache) + rest) / (2 * (2 * LAYER + cache) + rest)
    assert ideal(base, pruned, stage="decode", batch=1, **lengths) == pytest.approx(decode)
    either = ideal(base, pruned, stage="serving", batch=1, **lengths)
    assert either == pytest.approx(max(prefill, decode))
    assert total(base.decode_bytes_per_token(10, 1)) == 3 * (2 * LAYER + cache) + rest

"""Our attention against the formula in float64, and as good as torch's kernel."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM as Auto
from transformers import Gemma3TextConfig, LlamaConfig, Qwen2Config, StableLmConfig

from prunecomp.calibration import attention as module
from prunecomp.calibration.attention import FasterAttention, Scratch, attention
from prunecomp.calibration.view import PlannedModel
from prunecomp.checkpoint.reader import Checkpoint


def inputs(samples=2, heads=4, groups=2, tokens=300, width=48, values=48, seed=0):
    """Query, key and value as models have them: [n, t, heads, d] with two dimensions swapped."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (heads, width), (groups, width), (groups, values)
    made = [torch.randn(samples, tokens, *shape, generator=generator) for shape in shapes]
    return [x.mul(1.5).bfloat16().transpose(1, 2) for x in made]


def by_the_formula(query, key, value, mask=None, scale=None):
    """[n, heads, t, v] in float64, a token at a time."""
    q, k, v = (x.double() for x in (query, key, value))
    samples, heads, tokens, width = q.shape
    out = torch.empty(samples, heads, tokens, v.shape[-1], dtype=torch.float64)
    for n in range(samples):
        for h in range(heads):
            group = h * k.shape[1] // heads
            for t in range(tokens):
                seen = torch.arange(t + 1)
                if mask is not None:
                    (seen,) = mask[min(n, len(mask) - 1), 0, t].nonzero(as_tuple=True)
                scores = k[n, group, seen] @ q[n, h, t] * (scale or 1 / math.sqrt(width))
                weights = torch.exp(scores - scores.max())
                out[n, h, t] = weights / weights.sum() @ v[n, group, seen]
    return out


def error(found, right):
    """Relative to the norm."""
    return float((found.double() - right).norm() / right.norm())


def window(tokens, width, samples=1):
    """[samples, 1, t, t]: the last `width` tokens, in later samples more of them."""
    queries, keys = torch.arange(tokens)[:, None], torch.arange(tokens)
    each = [(keys <= queries) & (keys > queries - width - n) for n in range(samples)]
    return torch.stack(each)[:, None]


CASES = {
    "plain": ({}, None),
    "one head each": ({"groups": 4}, None),
    "one group": ({"groups": 1}, None),
    "wide values": ({"values": 80}, None),
    "whole blocks": ({"tokens": 256, "samples": 1}, None),
    "one block": ({"tokens": 70, "samples": 3}, None),
    "window": ({}, window(300, 40)),
    "window of each": ({"samples": 3}, window(300, 40, 3)),
}


@pytest.mark.parametrize("scores", [module.SCORES, 1 << 14, 1])
@pytest.mark.parametrize("case", CASES)
def test_the_formula(case, scores, monkeypatch):
    monkeypatch.setattr(module, "SCORES", scores)
    shape, mask = CASES[case]
    query, key, value = inputs(**shape)
    found = attention(query, key, value, mask=mask)
    right = by_the_formula(query, key, value, mask)
    assert found.dtype == torch.bfloat16
    assert found.shape == right.shape
    assert found.transpose(1, 2).is_contiguous()
    assert error(found, right) < 2**-8  # of bfloat16's rounding, twice


def test_as_exact_as_torch_where_scores_are_large():
    """Scores of hundreds, as models with large biases have them, are not rounded to bfloat16."""
    query, key, value = inputs(tokens=128)
    query, key = query + 8, key + 8
    right = by_the_formula(query, key, value)
    repeated = [x.repeat_interleave(2, dim=1) for x in (key, value)]
    torchs = functional.scaled_dot_product_attention(query, *repeated, is_causal=True)
    assert error(attention(query, key, value), right) < 1.5 * error(torchs, right)


def test_scale_and_scratch():
    query, key, value = inputs(tokens=140)
    scratch = Scratch()
    first = attention(query, key, value, scale=0.3, scratch=scratch)
    assert error(first, by_the_formula(query, key, value, scale=0.3)) < 2**-8
    kept = first.clone()
    attention(query + 1, key, value, scratch=scratch)
    assert torch.equal(first, kept)
    assert torch.equal(attention(query, key, value, scale=0.3, scratch=scratch), kept)


def test_samples_do_not_depend_on_their_batch():
    query, key, value = inputs(samples=5, tokens=200)
    together = attention(query, key, value)
    alone = [attention(query[i, None], key[i, None], value[i, None]) for i in range(5)]
    # Not bit for bit: some processors' products block one sample and several in other ways.
    assert error(together, torch.cat(alone).double()) < 2**-9


def test_the_setting_is_put_back(monkeypatch):
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    attention(*inputs())
    assert settings.fp32_precision == before
    monkeypatch.setattr(torch, "softmax", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attention(*inputs())
    assert settings.fp32_precision == before


@pytest.fixture
def calls(monkeypatch):
    """Counts what `attention` is asked for."""
    found = []

    def counted(*args, **options):
        found.append(args)
        return attention(*args, **options)

    monkeypatch.setattr(module, "attention", counted)
    return found


def test_what_calls_torchs_gets_ours(calls):
    query, key, value = inputs(groups=4)
    masked = {"attn_mask": window(300, 30)}
    for options in ({"is_causal": True}, masked, {"is_causal": True, "scale": 0.2}):
        torchs = functional.scaled_dot_product_attention(query, key, value, **options)
        with FasterAttention():
            ours = functional.scaled_dot_product_attention(query, key, value, **options)
        torch.testing.assert_close(ours, torchs, atol=0.02, rtol=0.02)
    assert len(calls) == 3


def _case(*, dtype=torch.bfloat16, gradient=False, later=0, **options):
    query, key, value = (x.to(dtype) for x in inputs(groups=4, tokens=160))
    return (query[:, :, later:].requires_grad_(gradient), key, value), options


NOTHING = window(160, 30)
NOTHING[0, 0, 50] = False
FOREIGN = {
    "float32": _case(dtype=torch.float32, is_causal=True),
    "gradient": _case(gradient=True, is_causal=True),
    "not causal": _case(),
    "fewer queries": _case(later=100, attn_mask=window(160, 30)[:, :, 100:]),
    "added mask": _case(attn_mask=torch.randn(1, 1, 160, 160).bfloat16()),
    "mask of each head": _case(attn_mask=window(160, 30).expand(1, 4, 160, 160)),
    "a query that sees nothing": _case(attn_mask=NOTHING),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_all_else_is_torchs(case, calls):
    tensors, options = FOREIGN[case]
    expected = functional.scaled_dot_product_attention(*tensors, **options)
    with FasterAttention():
        found = functional.scaled_dot_product_attention(*tensors, **options)
    assert torch.equal(found, expected)
    assert not calls


@pytest.mark.parametrize(
    ("capabilities", "ours"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": True, "amx_bf16": True}, False),
        ({"avx512_bf16": False, "amx_bf16": False}, False),
        ({"sve": True}, False),
    ],
)
def test_only_where_it_is_faster(capabilities, ours, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    module.is_faster.cache_clear()
    try:
        assert module.is_faster() is ours
    finally:
        module.is_faster.cache_clear()


_SHAPE = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**_SHAPE),
    "qwen2": Qwen2Config(**_SHAPE, use_sliding_window=True, sliding_window=20, max_window_layers=1),
    "gemma3": Gemma3TextConfig(**_SHAPE, head_dim=16, sliding_window=20),
    "stablelm": StableLmConfig(**_SHAPE),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_of_models(name, calls, monkeypatch, tmp_path):
    """As close to float32 as the model of transformers in bfloat16 is."""
    torch.manual_seed(0)
    Auto.from_config(CONFIGS[name], dtype=torch.bfloat16).save_pretrained(tmp_path)
    ids = torch.randint(0, 96, (2, 150))
    exact, stock = (
        Auto.from_pretrained(tmp_path, dtype=dtype)(ids, output_hidden_states=True).hidden_states
        for dtype in (torch.float32, torch.bfloat16)
    )
    monkeypatch.setattr("prunecomp.calibration.view.is_faster", lambda: True)
    ours = PlannedModel(Checkpoint(tmp_path), device=torch.device("cpu"), dtype=torch.bfloat16)
    calls.clear()
    with torch.no_grad():
        hidden = ours.embed(ids)
        for layer in (0, 1):  # behind the last one, transformers has normed the stream already
            hidden = ours.run_layer(layer, hidden)
            right = exact[layer + 1].detach().double()
            assert error(hidden, right) < 1.2 * error(stock[layer + 1].detach(), right)
    assert len(calls) == 2

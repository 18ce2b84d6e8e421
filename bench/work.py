"""The work that a model does, counted from its config: floating point operations and bytes read.

Counted is what cannot be avoided: two operations per weight that a token meets, the scores and
sums of attention, one read of every weight per decode step, one read of the cache. What is added
to it by an engine is what the ceiling shows.

Letters: t tokens in front of a token, b requests in a decode step.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.schema import Parts
from prunecomp.families import family_for

_EXPERT = re.compile(r"(^|\.)experts\.")
_PER_TOKEN = ("num_experts_per_tok", "moe_k", "moe_topk", "num_experts_per_token")
_EXPERTS = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts")


@dataclass(frozen=True)
class Counts:
    """What a model consists of.

    Attributes:
        dense: weights in the layers' matrices that every token meets.
        expert: weights in the matrices of all routed experts.
        experts: routed experts per layer; 1 where there are none.
        per_token: of them, how many a token meets.
        head: weights of the output projection, tied or not.
        embedding_row: weights that a token looks up.
        parameters: all, each once.
        itemsize: bytes per weight, of the config's dtype; quantised files are smaller.
        heads: per layer with attention: ``(query heads x (key + value size), window or None)``.
        kv_bytes_per_token: of the whole model; None where it keeps another kind of state.
    """

    dense: int
    expert: int
    experts: int
    per_token: int
    head: int
    embedding_row: int
    parameters: int
    itemsize: int
    heads: tuple[tuple[int, int | None], ...]
    kv_bytes_per_token: int | None
    kv_note: str | None = None

    @property
    def bytes(self) -> int:
        return self.parameters * self.itemsize

    def prefill_flops_per_token(self, t: int) -> Parts:
        """Of a prompt of `t` tokens; the head is asked for the last one only."""
        active = self.dense + self.expert * self.per_token // self.experts
        attention = sum(2 * width * _mean_context(t, window) for width, window in self.heads)
        return Parts(2.0 * active + attention, 0.0, 2.0 * self.head / t)

    def decode_bytes_per_token(self, t: float, b: int) -> Parts:
        """Of a step with `b` requests, `t` tokens behind each.

        A step reads an expert if any of its tokens meets it; routing is taken as uniform.
        """
        met = 1 - (1 - self.per_token / self.experts) ** b
        layers = (self.dense + self.expert * met) * self.itemsize / b
        share = sum(min(t, window or t) for _, window in self.heads) / max(1, len(self.heads))
        return Parts(
            layers=layers,
            embedding=float(self.embedding_row * self.itemsize),
            head=self.head * self.itemsize / b,
            kv_cache=float((self.kv_bytes_per_token or 0) * share),
        )


def _mean_context(t: int, window: int | None) -> float:
    """How many tokens a token of a prompt looks at, on average: itself and those before it."""
    if window is None or window >= t:
        return (t + 1) / 2
    return (window * (window + 1) / 2 + (t - window) * window) / t


def total(parts: Parts) -> float:
    """The sum of all parts."""
    return parts.layers + parts.embedding + parts.head + parts.kv_cache


def _first(config: Any, keys: Sequence[str], default: int) -> int:
    for key in keys:
        value = getattr(config, key, None)
        if isinstance(value, list):
            value = max(value, default=None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return default


def _windows(config: Any, depth: int) -> list[int | None] | None:
    """Per layer its window, None for the whole context; no entry for a layer without attention."""
    types = getattr(config, "layer_types", None) or ["full_attention"] * depth
    window, found = getattr(config, "sliding_window", None), []
    everywhere = getattr(config, "layer_types", None) is None and window
    for kind in types[:depth]:
        if kind == "full_attention" and not everywhere:
            found.append(None)
        elif kind in ("full_attention", "sliding_attention"):
            found.append(window)
        elif kind == "chunked_attention":
            found.append(getattr(config, "attention_chunk_size", None))
    return found


def _attention(config: Any, depth: int, itemsize: int) -> tuple[tuple, int | None, str | None]:
    """`Counts.heads`, `Counts.kv_bytes_per_token` and a note."""
    heads = _first(config, ("num_attention_heads", "n_head"), 0)
    if not heads:
        return (), None, "keeps a state of fixed size instead of a KV cache"
    windows = _windows(config, depth)
    size = _first(config, ("head_dim",), config.hidden_size // heads)
    keys = values = size
    kv_heads = _first(config, ("num_key_value_heads",), heads)
    if getattr(config, "multi_query", False):
        kv_heads = 1
    per_layer = kv_heads * 2 * size
    if rank := _first(config, ("kv_lora_rank",), 0):  # latent attention
        rope = _first(config, ("qk_rope_head_dim",), 0)
        keys = rope + _first(config, ("qk_nope_head_dim",), 0)
        values = _first(config, ("v_head_dim",), size)
        per_layer = rank + rope
    note = None
    if any(w is not None for w in windows):
        note = "some layers keep a window only; counted as if they kept all tokens"
    pairs = tuple((heads * (keys + values), window) for window in windows)
    return pairs, per_layer * len(windows) * itemsize, note


@functools.lru_cache(maxsize=32)
def counts_of(path: Path) -> Counts:
    """Counts the model of a directory, which may be a config only.

    Raises:
        UnsupportedModelError: its type is not one that is known here.
    """
    import torch

    from bench.models import CONFIG_FILE
    from prunecomp.checkpoint.index import read_config
    from prunecomp.verify import model_of

    model = model_of(path)
    family, config = family_for(read_config(path / CONFIG_FILE), where=str(path)), model.config
    dtype = getattr(config, "dtype", None) or torch.float32
    itemsize = (getattr(torch, dtype) if isinstance(dtype, str) else dtype).itemsize
    layers, dense, expert = model.get_submodule(family.layers), 0, 0
    for name, parameter in layers.named_parameters():
        if parameter.ndim < 2:
            continue
        if _EXPERT.search(name):
            expert += parameter.numel()
        else:
            dense += parameter.numel()
    head, rows = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    pairs, kv, note = _attention(config, len(layers), itemsize)
    return Counts(
        dense=dense, expert=expert, experts=_first(config, _EXPERTS, 1) if expert else 1,
        per_token=_first(config, _PER_TOKEN, 1) if expert else 1, head=head.numel(),
        embedding_row=rows.shape[1], parameters=sum(p.numel() for p in model.parameters()),
        itemsize=itemsize, heads=pairs, kv_bytes_per_token=kv, kv_note=note,
    )  # fmt: skip

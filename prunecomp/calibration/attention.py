"""Attention in bfloat16 on processors that multiply bfloat16 well, but have no matrix unit for it.

There, torch's kernel multiplies in float32, by a library that may be slow on the processor. Here
the products are oneDNN's, for a block of queries at a time with the keys that it may see. As in
torch's kernel, scores and softmax are in float32, and their product with the values has bfloat16
factors and a float32 sum.

Letters: n samples, t tokens, d channels of a head.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

#: Queries of a block: a quarter of all, so that oneDNN sees few shapes, within these bounds.
BLOCK = 128, 512
#: Scores that exist at once, if one head and one block are not more.
SCORES = 1 << 19
_WIDE = {"dtype": torch.float32, "memory_format": torch.contiguous_format}


@functools.cache
def is_faster() -> bool:
    """Whether this processor is one of those; torch's own kernel uses a matrix unit."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16")) and not capabilities.get("amx_bf16")


def block_size(tokens: int) -> int:
    """Queries that are taken at once."""
    return min(max(BLOCK[0], -(-tokens // 4)), BLOCK[1])


class Scratch:
    """Memory that is used again, as what is new is slow to touch."""

    def __init__(self) -> None:
        self._held: dict[torch.dtype, torch.Tensor] = {}

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor with any values, until the next of this dtype is taken."""
        size = math.prod(shape)
        if dtype not in self._held or self._held[dtype].numel() < size:
            self._held[dtype] = torch.empty(size, dtype=dtype)
        return self._held[dtype][:size].view(shape)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
    scratch: Scratch | None = None,
) -> torch.Tensor:
    """``softmax(scale query key^T) value``, each query over the keys that it may see.

    Args:
        query: [n, heads, t, d] bfloat16.
        key: [n, groups, t, d] bfloat16; each group serves as many heads.
        value: [n, groups, t, v] bfloat16.
        mask: [n or 1, 1, t, t] bool, with a key for every query; None: all up to its own.
        scale: None for 1/sqrt(d).

    Returns:
        [n, heads, t, v] bfloat16, contiguous as [n, t, heads, v].
    """
    samples, heads, tokens, width = query.shape
    groups, block = key.shape[1], block_size(tokens)
    scale = width**-0.5 if scale is None else scale
    scratch = scratch or Scratch()
    out = value.new_empty(samples, tokens, heads, value.shape[-1])
    # [n, groups, heads of a group, t, channels]
    split_out = out.unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4)
    query = query.unflatten(1, (groups, -1))
    keys = key.transpose(2, 3).to(**_WIDE)
    values = value.contiguous()
    with _by_onednn():
        for start in range(0, tokens, block):
            rows = slice(start, min(start + block, tokens))
            seen, bias = _visible(mask, rows)
            sizes = *query.shape[:3], (rows.stop - start) * (seen.stop - seen.start)
            for n, g, h in _pieces(sizes):
                part = query[n, g, h, rows].to(**_WIDE)
                shape = *part.shape[:4], -1
                left, right = part.flatten(2, 3).flatten(0, 1), keys[n, g, :, seen].flatten(0, 1)
                scores = scratch.take((*left.shape[:2], right.shape[-1]), torch.float32)
                torch.baddbmm(scores, left, right, beta=0, alpha=scale, out=scores)
                scores = scores.view(shape)
                scores[..., -bias.shape[-1] :].add_(bias[n if len(bias) > 1 else slice(None)])
                torch.softmax(scores, -1, out=scores)
                weights = scratch.take(scores.shape, value.dtype).copy_(scores).flatten(2, 3)
                split_out[n, g, h, rows] = (weights @ values[n, g, seen]).view(shape)
    return out.transpose(1, 2)


@contextlib.contextmanager
def _by_onednn() -> Iterator[None]:
    """Float32 products are oneDNN's; it may round factors to bfloat16, which ours are already."""
    settings = torch.backends.mkldnn.matmul
    before, settings.fp32_precision = settings.fp32_precision, "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


def _visible(mask: torch.Tensor | None, rows: slice) -> tuple[slice, torch.Tensor]:
    """The keys that these queries may see, and what is added to the scores of the last of them.

    The latter is [n or 1, 1, 1, queries, some keys].
    """
    if mask is None:
        size = rows.stop - rows.start
        return slice(0, rows.stop), torch.full((1, 1, 1, size, size), -math.inf).triu_(1)
    part = mask[:, :, rows]
    (seen,) = part.flatten(0, 2).any(dim=0).nonzero(as_tuple=True)
    keys = slice(int(seen[0]), int(seen[-1]) + 1)
    part = part[..., keys].unsqueeze(1)
    return keys, torch.zeros(part.shape).masked_fill_(~part, -math.inf)


def _pieces(sizes: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Slices of all dimensions but the last, with at most `SCORES` elements, or one each."""
    room, ranges = max(1, SCORES // sizes[-1]), []
    for size in reversed(sizes[:-1]):
        step = min(size, room)
        ranges.insert(0, [slice(at, min(at + step, size)) for at in range(0, size, step)])
        room = max(1, room // step)
    return itertools.product(*ranges)


def _fits(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> bool:
    """Whether `attention` is written for these; it has no backward pass."""
    tensors = query, key, value
    return (
        all(x.dtype is torch.bfloat16 and x.device.type == "cpu" and x.ndim == 4 for x in tensors)
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
        and query.shape[2] == key.shape[2] >= BLOCK[0] // 2
        and (mask is None or _is_simple(mask, query))
    )


def _is_simple(mask: torch.Tensor, query: torch.Tensor) -> bool:
    samples, _, tokens, _ = query.shape
    return (
        mask.dtype is torch.bool
        and mask.ndim == 4
        and mask.shape[0] in {1, samples}
        and mask.shape[1:] == (1, tokens, tokens)
        and bool(mask.any(dim=-1).all())
    )


class FasterAttention(TorchFunctionMode):
    """In this block, what calls torch's attention gets `attention` where that is written for it."""

    def __init__(self) -> None:
        super().__init__()
        self._scratch = Scratch()

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is scaled_dot_product_attention:
            func = self._attention
        return func(*args, **(kwargs or {}))

    def _attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        """As torch's function of that name."""
        plain = dropout_p == 0.0 and is_causal == (attn_mask is None)
        if plain and _fits(query, key, value, attn_mask):
            return attention(query, key, value, mask=attn_mask, scale=scale, scratch=self._scratch)
        return scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )

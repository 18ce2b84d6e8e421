"""The five metrics, each as a naive loop over full passes of a HF model; lowest goes first.

`counted` [n, t] bool says which tokens enter; None for all of them.
"""

from __future__ import annotations

import copy

import torch

from tests.oracles.stream import (
    boundaries,
    layers_of,
    loss,
    mean_cosine_over_channels,
    mean_cosine_over_tokens,
)
from tests.oracles.surgery import cut


def bi(model, ids: torch.Tensor, counted=None) -> list[float]:
    """1 - mean_t cos(h_l, h_{l+1})."""
    h = boundaries(model, ids)
    return [1 - mean_cosine_over_tokens(h[p], h[p + 1], counted) for p in range(len(h) - 1)]


def cl(model, ids: torch.Tensor, length: int, counted=None) -> list[float]:
    """1 - mean_t cos(h_l, h_{l+N}), one value per first layer of a block of N."""
    h = boundaries(model, ids)
    pairs = zip(h, h[length:], strict=False)
    return [1 - mean_cosine_over_tokens(x, y, counted) for x, y in pairs]


def cl_sequence(model, ids: torch.Tensor, length: int, counted=None) -> list[float]:
    """The same with the cosine along the sequence."""
    h = boundaries(model, ids)
    pairs = zip(h, h[length:], strict=False)
    return [1 - mean_cosine_over_channels(x, y, counted) for x, y in pairs]


def ppl(model, ids: torch.Tensor, counted=None) -> list[float]:
    """Loss of the model that lacks the layer."""
    return [loss(cut(model, [p]), ids, counted) for p in range(len(layers_of(model)))]


def taylor(model, ids: torch.Tensor, counted=None) -> list[float]:
    """Sum |w * dLoss/dw|, gradients accumulated sample by sample; transformers' own loss."""
    model = copy.deepcopy(model).requires_grad_(True)
    model.zero_grad()
    labels = ids if counted is None else ids.masked_fill(~counted, -100)
    for sample, label in zip(ids, labels, strict=True):
        model(input_ids=sample[None], labels=label[None], use_cache=False).loss.backward()
    return [
        sum(
            float((weight.detach() * weight.grad).abs().double().sum())
            for name, weight in layer.named_parameters()
            if not name.endswith("bias")
        )
        for layer in layers_of(model)
    ]


def mag(model) -> list[float]:
    """Sum |w|."""
    return [
        sum(
            float(weight.detach().abs().double().sum())
            for name, weight in layer.named_parameters()
            if not name.endswith("bias")
        )
        for layer in layers_of(model)
    ]


def scores(name: str, model, ids: torch.Tensor, length: int, counted=None) -> list[float]:
    """The metric called `name`; `length` is that of a block where the metric takes one."""
    if name == "mag":
        return mag(model)
    if name in {"cl", "cl_sequence"}:
        return {"cl": cl, "cl_sequence": cl_sequence}[name](model, ids, length, counted)
    return {"bi": bi, "ppl": ppl, "taylor": taylor}[name](model, ids, counted)

"""The five metrics, each as a naive loop over full passes of a HF model; lowest goes first."""

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


def bi(model, ids: torch.Tensor) -> list[float]:
    """1 - mean_t cos(h_l, h_{l+1})."""
    h = boundaries(model, ids)
    return [1 - mean_cosine_over_tokens(h[p], h[p + 1]) for p in range(len(h) - 1)]


def cl(model, ids: torch.Tensor, length: int) -> list[float]:
    """1 - mean_t cos(h_l, h_{l+N}), one value per first layer of a block of N."""
    h = boundaries(model, ids)
    return [1 - mean_cosine_over_tokens(h[p], h[p + length]) for p in range(len(h) - length)]


def cl_sequence(model, ids: torch.Tensor, length: int) -> list[float]:
    """The same with the cosine along the sequence."""
    h = boundaries(model, ids)
    return [1 - mean_cosine_over_channels(h[p], h[p + length]) for p in range(len(h) - length)]


def ppl(model, ids: torch.Tensor) -> list[float]:
    """Loss of the model that lacks the layer."""
    return [loss(cut(model, [p]), ids) for p in range(len(layers_of(model)))]


def taylor(model, ids: torch.Tensor) -> list[float]:
    """Sum |w * dLoss/dw|, gradients accumulated sample by sample; transformers' own loss."""
    model = copy.deepcopy(model).requires_grad_(True)
    model.zero_grad()
    for sample in ids:
        model(input_ids=sample[None], labels=sample[None], use_cache=False).loss.backward()
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


def scores(name: str, model, ids: torch.Tensor, length: int) -> list[float]:
    """The metric called `name`; `length` is that of a block where the metric takes one."""
    if name == "mag":
        return mag(model)
    if name in {"cl", "cl_sequence"}:
        return {"cl": cl, "cl_sequence": cl_sequence}[name](model, ids, length)
    return {"bi": bi, "ppl": ppl, "taylor": taylor}[name](model, ids)

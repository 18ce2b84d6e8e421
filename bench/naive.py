"""The published procedure, step by step, as the thing to be faster than.

Written from the formulas of the papers for models of Llama's layout, with stock transformers and
none of this project's code: every round scores with full forward passes over the calibration set,
one sample at a time, estimates the factor with another full pass, removes the layer, and multiplies
what writes to the stream before the cut (Prune&Comp, arXiv 2507.18212, section 3.3). `taylor` loads
nothing less than fp32 and keeps the gradients of all weights (Shortened LLaMA, arXiv 2402.02834).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cosine_similarity, cross_entropy

#: The first and last layers that Shortened LLaMA's metrics spare.
SPARED = {"mag": (4, 2), "taylor": (4, 2)}


@dataclass(frozen=True)
class Cut:
    """One round: the layers that go, by their index in the source, and the factor."""

    removed: tuple[int, ...]
    factor: float


@torch.no_grad()
def _hidden_states(model, ids: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Of each sample [1, t], the input of every layer and the output of the last, un-normed."""
    for sample in ids:
        caught: list[torch.Tensor] = []
        handle = model.model.norm.register_forward_pre_hook(
            lambda _, arguments, caught=caught: caught.append(arguments[0])
        )
        with handle:
            out = model(input_ids=sample[None], output_hidden_states=True, use_cache=False)
        yield [*out.hidden_states[:-1], caught[0]]


def _cosines(model, ids: torch.Tensor, lag: int, lead: int) -> list[float]:
    """1 - mean cosine between the input of a layer and the stream `lag` layers later."""
    depth = len(model.model.layers)
    totals = [0.0] * (depth - lag + 1)
    for hidden in _hidden_states(model, ids):
        for p in range(len(totals)):
            cosine = cosine_similarity(hidden[p].float(), hidden[p + lag].float(), dim=-1)
            totals[p] += float(cosine[:, lead:].double().sum())
    return [1 - total / ids[:, lead:].numel() for total in totals]


@torch.no_grad()
def _loss(model, ids: torch.Tensor, lead: int) -> float:
    total, first = 0.0, max(lead, 1)
    for sample in ids:
        logits = model(input_ids=sample[None], use_cache=False).logits[0, first - 1 : -1].float()
        total += float(cross_entropy(logits, sample[first:], reduction="sum"))
    return total / (ids.shape[0] * (ids.shape[1] - first))


def _without(model, position: int) -> torch.nn.ModuleList:
    """All layers but one."""
    layers = list(model.model.layers)
    return torch.nn.ModuleList(layers[:position] + layers[position + 1 :])


def _losses_without(model, ids: torch.Tensor, lead: int) -> list[float]:
    """The loss of the model that lacks the layer, for each layer."""
    everything, found = model.model.layers, []
    for position in range(len(everything)):
        model.model.layers = _without(model, position)
        found.append(_loss(model, ids, lead))
        model.model.layers = everything
    return found


def _weights(layer) -> list[torch.Tensor]:
    return [weight for name, weight in layer.named_parameters() if not name.endswith("bias")]


def _taylor(model, ids: torch.Tensor, lead: int) -> list[float]:
    """Sum of |w dLoss/dw|, gradients of all weights summed over the samples."""
    model.requires_grad_(True)
    model.zero_grad()
    for sample in ids:
        labels = sample[None].clone()
        labels[:, :lead] = -100
        model(input_ids=sample[None], labels=labels, use_cache=False).loss.backward()
    scores = [
        sum(float((w.detach() * w.grad).abs().sum(dtype=torch.float64)) for w in _weights(layer))
        for layer in model.model.layers
    ]
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    return scores


def _magnitudes(model) -> list[float]:
    return [
        sum(float(w.abs().sum(dtype=torch.float64)) for w in _weights(layer))
        for layer in model.model.layers
    ]


def _factor(model, ids: torch.Tensor, first: int, last: int, lead: int) -> float:
    """Mean over channels of the mean over samples of mean_t |h_last| / mean_t |h_first|."""
    ratios = []
    for hidden in _hidden_states(model, ids):
        after, before = (hidden[p][:, lead:].float().abs().mean(dim=(0, 1)) for p in (last, first))
        ratios.append(after / before)
    return float(torch.stack(ratios).double().mean())


@torch.no_grad()
def _remove(model, first: int, last: int, factor: float) -> None:
    """Takes layers out and multiplies what writes to the stream in front of them."""
    layers = list(model.model.layers)
    model.model.embed_tokens.weight.mul_(factor)
    for layer in layers[:first]:
        for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
            writer.weight.mul_(factor)
            if writer.bias is not None:
                writer.bias.mul_(factor)
    model.model.layers = torch.nn.ModuleList(layers[:first] + layers[last:])


def _scores(model, ids: torch.Tensor, metric: str, width: int, lead: int) -> Sequence[float]:
    if metric in {"bi", "cl"}:
        return _cosines(model, ids, width, lead)
    if metric == "ppl":
        return _losses_without(model, ids, lead)
    return _taylor(model, ids, lead) if metric == "taylor" else _magnitudes(model)


def prune(model, ids: torch.Tensor, metric: str, count: int, *, lead: int = 0) -> list[Cut]:
    """Removes `count` layers of `model`, in place, by ``bi``, ``cl``, ``ppl``, ``taylor``, ``mag``.

    Args:
        model: of transformers, untied, in the precision in which all is to be computed.
        ids: [samples, tokens], both for scores and for factors.
        lead: tokens at the start of every sample that enter no mean and no loss; 0 as published.
    """
    depth = len(model.model.layers)
    first, last = SPARED.get(metric, (0, 0))
    live, cuts = list(range(depth)), []
    width = count if metric == "cl" else 1
    for _ in range(count // width):
        scores = _scores(model, ids, metric, width, lead)
        candidates = [
            p for p, layer in enumerate(live[: len(scores)]) if first <= layer < depth - last
        ]
        best = min(candidates, key=lambda p: scores[p])
        factor = _factor(model, ids, best, best + width, lead)
        _remove(model, best, best + width, factor)
        cuts.append(Cut(tuple(live[best : best + width]), factor))
        del live[best : best + width]
    return cuts

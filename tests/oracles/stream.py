"""The residual stream as transformers computes it, and its statistics as naive loops.

`counted` [n, t] bool says which tokens enter; None for all of them.

Letters: n samples, t tokens, d channels. Boundary p enters the p-th layer; the last boundary
leaves the last layer, before the final norm.
"""

from __future__ import annotations

import torch


def layers_of(model) -> torch.nn.ModuleList:
    """The decoder layers of any of the four families."""
    return model.model.layers


@torch.no_grad()
def boundaries(model, ids: torch.Tensor) -> list[torch.Tensor]:
    """All boundaries [n, t, d], from transformers' own hidden states.

    transformers replaces the last hidden state by the normed one; the un-normed one is caught
    on its way into the final norm.
    """
    caught = []
    handle = model.model.norm.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    try:
        out = model(input_ids=ids, output_hidden_states=True, use_cache=False)
    finally:
        handle.remove()
    hidden = list(out.hidden_states)
    assert len(hidden) == len(layers_of(model)) + 1
    assert len(caught) == 1
    return [*hidden[:-1], caught[0]]


def cosine(x: torch.Tensor, y: torch.Tensor) -> float:
    """Cosine of two float64 vectors, from the definition."""
    return float((x * y).sum() / ((x * x).sum().sqrt() * (y * y).sum().sqrt()))


def mean_cosine_over_tokens(before: torch.Tensor, after: torch.Tensor, counted=None) -> float:
    """One cosine per token, over channels; averaged over all tokens of all samples."""
    before, after = before.double(), after.double()
    values = [
        cosine(before[s, t], after[s, t])
        for s in range(before.shape[0])
        for t in range(before.shape[1])
        if counted is None or counted[s, t]
    ]
    return sum(values) / len(values)


def mean_cosine_over_channels(before: torch.Tensor, after: torch.Tensor, counted=None) -> float:
    """One cosine per sample and channel, along the sequence; averaged over both."""
    before, after = before.double(), after.double()
    entering = torch.ones(before.shape[:2], dtype=torch.bool) if counted is None else counted
    values = [
        cosine(before[s, entering[s], c], after[s, entering[s], c])
        for s in range(before.shape[0])
        for c in range(before.shape[2])
    ]
    return sum(values) / len(values)


def magnitude_factor(before: torch.Tensor, after: torch.Tensor, counted=None) -> float:
    """mean_t |h_j| / mean_t |h_i| per sample and channel; averaged over samples, then channels."""
    n, _, d = before.shape
    before, after = before.double().abs(), after.double().abs()
    entering = torch.ones(before.shape[:2], dtype=torch.bool) if counted is None else counted
    per_channel = []
    for c in range(d):
        ratios = [
            float(after[s, entering[s], c].mean() / before[s, entering[s], c].mean())
            for s in range(n)
        ]
        per_channel.append(sum(ratios) / n)
    return sum(per_channel) / d


@torch.no_grad()
def loss(model, ids: torch.Tensor, counted=None) -> float:
    """Mean next-token negative log-likelihood in nats over all predicted tokens that count."""
    logits = model(input_ids=ids, use_cache=False).logits.float()
    log_probabilities = torch.log_softmax(logits[:, :-1], dim=-1)
    picked = log_probabilities.gather(-1, ids[:, 1:, None])
    entering = ... if counted is None else counted[:, 1:]
    return float(-picked[..., 0].double()[entering].mean())

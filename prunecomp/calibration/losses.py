"""Next-token losses of a stream that leaves the last layer, and their gradient.

Logits exist for some tokens at a time, and in float32 for a few of these, so that a vocabulary of
128 thousand does not decide how much memory is needed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn.functional import cross_entropy

from prunecomp.calibration.view import PlannedModel

#: Logits that exist at once as the model computes them, by type of device.
LOGIT_ELEMENTS = {"cpu": 1 << 24, "cuda": 1 << 26}
#: The head's weight is read once for each piece, so a piece has at least so many tokens.
FEWEST_TOKENS = 256
#: Of these, as many are in float32 at once; on a CPU, what its cache holds.
WIDENED_ELEMENTS = {"cpu": 1 << 17, "cuda": 1 << 23}


def positions_at_once(vocabulary: int, samples: int, device: str) -> int:
    """Of `samples` samples, how many positions have logits at once on that type of device."""
    return max(1, max(LOGIT_ELEMENTS[device] // vocabulary, FEWEST_TOKENS) // samples)


def _pieces(model: PlannedModel, ids: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Positions that are taken at once, and the token that follows each of them."""
    step = positions_at_once(model.vocabulary, len(ids), ids.device.type)
    last = ids.shape[1] - 1
    for start in range(0, last, step):
        stop = min(start + step, last)
        yield slice(start, stop), ids[:, start + 1 : stop + 1]


@torch.no_grad()
def sample_losses(model: PlannedModel, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Sum over tokens of the cross entropy in nats: [n, t, d] and ids [n, t] -> [n] float64."""
    total = torch.zeros(len(ids), dtype=torch.float64, device=hidden.device)
    for where, target in _pieces(model, ids):
        total += _losses(model, hidden[:, where], ids[:, where], target).double().sum(dim=1)
    return total


# The logits of a piece are local to a function, so that those of the next come in their place.
def _losses(
    model: PlannedModel, hidden: torch.Tensor, ids: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    logits = model.logits(hidden, ids)
    rows = max(1, WIDENED_ELEMENTS[hidden.device.type] // logits.shape[-1])
    flat = zip(logits.flatten(0, 1).split(rows), target.flatten().split(rows), strict=True)
    losses = [cross_entropy(x.float(), y, reduction="none") for x, y in flat]
    return torch.cat(losses).view_as(target)


def loss_gradient(model: PlannedModel, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Gradient of the sum over samples of the mean loss, with respect to `hidden` [n, t, d]."""
    out = torch.zeros_like(hidden)
    for where, target in _pieces(model, ids):
        out[:, where] = _gradient(
            model, hidden[:, where], ids[:, where], target, terms=ids.shape[1] - 1
        )
    return out


def _gradient(
    model: PlannedModel,
    hidden: torch.Tensor,
    ids: torch.Tensor,
    target: torch.Tensor,
    *,
    terms: int,
) -> torch.Tensor:
    piece = hidden.detach().requires_grad_()
    with torch.enable_grad():
        logits = model.logits(piece, ids)
        loss = cross_entropy(logits.float().flatten(0, 1), target.flatten(), reduction="sum")
    return torch.autograd.grad(loss / terms, piece)[0]

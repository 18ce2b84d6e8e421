"""Next-token losses of a stream that leaves the last layer, and their gradient.

Logits exist for some tokens at a time, and in float32 for a few of these, so that a vocabulary of
128 thousand does not decide how much memory is needed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn.functional import cross_entropy

from prunecomp.calibration.counted import EVERY, Counted
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


def _pieces(
    model: PlannedModel, ids: torch.Tensor, counted: Counted
) -> Iterator[tuple[slice, torch.Tensor, Counted]]:
    """Positions that are taken at once, the token that follows each, and which of these count."""
    step = positions_at_once(model.vocabulary, len(ids), ids.device.type)
    last = ids.shape[1] - 1
    for start in range(counted.first_target() - 1, last, step):
        stop = min(start + step, last)
        following = slice(start + 1, stop + 1)
        yield slice(start, stop), ids[:, following], counted.targets(following)


@torch.no_grad()
def sample_losses(
    model: PlannedModel, hidden: torch.Tensor, ids: torch.Tensor, counted: Counted = EVERY
) -> torch.Tensor:
    """Sum of the cross entropy in nats over the tokens that are predicted, which all count.

    Stream [n, t, d] and ids [n, t] -> [n] float64.
    """
    total = torch.zeros(len(ids), dtype=torch.float64, device=hidden.device)
    for where, target, of_these in _pieces(model, ids, counted):
        losses = _losses(model, hidden[:, where], ids[:, where], target)
        total += of_these.blank(losses).double().sum(dim=1)
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


def loss_gradient(
    model: PlannedModel, hidden: torch.Tensor, ids: torch.Tensor, counted: Counted = EVERY
) -> torch.Tensor:
    """Gradient of the sum over samples of the mean loss, with respect to `hidden` [n, t, d].

    The mean is over the tokens of the sample that are predicted, which all count.
    """
    out, terms = torch.zeros_like(hidden), counted.predicted(ids)[:, None]
    for where, target, of_these in _pieces(model, ids, counted):
        weights = of_these.blank((1.0 / terms).expand_as(target).clone())
        out[:, where] = _gradient(model, hidden[:, where], ids[:, where], target, weights)
    return out


def _gradient(
    model: PlannedModel,
    hidden: torch.Tensor,
    ids: torch.Tensor,
    target: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Of the weighted sum of the losses at these positions."""
    piece = hidden.detach().requires_grad_()
    with torch.enable_grad():
        logits = model.logits(piece, ids)
        losses = cross_entropy(logits.float().flatten(0, 1), target.flatten(), reduction="none")
    return torch.autograd.grad(losses, piece, weights.flatten())[0]

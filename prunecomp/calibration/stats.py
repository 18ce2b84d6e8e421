"""Statistics of the residual stream, from which metrics and compensators are computed.

Letters: n samples, t tokens, d channels. Products and sums of one token or channel are taken in
fp32, sums of cosines in fp64. All is computed per sample, so that it does not matter which samples
share a batch or a process, and stays on the device of the stream: nobody waits for it here. Tokens
that `Counted` leaves out enter nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from prunecomp.calibration.counted import EVERY, Counted
from prunecomp.errors import NumericError

#: Elements that are widened to fp32 at once on a CPU, so that they stay in its cache.
_CACHED_ELEMENTS = 1 << 17
#: Of a stream or a loss; that the weights are finite was seen before, when they were hashed.
NOT_FINITE = (
    "the hidden states or losses are not finite, though all weights are: with --dtype float16 use "
    "bfloat16 or float32; otherwise weights are damaged, or far too large"
)
_SMALLEST_NORM = 1e-8  # as torch's cosine_similarity has it


def _pieces(hidden: torch.Tensor) -> Iterator[tuple[slice, slice]]:
    """Samples and tokens of [n, t, d] that are taken at once."""
    samples, tokens, channels = hidden.shape
    if hidden.device.type != "cpu":
        yield slice(0, samples), slice(0, tokens)
        return
    step = max(1, _CACHED_ELEMENTS // channels)
    for sample in range(samples):
        for start in range(0, tokens, step):
            yield slice(sample, sample + 1), slice(start, start + step)


def magnitudes(hidden: torch.Tensor, counted: Counted = EVERY) -> torch.Tensor:
    """Mean over the counted tokens of |h|: [n, t, d] -> [n, d] float32."""
    numbers = counted.numbers(hidden)[:, None]
    hidden = counted.trim(hidden)
    samples, _, channels = hidden.shape
    total = torch.zeros(samples, channels, dtype=torch.float32, device=hidden.device)
    for piece in _pieces(hidden):
        sizes = hidden[piece].float().abs()  # vector_norm is far slower
        total[piece[0]] += counted.blank(sizes, piece).sum(dim=1)
    return total / numbers


def token_norms(hidden: torch.Tensor, counted: Counted = EVERY) -> torch.Tensor:
    """Euclidean norm of each token: [n, t, d] -> [n, t - lead] float32; 0 where none counts."""
    hidden = counted.trim(hidden)
    norms = torch.empty(hidden.shape[:2], dtype=torch.float32, device=hidden.device)
    for piece in _pieces(hidden):
        norms[piece] = torch.linalg.vector_norm(hidden[piece], dim=2, dtype=torch.float32)
    return counted.blank(norms)


def cosine_sums(
    before: torch.Tensor,
    after: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor] | None = None,
    *,
    axis: str = "channels",
    counted: Counted = EVERY,
) -> torch.Tensor:
    """Sum of cosines between two boundaries of the same batch, per sample: [n] float64.

    Args:
        before: [n, t, d] stream at the first boundary.
        after: [n, t, d] stream at the second.
        norms: `token_norms` of both, where they are known.
        axis: ``channels``: one cosine per token, over d. ``sequence``: one per channel, over t,
            which is what the research code of Prune&Comp and LinearPatch computes for CL, by
            leaving torch's default dim in place.
        counted: the tokens that a cosine is taken of, or over.
    """
    if norms is None and axis == "channels":
        norms = token_norms(before, counted), token_norms(after, counted)
    if axis == "sequence":
        return _along_tokens(counted.trim(before), counted.trim(after), counted)
    assert axis == "channels"
    assert norms is not None
    return cosines(before, after, norms, counted).double().sum(dim=1)


def cosines(
    before: torch.Tensor,
    after: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor],
    counted: Counted = EVERY,
) -> torch.Tensor:
    """Cosine of each token between two boundaries: [n, t - lead] float32; 0 where none counts.

    Args:
        before: [n, t, d] stream at the first boundary.
        after: [n, t, d] stream at the second.
        norms: `token_norms` of both.
    """
    before, after = counted.trim(before), counted.trim(after)
    first, second = norms
    lengths = first.clamp(min=_SMALLEST_NORM) * second.clamp(min=_SMALLEST_NORM)
    products = torch.empty_like(lengths)
    for piece in _pieces(before):
        products[piece] = torch.linalg.vecdot(before[piece].float(), after[piece].float(), dim=2)
    return counted.blank(products / lengths)


def _along_tokens(before: torch.Tensor, after: torch.Tensor, counted: Counted) -> torch.Tensor:
    """Per sample, the sum over channels of cosines over tokens: [n] float64."""
    found = []
    for sample, (x, y) in enumerate(zip(before, after, strict=True)):
        piece = slice(sample, sample + 1), slice(None)
        x, y = (counted.blank(h[None].float(), piece)[0] for h in (x, y))
        found.append(torch.nn.functional.cosine_similarity(x, y, dim=0))
    return torch.stack(found).double().sum(dim=1)


def magnitude_ratio(before: torch.Tensor, after: torch.Tensor) -> float:
    """Mean over samples and channels of ``after / before``.

    Args:
        before: [n, d] float32, `magnitudes` at the boundary before a span.
        after: [n, d] float32, the same at the boundary behind it.

    A channel that is zero on every token before the span has no ratio and is left out: it holds
    nothing that could be scaled.

    Raises:
        NumericError: the stream is not finite, or zero in every channel.
    """
    if not (torch.isfinite(before).all() and torch.isfinite(after).all()):
        raise NumericError(NOT_FINITE)
    present = before > 0
    if not present.any():
        raise NumericError("the hidden states are zero; the checkpoint has no usable weights")
    return float((after[present].double() / before[present].double()).mean())

"""Statistics of the residual stream, from which metrics and compensators are computed.

Letters: n samples, t tokens, d channels. Products and sums are taken in fp32, totals in fp64.
"""

from __future__ import annotations

import torch

from prunecomp.errors import NumericError


def channel_magnitude(hidden: torch.Tensor) -> torch.Tensor:
    """Mean over tokens of |h|: [n, t, d] any float dtype -> [n, d] float32 on the CPU."""
    return hidden.abs().mean(dim=1, dtype=torch.float32).cpu()


def cosine_sum(
    before: torch.Tensor, after: torch.Tensor, *, axis: str = "channels"
) -> torch.Tensor:
    """Sum of cosines between two boundaries of the same batch, a float64 scalar.

    Args:
        before: [n, t, d] stream at the first boundary.
        after: [n, t, d] stream at the second.
        axis: ``channels``: one cosine per token, over d. ``sequence``: one per channel, over t,
            which is what the research code of Prune&Comp and LinearPatch computes for CL, by
            leaving torch's default dim in place.
    """
    dim = {"channels": 2, "sequence": 1}[axis]
    x, y = before.float(), after.float()
    return torch.nn.functional.cosine_similarity(x, y, dim=dim).double().sum()


def magnitude_ratio(before: torch.Tensor, after: torch.Tensor) -> float:
    """Mean over samples and channels of ``after / before``.

    Args:
        before: [n, d] float32, `channel_magnitude` at the boundary before a span.
        after: [n, d] float32, the same at the boundary behind it.

    A channel that is zero on every token before the span has no ratio and is left out: it holds
    nothing that could be scaled.

    Raises:
        NumericError: the stream is not finite, or zero in every channel.
    """
    if not (torch.isfinite(before).all() and torch.isfinite(after).all()):
        raise NumericError("the hidden states are not finite; use --dtype bfloat16 or float32")
    present = before > 0
    if not present.any():
        raise NumericError("the hidden states are zero; the checkpoint has no usable weights")
    return float((after[present].double() / before[present].double()).mean())

"""Least squares: the factor that takes the stream before the span nearest to that behind it."""

import torch

from prunecomp.calibration.needs import Need
from prunecomp.calibration.sites import Boundary
from prunecomp.calibration.statistics import Projections, TokenNorms
from prunecomp.compensators.base import Context
from prunecomp.errors import NumericError
from prunecomp.rounds import Scale


class LeastSquares:
    """``s = sum_t w_t <x_t, h_t> / sum_t w_t |x_t|^2`` with ``w_t = 1 / |x_t|^2``.

    x_t is the stream of a token in front of the span, h_t that behind it. The weights make all
    tokens count alike: s is the mean of ``<x_t, h_t> / |x_t|^2``. The first token of a window and
    the 0.1 % with the longest x_t are left out: they are outliers by orders of magnitude.
    """

    summary = "scale by least squares, every token weighted alike"
    needs = Need.STREAM

    def repair(self, context: Context) -> Scale:
        before, behind = Boundary(context.first), Boundary(context.last)
        fits, sizes = context.runner.measure([Projections(before, behind), TokenNorms(before)])
        if not context.runner.lead:  # else the first token is among those that count nowhere
            fits, sizes = fits[:, 1:], sizes[:, 1:]
        counted = sizes > 0
        order = torch.argsort(sizes[counted], stable=True)
        factor = float(fits[counted][order[: len(order) - len(order) // 1000]].double().mean())
        if not 0 < factor < float("inf"):
            raise NumericError(
                f"least squares gives the factor {factor:.6g}: before and behind the span the "
                "stream has nothing in common; use --compensation none"
            )
        return Scale(factor)


COMPENSATOR = LeastSquares()

"""Magnitude compensation: the ratio of the stream's size behind the span to that before it."""

from prunecomp.calibration.needs import Need
from prunecomp.calibration.stats import magnitude_ratio
from prunecomp.compensators.base import Context
from prunecomp.rounds import Scale


class MagnitudeCompensation:
    """``mean_c mean_s ( mean_t |h_j[s, t, c]| / mean_t |h_i[s, t, c]| )`` for the span i ... j-1.

    Source: Prune&Comp, arXiv 2507.18212, equations 8 and 9. The research code estimates it in a
    second pass, on 256 samples for BI and on 128 elsewhere; here it comes from the pass that
    gave the scores, on the same samples (``--samples``).
    """

    summary = "scale by the mean channel-wise magnitude ratio (Prune&Comp)"
    needs = Need.STREAM

    def repair(self, context: Context) -> Scale:
        before, behind = map(context.runner.magnitude, (context.first, context.last))
        return Scale(magnitude_ratio(before, behind))


COMPENSATOR = MagnitudeCompensation()

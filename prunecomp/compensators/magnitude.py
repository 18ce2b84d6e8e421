"""Magnitude compensation: the ratio of the stream's size behind the span to that before it."""

from prunecomp.calibration.runner import Runner
from prunecomp.calibration.stats import magnitude_ratio


class MagnitudeCompensation:
    """``mean_c mean_s ( mean_t |h_j[s, t, c]| / mean_t |h_i[s, t, c]| )`` for the span i ... j-1.

    Source: Prune&Comp, arXiv 2507.18212, equations 8 and 9. The research code estimates it in a
    second pass, on 256 samples for BI and on 128 elsewhere; here it comes from the pass that
    gave the scores, on the same samples (``--samples``).
    """

    summary = "scale by the mean channel-wise magnitude ratio (Prune&Comp)"

    def factor(self, runner: Runner, first: int, last: int) -> float:
        return magnitude_ratio(runner.magnitude(first), runner.magnitude(last))


COMPENSATOR = MagnitudeCompensation()

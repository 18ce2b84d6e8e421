"""No compensation: plain layer dropping."""

from prunecomp.calibration.needs import Need
from prunecomp.compensators.base import Context
from prunecomp.rounds import Scale


class NoCompensation:
    """Leaves the gap as it is."""

    summary = "none: plain layer dropping"
    needs = Need.NOTHING

    def repair(self, context: Context) -> Scale:
        return Scale(1.0)


COMPENSATOR = NoCompensation()

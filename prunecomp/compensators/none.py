"""No compensation: plain layer dropping."""

from prunecomp.calibration.runner import Runner


class NoCompensation:
    """Leaves the gap as it is."""

    summary = "none: plain layer dropping"

    def factor(self, runner: Runner, first: int, last: int) -> float:
        return 1.0


COMPENSATOR = NoCompensation()

"""What a metric is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from prunecomp.plan import PrunePlan

if TYPE_CHECKING:
    from prunecomp.calibration.needs import Need
    from prunecomp.calibration.runner import Runner


class Metric(Protocol):
    """Scores candidate spans; the one with the lowest score is removed.

    A file in this package is one metric: it ends with an object named ``METRIC`` that has these
    members. It asks the runner for what it needs, and so costs what it needs.

    Attributes:
        summary: one line for ``--help``.
        protect: layers at the start and at the end that are spared unless the user says
            otherwise.
        block: True where one contiguous block is chosen at once; there is then one round.
        needs: what it asks the runner for; asking for more is an error.
    """

    summary: str
    protect: tuple[int, int]
    block: bool
    needs: Need

    def scores(
        self, runner: Runner, plan: PrunePlan, positions: Sequence[int], width: int
    ) -> list[float]:
        """One score per candidate; lower goes first.

        Args:
            runner: over the model as it now is.
            plan: of the rounds so far.
            positions: index among the live layers of each candidate's first layer.
            width: live layers in each candidate; 1 but for blocks, and for families whose layers
                go in runs.
        """
        ...

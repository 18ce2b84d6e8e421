"""What a compensator is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from prunecomp.calibration.runner import Runner


class Compensator(Protocol):
    """Estimates the repair of one cut on the model as it is before the cut.

    A file in this package is one compensator: it ends with an object named ``COMPENSATOR``.

    Attributes:
        summary: one line for ``--help``.
    """

    summary: str

    def factor(self, runner: Runner, first: int, last: int) -> float:
        """The scalar by which the stream in front of the cut is too small.

        Args:
            runner: over the model that still has the span.
            first: boundary that enters the span.
            last: boundary that leaves it.
        """
        ...

"""What a compensator is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from prunecomp.plan import PrunePlan
from prunecomp.rounds import Matrices, Repair

if TYPE_CHECKING:
    import torch

    from prunecomp.calibration.needs import Need
    from prunecomp.calibration.runner import Runner


@dataclass(frozen=True)
class Context:
    """One cut that is to be repaired, on the model as it is before the cut.

    Attributes:
        runner: over the model that still has the span.
        plan: of the rounds so far.
        first: boundary that enters the span; boundaries are counted over the live layers.
        last: boundary that leaves it.
    """

    runner: Runner
    plan: PrunePlan
    first: int
    last: int

    def matrices(self, weights: Mapping[str, torch.Tensor], *, factor: float = 1.0) -> Matrices:
        """The repair that gives weights new values, by their names in the source's files.

        Args:
            weights: float32, or of the dtype that the files have; as they are to be in the model
                after this cut, `factor` included.
            factor: that the stream in front of the cut is scaled by as well.

        Raises:
            NumericError: a value is not finite.
        """
        from prunecomp.checkpoint.sidecar import new_matrices

        return new_matrices(weights, factor=factor)


class Compensator(Protocol):
    """Estimates the repair of one cut on the model as it is before the cut.

    A file in this package is one compensator: it ends with an object named ``COMPENSATOR``.

    Attributes:
        summary: one line for ``--help``.
        needs: what it asks the runner for; asking for more is an error.
    """

    summary: str
    needs: Need

    def repair(self, context: Context) -> Repair:
        """What closes the gap: a `Scale`, or `Context.matrices`."""
        ...

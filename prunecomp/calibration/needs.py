"""What a metric or a compensator asks of the calibration passes, and the proof that it said so.

Memory is planned by what is declared. What asks for more would be counted too low, so it gets an
error instead of an answer.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from prunecomp.calibration.runner import Runner


class Need(enum.Flag):
    """What costs memory or time; several are joined by ``|``."""

    NOTHING = 0
    STREAM = enum.auto()  # statistics of the stream at boundaries
    TAPS = enum.auto()  # statistics inside layers
    LOSSES = enum.auto()  # the loss of the model
    CANDIDATES = enum.auto()  # losses without candidates
    GRADIENTS = enum.auto()  # gradients of the loss
    TEACHER = enum.auto()  # the original model beside the pruned one


#: What must be declared before a member of `Runner` is used; all others are free.
_ASKED = {
    "magnitude": Need.STREAM,
    "cosines": Need.STREAM,
    "boundaries": Need.STREAM,
    "measure": Need.STREAM,
    "loss": Need.LOSSES,
    "losses_without": Need.CANDIDATES,
    "weight_gradients": Need.GRADIENTS,
    "lockstep": Need.TEACHER,
    "measure_beside": Need.TEACHER,
}


class UndeclaredNeedError(TypeError):
    """A metric or compensator asks for what it does not declare: a fault of its code."""


class _Declared:
    """A runner that answers only what was declared."""

    def __init__(self, runner: Runner, needs: Need, who: str) -> None:
        self._runner, self._needs, self._who = runner, needs, who

    def __getattr__(self, name: str) -> Any:
        needed = _ASKED.get(name, Need.NOTHING)
        if needed not in self._needs:
            raise UndeclaredNeedError(
                f"{self._who} asks for Runner.{name}, but its needs are {self._needs}; add {needed}"
            )
        return getattr(self._runner, name)


def declared(runner: Runner, asks: Any) -> Runner:
    """`runner` as a metric or compensator sees it, which answers what that declares as `needs`.

    Raises:
        UndeclaredNeedError: when it is asked for something else; or `asks` declares nothing.
    """
    needs = getattr(asks, "needs", None)
    if not isinstance(needs, Need):
        raise UndeclaredNeedError(f"{type(asks).__name__} has no needs; declare them")
    return cast("Runner", _Declared(runner, needs, type(asks).__name__))

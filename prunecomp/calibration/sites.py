"""Places in a model where a statistic can be taken.

Positions count live layers; the layer at position p lies between boundaries p and p + 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Boundary:
    """The residual stream [n, t, d] that enters the layer at `position`, or leaves the last one."""

    position: int
    power: ClassVar[int] = 1
    inside: ClassVar[bool] = False

    @property
    def step(self) -> int:
        """The boundary at which the value is known."""
        return self.position


@dataclass(frozen=True)
class Between:
    """The stream [n, t, d] between attention and MLP of the layer at `position`.

    Layers whose sub-blocks run side by side (Falcon, GPT-J, Phi) have none.
    """

    position: int
    power: ClassVar[int] = 1
    inside: ClassVar[bool] = True

    @property
    def step(self) -> int:
        return self.position + 1


@dataclass(frozen=True)
class WriterInput:
    """What a writer of the layer at `position` reads: [n, t, in].

    Attributes:
        writer: its weight in memory, one of `PlannedModel.writers`.
        expert: the number of an expert, where the weight holds those of a layer. It sees only the
            tokens that are routed to it.
    """

    position: int
    writer: str
    expert: int | None = None
    power: ClassVar[int] = 0  # a norm lies in front of it, or the writer is one
    inside: ClassVar[bool] = True

    @property
    def step(self) -> int:
        return self.position + 1


@dataclass(frozen=True)
class Original:
    """The same place in the original model, whose layers all live; see `Runner.measure_beside`."""

    site: Boundary | Between | WriterInput
    power: ClassVar[int] = 0  # no cut changes it

    @property
    def inside(self) -> bool:
        return self.site.inside

    @property
    def position(self) -> int:
        return self.site.position

    @property
    def step(self) -> int:
        return self.site.step


Site = Boundary | Between | WriterInput | Original

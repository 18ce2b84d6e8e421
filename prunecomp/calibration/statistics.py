"""Statistics of places in a model: one protocol, and those that there are.

A statistic is a frozen description of what is wanted; its state is what has come so far, and its
value what comes out when the states of all processes are put together. Values are per sample, in
the order of the samples, or sums over samples. Sums are in float64 and are taken in pairs of
neighbouring samples, pairs of pairs, and so on: an order that depends on the samples alone, so that
batches and processes do not change a bit of them.

Letters: n samples, t tokens, d channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from prunecomp.calibration.counted import Counted
from prunecomp.calibration.sites import Site
from prunecomp.calibration.stats import cosine_sums, cosines, magnitudes, token_norms
from prunecomp.calibration.taps import ExpertRows

#: What is read at a site: [n, t, d], or the rows of an expert.
Value = torch.Tensor | ExpertRows


class Statistic(Protocol):
    """What is wanted: a frozen dataclass.

    Attributes:
        sites: where it is taken.
        uses: statistics per sample that are taken first, and given to `add`.
        power: with which power of the stream's scale it grows.
    """

    @property
    def sites(self) -> tuple[Site, ...]: ...

    @property
    def uses(self) -> tuple[PerSample, ...]: ...

    @property
    def power(self) -> int: ...

    def start(self) -> Any:
        """The state before anything has come."""
        ...

    def add(
        self, state: Any, first: int, values: Sequence[Value], counted: Counted,
        used: Sequence[torch.Tensor],
    ) -> None:  # fmt: skip
        """Takes one batch.

        Args:
            first: the number of its first sample among those of all processes.
            values: one for each site.
            counted: the tokens that count.
            used: of `uses`, for this batch.
        """
        ...

    def scaled(self, state: Any, factor: float) -> Any:
        """The state if the stream had been `factor` times what it was."""
        ...

    def pack(self, state: Any) -> Any:
        """The state in main memory, to be sent to other processes."""
        ...

    def merge(self, packed: Sequence[Any]) -> torch.Tensor:
        """The value, of the packed states of all processes in their order."""
        ...


class PerSample:
    """A statistic with a value for each sample: [n, ...]. The state has a tensor per batch."""

    uses: ClassVar[tuple[PerSample, ...]] = ()
    sites: tuple[Site, ...]
    power: ClassVar[int] = 0

    def measure(
        self, values: Sequence[Value], counted: Counted, used: Sequence[torch.Tensor] = ()
    ) -> torch.Tensor:
        """Of one batch: [n, ...]."""
        raise NotImplementedError

    def start(self) -> list[torch.Tensor]:
        return []

    def add(
        self, state: list[torch.Tensor], first: int, values: Sequence[Value], counted: Counted,
        used: Sequence[torch.Tensor],
    ) -> None:  # fmt: skip
        state.append(self.measure(values, counted, used))

    def scaled(self, state: list[torch.Tensor], factor: float) -> list[torch.Tensor]:
        return [part * factor**self.power for part in state] if self.power else state

    def pack(self, state: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(state).cpu()

    def merge(self, packed: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat(list(packed))


class PairwiseSum:
    """A sum over samples, in float64, whose bits depend on the samples and their order alone.

    Node (k, i) is the sum of the samples from i 2^k up to (i + 1) 2^k, as the sum of its two
    halves. Of m samples, at most the binary logarithm of m nodes are there at once.
    """

    def __init__(self, nodes: Mapping[tuple[int, int], torch.Tensor] | None = None) -> None:
        self.nodes = dict(nodes or {})

    def add(self, sample: int, value: torch.Tensor) -> None:
        """Takes the value of a sample, float64."""
        self._put((0, sample), value)

    def _put(self, node: tuple[int, int], value: torch.Tensor) -> None:
        level, number = node
        while (other := (level, number ^ 1)) in self.nodes:
            sibling = self.nodes.pop(other)
            value = value + sibling if number & 1 == 0 else sibling + value
            level, number = level + 1, number >> 1
        self.nodes[level, number] = value

    def join(self, other: PairwiseSum) -> None:
        """Takes the samples of another sum."""
        for node in sorted(other.nodes):
            self._put(node, other.nodes[node])

    def total(self) -> torch.Tensor:
        """The sum of all; what has no sibling is added from the last samples to the first."""
        ordered = sorted(self.nodes, key=lambda node: node[1] << node[0], reverse=True)
        total = self.nodes[ordered[0]]
        for node in ordered[1:]:
            total = self.nodes[node] + total
        return total


def _rows(value: Value, sample: int, counted: Counted) -> torch.Tensor:
    """Of one sample, the tokens that count: [tokens, d]."""
    mask = None if counted.mask is None else counted.mask[sample]
    if isinstance(value, ExpertRows):
        rest = torch.ones(value.tokens - counted.lead, dtype=torch.bool) if mask is None else mask
        return value.of(sample, torch.nn.functional.pad(rest, (counted.lead, 0)))
    tokens = counted.trim(value)[sample]
    return tokens if mask is None else tokens[mask]


class Summed:
    """A statistic that is a sum over samples, in float64. The state is a `PairwiseSum`."""

    uses: ClassVar[tuple[PerSample, ...]] = ()
    sites: tuple[Site, ...]
    power: ClassVar[int] = 0

    def measure(self, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        """Of one sample, float64.

        Args:
            rows: for each site, the tokens that count: [tokens, d].
        """
        raise NotImplementedError

    def start(self) -> PairwiseSum:
        return PairwiseSum()

    def add(
        self, state: PairwiseSum, first: int, values: Sequence[Value], counted: Counted,
        used: Sequence[torch.Tensor],
    ) -> None:  # fmt: skip
        for sample in range(len(values[0])):
            rows = [_rows(value, sample, counted) for value in values]
            state.add(first + sample, self.measure(rows))

    def scaled(self, state: PairwiseSum, factor: float) -> PairwiseSum:
        scale = factor**self.power
        return PairwiseSum({node: value * scale for node, value in state.nodes.items()})

    def pack(self, state: PairwiseSum) -> PairwiseSum:
        return PairwiseSum({node: value.cpu() for node, value in state.nodes.items()})

    def merge(self, packed: Sequence[PairwiseSum]) -> torch.Tensor:
        total = PairwiseSum()
        for each in packed:
            total.join(each)
        return total.total()


@dataclass(frozen=True)
class _Size(PerSample):
    """A size of the values at one site, which goes with their scale."""

    site: Site
    power: ClassVar[int] = 1

    @property
    def sites(self) -> tuple[Site, ...]:
        return (self.site,)


@dataclass(frozen=True)
class Magnitudes(_Size):
    """Mean over tokens of |h|: [samples, d] float32."""

    def measure(
        self, values: Sequence[Value], counted: Counted, used: Sequence[torch.Tensor] = ()
    ) -> torch.Tensor:
        return magnitudes(values[0], counted)


@dataclass(frozen=True)
class TokenNorms(_Size):
    """Euclidean norm of each token: [samples, t - lead] float32, 0 where none counts."""

    def measure(
        self, values: Sequence[Value], counted: Counted, used: Sequence[torch.Tensor] = ()
    ) -> torch.Tensor:
        return token_norms(values[0], counted)


@dataclass(frozen=True)
class Cosines(PerSample):
    """Sum of the cosines between two sites: [samples] float64; `axis` as in `cosine_sums`."""

    first: Site
    second: Site
    axis: str = "channels"

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.first, self.second

    @property
    def uses(self) -> tuple[PerSample, ...]:
        return tuple(map(TokenNorms, self.sites)) if self.axis == "channels" else ()

    def measure(
        self, values: Sequence[Value], counted: Counted, used: Sequence[torch.Tensor] = ()
    ) -> torch.Tensor:
        before, after = values
        norms = (used[0], used[1]) if used else None
        return cosine_sums(before, after, norms, axis=self.axis, counted=counted)


@dataclass(frozen=True)
class Projections(PerSample):
    """``<x_t, h_t> / |x_t|^2`` of each token, x at the first site and h at the second.

    [samples, t - lead] float32; 0 where none counts, or x is zero.
    """

    first: Site
    second: Site

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.first, self.second

    @property
    def uses(self) -> tuple[PerSample, ...]:
        return tuple(map(TokenNorms, self.sites))

    def measure(
        self, values: Sequence[Value], counted: Counted, used: Sequence[torch.Tensor] = ()
    ) -> torch.Tensor:
        before, after = values
        x, h = used
        ratios = cosines(before, after, (x, h), counted) * (h / x)
        return torch.where(x > 0, ratios, 0.0)


@dataclass(frozen=True)
class Gram(Summed):
    """``sum_t x_t y_t^T`` over the tokens of all samples: [d of x, d of y] float64.

    Of one site, x is y. Where x is what a writer reads and y is what is wanted of it, this and the
    Gram matrix of x are the normal equations of the writer's weight.
    """

    first: Site
    second: Site | None = None

    @property
    def sites(self) -> tuple[Site, ...]:
        return (self.first,) if self.second is None else (self.first, self.second)

    @property
    def power(self) -> int:
        return self.first.power + (self.first if self.second is None else self.second).power

    def measure(self, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        x, y = rows[0].double(), rows[-1].double()
        return x.T @ y

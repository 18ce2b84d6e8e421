"""Takes statistics on the way of a model's batches, and keeps them from cut to cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prunecomp.calibration.counted import Counted
from prunecomp.calibration.sites import Site
from prunecomp.calibration.statistics import Statistic, Value


class Store:
    """The states of statistics of one model, by statistic, until a cut makes them stale."""

    def __init__(self) -> None:
        self.states: dict[Statistic, Any] = {}

    def truncate(self, boundary: int) -> None:
        """Forgets what is not known at `boundary` yet: it lies behind what has changed."""
        self.states = {
            s: state for s, state in self.states.items()
            if all(site.step <= boundary for site in s.sites)
        }  # fmt: skip

    def scale(self, factor: float) -> None:
        """The stream has been multiplied by `factor`; a statistic goes with a power of it."""
        self.states = {s: s.scaled(state, factor) for s, state in self.states.items()}


class Collector:
    """Takes several statistics on one way through a model, batch by batch."""

    def __init__(
        self,
        statistics: Iterable[Statistic],
        store: Store,
        counted: Sequence[Counted],
        *,
        first: int,
        step: Callable[[Site], int] = lambda site: site.step,
    ) -> None:
        """Begins with what is missing in `store`.

        Args:
            counted: the tokens that count, of each batch.
            first: number of this process's first sample.
            step: when the value of a site is known.
        """
        self._store, self._counted, self._step = store, counted, step
        found: dict[Statistic, None] = {}
        for statistic in statistics:
            found.update(dict.fromkeys((*statistic.uses, statistic)))
        self.missing = [s for s in found if s not in store.states]
        self._kept: dict[Site, dict[int, Value]] = {}
        self._first, self._last = first, {}
        for statistic in self.missing:
            store.states[statistic] = statistic.start()
            for site in statistic.sites:
                self._last[site] = max(self._last.get(site, 0), self._due(statistic))

    def _due(self, statistic: Statistic) -> int:
        return max(self._step(site) for site in statistic.sites)

    @property
    def sites(self) -> list[Site]:
        """All places that are read."""
        return list(self._last)

    @property
    def steps(self) -> tuple[int, int]:
        """The first and the last step at which something is read."""
        steps = [self._step(site) for site in self._last]
        return min(steps), max(steps)

    def take(
        self, step: int, batch: int, values: Mapping[Site, Value], *, held: Callable[[Site], Any],
        samples_before: int,
    ) -> None:  # fmt: skip
        """Takes what has come to `step` of one batch.

        Args:
            values: by site, of this step.
            held: all batches at a site of an earlier step, where somebody else keeps them.
            samples_before: of this process, in the batches before this one.
        """
        for statistic in self.missing:
            if self._due(statistic) == step:
                found = [
                    values[s] if s in values else self._earlier(s, batch, held)
                    for s in statistic.sites
                ]
                used = [self._store.states[u][batch] for u in statistic.uses]
                statistic.add(
                    self._store.states[statistic], self._first + samples_before, found,
                    self._counted[batch], used,
                )  # fmt: skip
        for site, value in values.items():
            if self._last.get(site, step) > step and (
                self._last[site] == step + 1 or held(site) is None
            ):
                self._kept.setdefault(site, {})[batch] = value
        for site in [
            s for s, kept in self._kept.items() if self._last[s] <= step and batch in kept
        ]:
            del self._kept[site][batch]

    def _earlier(self, site: Site, batch: int, held: Callable[[Site], Any]) -> Value:
        if batch in self._kept.get(site, ()):
            return self._kept[site][batch]
        return held(site)[batch]

"""Answers what metrics and compensators ask of a model on its calibration text.

Statistics, losses with and without candidates, gradients. What is asked for is computed once and
remembered until a cut makes it stale; a cut leaves everything in front of it valid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import torch

from prunecomp.calibration.collector import Collector, Store
from prunecomp.calibration.lockstep import Step, collect, lockstep, steps_of
from prunecomp.calibration.losses import loss_gradient, sample_losses
from prunecomp.calibration.sites import Boundary, Site
from prunecomp.calibration.statistics import Cosines, Magnitudes, Statistic, Value
from prunecomp.calibration.stats import NOT_FINITE
from prunecomp.calibration.streams import Streams
from prunecomp.calibration.taps import Tap
from prunecomp.errors import NumericError


def _mean(sums: torch.Tensor, terms: int) -> float:
    """Mean of `terms` terms in all, from the sum of each sample's: [samples] float64.

    Raises:
        NumericError: it is not finite.
    """
    value = float(sums.sum()) / terms
    if not math.isfinite(value):
        raise NumericError(NOT_FINITE)
    return value


class Runner(Streams):
    """Statistics of a `PlannedModel` over a `CalibrationSet`.

    The samples are shared with the processes of `group`; what is asked is answered for all.
    With `exact_prefix`, everything in front of a factor that is folded upstream is computed again.
    """

    def measure(
        self, statistics: Iterable[Statistic], *, description: str = "statistics"
    ) -> list[torch.Tensor]:
        """The values of statistics of the model as it now is, over the samples of all processes.

        What is not known is taken on one way through the layers.

        Raises:
            UnsupportedModelError: the model has no such place.
        """
        statistics = list(statistics)
        self._collect(statistics, description)
        return [self._value(statistic, self._store) for statistic in statistics]

    def lockstep(self) -> Iterator[Step]:
        """Moves the original model and this one along the layers of the source, side by side.

        Each layer is read once for both. Nobody may change what is yielded.
        """
        return lockstep(self.model, self._ids)

    def measure_beside(self, statistics: Iterable[Statistic]) -> list[torch.Tensor]:
        """`measure`, also of sites in the original model (`Original`), in one `lockstep`.

        Raises:
            UnsupportedModelError: a model has no such place.
        """
        statistics, store = list(statistics), Store()
        collector = Collector(
            statistics, store, self._counted, first=self._first, step=steps_of(self.live)
        )
        collect(self.model, self._ids, collector)
        return [self._value(statistic, store) for statistic in statistics]

    def _value(self, statistic: Statistic, store: Store) -> torch.Tensor:
        return statistic.merge(self._group.exchange(statistic.pack(store.states[statistic])))

    def _collect(self, statistics: Sequence[Statistic], description: str) -> None:
        collector = Collector(statistics, self._store, self._counted, first=self._first)
        if not collector.missing:
            return
        first, last = collector.steps
        taps: dict[int, list[Tap]] = {}
        for site in collector.sites:
            if isinstance(site, Tap):
                taps.setdefault(site.position, []).append(site)
                first = min(first, site.position)

        def take(step: int, batch: int, values: Mapping[Site, Value]) -> None:
            before = sum(map(len, self._ids[:batch]))
            collector.take(step, batch, values, held=held, samples_before=before)

        try:
            held = self._held_at(-1)
            for boundary, batches in self._sweep(first, last, description, taps, take):
                held = self._held_at(boundary)
                if boundary - 1 not in taps or boundary == first:
                    for batch, hidden in enumerate(batches):
                        take(boundary, batch, {Boundary(boundary): hidden})
        except BaseException:
            for statistic in collector.missing:  # what has come is not all of it
                self._store.states.pop(statistic, None)
            raise

    def _held_at(self, boundary: int) -> Callable[[Site], Sequence[torch.Tensor] | None]:
        """Reads from the cache what is kept of earlier boundaries, each once."""
        known: dict[Site, Sequence[torch.Tensor] | None] = {}

        def held(site: Site) -> Sequence[torch.Tensor] | None:
            if site not in known:
                is_kept = isinstance(site, Boundary) and site.position in self.cache.held
                known[site] = self.cache.get(site.position) if is_kept else None
            return known[site]

        return held

    def magnitude(self, boundary: int) -> torch.Tensor:
        """Mean over tokens of |h| at `boundary`: [samples, d] float32."""
        return self.measure([Magnitudes(Boundary(boundary))], description="magnitudes")[0]

    def cosines(self, lag: int, *, axis: str = "channels") -> list[float]:
        """Mean cosine between boundaries p and p + lag, for p = 0 ... live - lag."""
        pairs = [
            Cosines(Boundary(p), Boundary(p + lag), axis) for p in range(len(self.live) - lag + 1)
        ]
        found = self.measure(pairs, description="scores")
        channels = self._width * sum(len(sums) for sums in found[:1])
        terms = channels if axis == "sequence" else self._tokens
        return [_mean(sums, terms) for sums in found]

    def loss(self, *, description: str = "loss") -> float:
        """Mean next-token cross entropy in nats."""
        last = len(self.live)
        ((_, batches),) = self._sweep(last, last, description)
        return self._mean_loss(batches)

    def losses_without(self, spans: Sequence[range], *, again: bool = False) -> list[float]:
        """`loss` without each of these spans of live layers, by position.

        Each starts at its own boundary. Where the weights come from files, all spans for which
        there is memory go through a layer before it is dropped. With `again`, what they meet is
        kept for the next round, as far as there is room; see `Detours`.
        """
        found: dict[int, float] = {}
        last = len(self.live)
        steps = sum(last - self._detours.reached(span) for span in spans) * len(self._ids)
        with self.progress.bar(steps, "candidates", unit="batch") as bar:
            for first in range(0, len(spans), self._at_once):
                group = spans[first : first + self._at_once]
                found |= self._losses_without(group, again, bar.update)
        return [found[span.start] for span in spans]

    def _losses_without(
        self, spans: Sequence[range], again: bool, done: Callable[[], None]
    ) -> dict[int, float]:
        """By the first position of each span."""
        streams: dict[range, tuple[int, Sequence[torch.Tensor]]] = {}
        for span in spans:
            held = self._detours.get(span)
            if held is None:
                ((_, held),) = self._sweep(span.start, span.start, "forward")
            streams[span] = self._detours.reached(span), held
        for p in range(min(boundary for boundary, _ in streams.values()), len(self.live)):
            with self.model.loaded(self.live[p]):
                for span, (boundary, batches) in streams.items():
                    if boundary == p:
                        behind = self._through(p, batches, done)
                        streams[span] = p + 1, behind
                        if again:
                            self._detours.put(span, p + 1, behind)
        return {span.start: self._mean_loss(batches) for span, (_, batches) in streams.items()}

    def _mean_loss(self, batches: Sequence[torch.Tensor]) -> float:
        with self.model.outside():
            each = zip(batches, self._ids, self._counted, strict=True)
            losses = [sample_losses(self.model, *one) for one in each]
        return _mean(self._group.gather(torch.cat(losses)), self._predicted)

    def weight_gradients(
        self, wanted: Collection[int]
    ) -> Iterator[tuple[int, dict[str, tuple[torch.Tensor, torch.Tensor]]]]:
        """Gradients of the summed per-sample losses, one layer at a time, last layer first.

        Yields ``(original index, {relative name: (weight, gradient)})`` for the `wanted` original
        indices; gradients are float32, accumulated over all samples. Only one layer's gradients
        exist at a time: each layer is run again from its stored input, with the gradient of its
        output. Layers in front of the first wanted one are not run.
        """
        last = len(self.live)
        positions = range(last - 1, min(self.live.index(layer) for layer in wanted) - 1, -1)
        ((_, batches),) = self._sweep(last, last, "forward")
        with self.model.outside():
            self.model.prefetch(self.live[-1])
            each = zip(batches, self._ids, self._counted, strict=True)
            upstream = [loss_gradient(self.model, *one) for one in each]
        tracked = self.progress.track(positions, "gradients", total=len(positions), unit="layer")
        for p in tracked:
            ((_, batches),) = self._sweep(p, p, "forward")
            layer = self.live[p]
            with self.model.loaded(layer):
                if p > positions[-1]:
                    self.model.prefetch(self.live[p - 1])
                parameters = dict(self.model.layer(layer).named_parameters())
                named = parameters if layer in wanted else {}
                sums = self._backward(layer, list(named.values()), batches, upstream)
                if named:
                    each = zip(named.items(), sums, strict=True)
                    yield layer, {name: (weight, total) for (name, weight), total in each}

    def _backward(
        self,
        layer: int,
        weights: Sequence[torch.Tensor],
        batches: Sequence[torch.Tensor],
        upstream: list[torch.Tensor],
    ) -> list[torch.Tensor]:
        """Gradients of `weights`; `upstream`, of the layer's output, becomes that of its input."""
        sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
        for weight in weights:
            weight.requires_grad_()
        for b, hidden in enumerate(batches):
            inputs = [hidden.detach().requires_grad_(), *weights]
            with torch.enable_grad():
                out = self.model.run_layer(layer, inputs[0])
            upstream[b], *gradients = torch.autograd.grad(out, inputs, upstream[b])
            for total, gradient in zip(sums, gradients, strict=True):
                total += gradient
        for weight in weights:
            weight.requires_grad_(False)
        for total in sums:
            self._group.sum_(total)
        self._heap.tidy()
        return sums

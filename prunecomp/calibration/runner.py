"""Moves calibration batches through the live layers, one layer after the other.

All batches go through a layer before the next layer starts. What is asked for is computed once
and remembered until a cut makes it stale; a cut leaves everything in front of it valid.

Boundaries are counted over live layers: boundary p enters the p-th live layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

import torch

from prunecomp.calibration.allocation import Heap
from prunecomp.calibration.cache import ActivationCache, CacheBudget
from prunecomp.calibration.counted import Counted
from prunecomp.calibration.data import CalibrationSet
from prunecomp.calibration.detours import Detours
from prunecomp.calibration.losses import loss_gradient, sample_losses
from prunecomp.calibration.stats import NOT_FINITE, cosine_sums, magnitudes, token_norms
from prunecomp.calibration.view import PlannedModel
from prunecomp.distributed import Group
from prunecomp.errors import NumericError
from prunecomp.fold import unchanged_until
from prunecomp.plan import PrunePlan
from prunecomp.progress import Progress

#: Tokens that go through a layer at once, by type of device: on a CPU, what its caches hold.
BATCH_TOKENS = {"cpu": 1024, "cuda": 8192}
#: How far a scaled stream may be, relative to its norm, from what scaled weights give. In half
#: precision, the weights of each round are rounded anew.
PREFIX_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 4e-3}
#: For what is small enough; `prunecomp.memory` finds a budget for what may not be.
UNLIMITED = CacheBudget(device=1 << 60)
ALONE = Group()


def _mean(sums: torch.Tensor, terms: int) -> float:
    """Mean of `terms` terms in all, from the sum of each sample's: [samples] float64.

    Raises:
        NumericError: it is not finite.
    """
    value = float(sums.sum()) / terms
    if not math.isfinite(value):
        raise NumericError(NOT_FINITE)
    return value


def default_batch(device: str, seq_len: int) -> int:
    """Samples of `seq_len` tokens in a batch on that type of device."""
    return max(1, BATCH_TOKENS.get(device, BATCH_TOKENS["cuda"]) // seq_len)


def candidates_at_once(
    spare: CacheBudget, *, resident: bool, boundaries: int, bytes_per_boundary: int
) -> tuple[int, CacheBudget]:
    """How many candidates move through the layers together, and what they may keep on the way.

    Layers that are read from files are read once for all that move together.
    """
    if resident:
        return 1, spare
    most = spare.device // max(1, bytes_per_boundary)
    return max(1, min(most, boundaries - 1)), replace(spare, device=0)


class Runner:
    """Statistics of a `PlannedModel` over a `CalibrationSet`.

    The samples are shared with the processes of `group`; what is asked is answered for all.
    With `exact_prefix`, everything in front of a factor that is folded upstream is computed again.
    """

    def __init__(
        self,
        model: PlannedModel,
        calibration: CalibrationSet,
        *,
        progress: Progress,
        batch_size: int | None = None,
        cache: CacheBudget = UNLIMITED,
        exact_prefix: bool = False,
        group: Group = ALONE,
    ) -> None:
        self.model, self.progress, self._exact_prefix = model, progress, exact_prefix
        self._heap = Heap()
        ids = calibration.input_ids.to(model.device)
        self._group = group
        batch_size = batch_size or default_batch(ids.device.type, ids.shape[1])
        self._ids = group.share(ids, batch_size)
        whole = Counted.of(calibration.counted)
        self._tokens = int(whole.numbers(calibration.input_ids).sum())
        self._predicted = int(whole.predicted(calibration.input_ids).sum())
        self._counted = whole.shared(
            lambda mask: group.share(mask.to(model.device), batch_size), len(self._ids)
        )
        self._single = int(group.gather(torch.tensor([len(self._ids)])).max()) == 1
        first = self._embed()
        sizes = {
            "boundaries": len(model.live) + 1,
            "bytes_per_boundary": sum(h.nbytes for h in first),
        }
        self.cache = ActivationCache(**sizes, budget=cache)
        spare = self.cache.spare
        self._at_once, spare = candidates_at_once(spare, resident=model.resident, **sizes)
        self._detours = Detours(**sizes, budget=spare)
        self._magnitudes: dict[int, torch.Tensor] = {}
        self._norms: dict[int, list[torch.Tensor]] = {}
        self._cosines: dict[tuple[int, str], dict[int, float]] = {}
        self._note(0, first)

    @property
    def live(self) -> tuple[int, ...]:
        """Original indices of the layers that are left."""
        return self.model.live

    def magnitude(self, boundary: int) -> torch.Tensor:
        """Mean over tokens of |h| at `boundary`: [samples, d] float32."""
        if boundary not in self._magnitudes:
            for _, batches in self._sweep(boundary, boundary, "magnitudes"):
                self._measure(boundary, batches)
        return self._group.gather(self._magnitudes[boundary])

    def cosines(self, lag: int, *, axis: str = "channels") -> list[float]:
        """Mean cosine between boundaries p and p + lag, for p = 0 ... live - lag."""
        known = self._cosines.setdefault((lag, axis), {})
        pairs = len(self.live) - lag + 1
        start = next((p for p in range(pairs) if p not in known), None)
        if start is not None:
            window: dict[int, Sequence[torch.Tensor]] = {}
            for boundary, batches in self._sweep(start, len(self.live), "scores"):
                if lag == 1 or boundary not in self.cache.held:
                    window[boundary] = batches
                if boundary not in self._norms and axis == "channels":
                    each = zip(batches, self._counted, strict=True)
                    self._norms[boundary] = [token_norms(*one) for one in each]
                p = boundary - lag
                if p >= start:
                    before = window.pop(p, None) or self.cache.get(p)
                    assert before is not None
                    sums = self._cosine_sums((p, before), (boundary, batches), axis)
                    sums = self._group.gather(sums)
                    channels = len(sums) * batches[0].shape[2]
                    known[p] = _mean(sums, channels if axis == "sequence" else self._tokens)
        return [known[p] for p in range(pairs)]

    def _cosine_sums(
        self,
        first: tuple[int, Sequence[torch.Tensor]],
        second: tuple[int, Sequence[torch.Tensor]],
        axis: str,
    ) -> torch.Tensor:
        """Per sample, between two boundaries and their batches."""
        (p, before), (q, after) = first, second
        if axis == "sequence":
            each = zip(before, after, self._counted, strict=True)
            return torch.cat([cosine_sums(x, y, axis=axis, counted=c) for x, y, c in each])
        norms = zip(self._norms[p], self._norms[q], strict=True)
        every = zip(before, after, norms, self._counted, strict=True)
        return torch.cat([cosine_sums(x, y, n, counted=c) for x, y, n, c in every])

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

    def advance(self, plan: PrunePlan) -> None:
        """Makes the model that of `plan`, which has one round more, and forgets what is stale.

        The stream up to the cut, or to the first layer that was repaired, is what it was, or where
        the factor was folded in front of it, what it was times the factor.
        """
        done = plan.rounds[-1]
        cut = unchanged_until(done, self.model.checkpoint.family, self.live)
        self.model.apply(plan)
        if (
            plan.recipe.fold == "upstream"
            and done.factor != 1.0
            and cut >= 0
            and not self._scale_prefix(cut, done.factor)
        ):
            cut = -1
        self.cache.truncate_after(cut)
        self._detours.truncate_after(cut)
        for known in (self._magnitudes, self._norms):
            for b in [b for b in known if b > cut]:
                del known[b]
        for (lag, _), known in self._cosines.items():
            for p in [p for p in known if p + lag > cut]:
                del known[p]

    def _scale_prefix(self, cut: int, factor: float) -> bool:
        """Scales what is known up to the cut instead of computing it again, if that is right.

        It is, but for the eps of the norms and for rounding. Whether these matter is seen on the
        first batch, or of a single one on its first sample, which runs through the scaled layers.
        """
        if self._exact_prefix or self._single:
            return False  # the check would be the whole work
        ids = self._ids[0][:1] if len(self._ids) == 1 else self._ids[0]
        counted = self._counted[0].first(len(ids))
        with torch.no_grad(), self.model.outside():
            hidden = self.model.embed(ids)
        differences = []
        for p in range(cut + 1):
            if p:
                (hidden,) = self._through(p - 1, [hidden])
            if p in self._norms:
                before = self._norms[p][0][: len(ids)] * factor
                differences.append((before, token_norms(hidden, counted)))
            if p in self._magnitudes:
                before = self._magnitudes[p][: len(ids)] * factor
                differences.append((before, magnitudes(hidden, counted).cpu()))
        kept = self.cache.get(cut)
        if kept is not None:
            streams = kept[0][: len(ids)].float() * factor, hidden.float()
            differences.append(tuple(counted.blank(counted.trim(h)) for h in streams))
        deviation = max(float((x - y).norm() / y.norm()) for x, y in differences)
        deviation = float(self._group.gather(torch.tensor([deviation])).max())
        if not deviation <= PREFIX_TOLERANCE[hidden.dtype]:
            self.progress.say(
                f"note: before the cut, the scaled weights give a stream that differs by "
                f"{deviation:.1e} from the scaled stream; it is computed again"
            )
            return False
        self.cache.scale(factor)
        self._detours.scale(factor)
        self._magnitudes = {p: each * factor for p, each in self._magnitudes.items()}
        self._norms = {p: [n * factor for n in norms] for p, norms in self._norms.items()}
        return True

    def _embed(self) -> list[torch.Tensor]:
        with torch.no_grad(), self.model.outside():
            self.model.prefetch(self.live[0])
            return [self.model.embed(ids) for ids in self._ids]

    def _through(
        self, position: int, batches: Sequence[torch.Tensor], done=lambda: None
    ) -> list[torch.Tensor]:
        """The batches behind the live layer at `position`; calls `done` after each."""
        layer, out = self.live[position], []
        following = self.live[position + 1] if position + 1 < len(self.live) else None
        with torch.no_grad(), self.model.loaded(layer):
            self.model.prefetch(following)
            for hidden in batches:
                out.append(self.model.run_layer(layer, hidden))
                done()
        self._heap.tidy()
        return out

    def _note(self, boundary: int, batches: Sequence[torch.Tensor]) -> None:
        """Keeps the boundary, or what may be asked about it."""
        self.cache.put(boundary, batches)
        if boundary not in self.cache.held:
            self._measure(boundary, batches)

    def _measure(self, boundary: int, batches: Sequence[torch.Tensor]) -> None:
        if boundary not in self._magnitudes:
            each = zip(batches, self._counted, strict=True)
            self._magnitudes[boundary] = torch.cat([magnitudes(*one) for one in each]).cpu()

    def _sweep(
        self, first: int, last: int, description: str
    ) -> Iterator[tuple[int, Sequence[torch.Tensor]]]:
        """Yields ``(boundary, batches)`` from `first` to `last`, from the nearest kept one on."""
        found = self.cache.nearest(first)
        if found is None:
            found = 0, self._embed()
            self._note(*found)
        boundary, batches = found
        if boundary >= first:
            yield boundary, batches
        if boundary >= last:
            return
        steps = (last - boundary) * len(batches)
        with self.progress.bar(steps, description, unit="batch") as bar:
            while boundary < last:
                boundary += 1
                kept = self.cache.get(boundary)
                if kept is None:
                    batches = self._through(boundary - 1, batches, bar.update)
                    self._note(boundary, batches)
                else:
                    batches = kept
                if boundary >= first:
                    yield boundary, batches

"""Moves calibration batches through the live layers, one layer after the other.

All batches go through a layer before the next layer starts. What is asked for is computed once
and remembered until a cut makes it stale; a cut leaves everything in front of it valid.

Boundaries are counted over live layers: boundary p enters the p-th live layer.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

import torch

from prunecomp.calibration.cache import ActivationCache, CacheBudget
from prunecomp.calibration.data import CalibrationSet
from prunecomp.calibration.losses import loss_gradient, sample_losses
from prunecomp.calibration.stats import cosine_sums, summarise
from prunecomp.calibration.view import PlannedModel
from prunecomp.distributed import Group
from prunecomp.errors import NumericError
from prunecomp.plan import PrunePlan
from prunecomp.progress import Progress

#: Tokens that go through a layer at once.
BATCH_TOKENS = 4096
#: How far a scaled stream may be, relative to its norm, from what scaled weights give. In half
#: precision, the weights of each round are rounded anew.
PREFIX_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 4e-3}
#: For what is small enough; `prunecomp.memory` finds a budget for what may not be.
UNLIMITED = CacheBudget(device=1 << 60)
ALONE = Group()


def _mean(sums: torch.Tensor, terms: int) -> float:
    """Mean of all terms of all samples: [samples] float64, each a sum of so many terms.

    Raises:
        NumericError: it is not finite.
    """
    value = float(sums.sum()) / (len(sums) * terms)
    if not math.isfinite(value):
        raise NumericError(
            "the hidden states or losses are not finite; use --dtype bfloat16 or float32"
        )
    return value


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
        ids = calibration.input_ids.to(model.device)
        self._group = group
        self._ids = group.share(ids, batch_size or max(1, BATCH_TOKENS // ids.shape[1]))
        self._single = int(group.gather(torch.tensor([len(self._ids)])).max()) == 1
        first = self._embed()
        self.cache = ActivationCache(
            boundaries=len(model.live) + 1,
            bytes_per_boundary=sum(h.nbytes for h in first),
            budget=cache,
        )
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
            for _ in self._sweep(boundary, boundary, "magnitudes"):
                pass
        return self._group.gather(self._magnitudes[boundary])

    def cosines(self, lag: int, *, axis: str = "channels") -> list[float]:
        """Mean cosine between boundaries p and p + lag, for p = 0 ... live - lag."""
        known = self._cosines.setdefault((lag, axis), {})
        pairs = len(self.live) - lag + 1
        start = next((p for p in range(pairs) if p not in known), None)
        if start is not None:
            window: dict[int, Sequence[torch.Tensor]] = {}
            for boundary, batches in self._sweep(start, len(self.live), "scores"):
                if lag == 1 or not self.cache.holds(boundary):
                    window[boundary] = batches
                p = boundary - lag
                if p >= start:
                    before = window.pop(p, None) or self.cache.get(p)
                    assert before is not None
                    norms = zip(self._norms[p], self._norms[boundary], strict=True)
                    each = zip(before, batches, norms, strict=True)
                    sums = torch.cat([cosine_sums(x, y, n, axis=axis) for x, y, n in each])
                    shape = batches[0].shape
                    known[p] = _mean(
                        self._group.gather(sums), shape[2] if axis == "sequence" else shape[1]
                    )
        return [known[p] for p in range(pairs)]

    def loss(self, *, without: range | None = None, description: str = "loss") -> float:
        """Mean next-token cross entropy in nats, with these live layers (by position) skipped."""
        skipped = range(len(self.live), len(self.live)) if without is None else without
        ((_, batches),) = self._sweep(skipped.start, skipped.start, description)
        for p in range(skipped.stop, len(self.live)):
            batches = self._through(p, batches)
        with self.model.outside():
            ids = zip(batches, self._ids, strict=True)
            losses = [sample_losses(self.model, *each) for each in ids]
        return _mean(self._group.gather(torch.cat(losses)), self._ids[0].shape[1] - 1)

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
            ids = zip(batches, self._ids, strict=True)
            upstream = [loss_gradient(self.model, *each) for each in ids]
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
        return sums

    def advance(self, plan: PrunePlan) -> None:
        """Makes the model that of `plan`, which has one round more, and forgets what is stale.

        The stream up to the cut is what it was, or where the factor was folded in front of it,
        what it was times the factor.
        """
        done = plan.rounds[-1]
        cut = self.live.index(done.removed[0])
        self.model.apply(plan)
        if (
            plan.recipe.fold == "upstream"
            and done.factor != 1.0
            and not self._scale_prefix(cut, done.factor)
        ):
            cut = -1
        self.cache.truncate_after(cut)
        for known in (self._magnitudes, self._norms):
            for b in [b for b in known if b > cut]:
                del known[b]
        for (lag, _), known in self._cosines.items():
            for p in [p for p in known if p + lag > cut]:
                del known[p]

    def _scale_prefix(self, cut: int, factor: float) -> bool:
        """Scales what is known up to the cut instead of computing it again, if that is right.

        It is, but for the eps of the norms and for rounding. Whether these matter is seen on the
        first batch, which runs through the scaled layers.
        """
        if self._exact_prefix or self._single:
            return False  # of a single batch, the check would be the whole work
        ids, deviation = self._ids[0], 0.0
        with torch.no_grad(), self.model.outside():
            hidden = self.model.embed(ids)
        for p in range(cut + 1):
            if p:
                (hidden,) = self._through(p - 1, [hidden])
            if p in self._magnitudes:
                before, after = self._magnitudes[p][: len(ids)] * factor, summarise(hidden)[0].cpu()
                deviation = max(deviation, float((after - before).norm() / after.norm()))
        kept = self.cache.get(cut)
        if kept is not None:
            difference = (kept[0].float() * factor - hidden.float()).norm()
            deviation = max(deviation, float(difference / hidden.float().norm()))
        deviation = float(self._group.gather(torch.tensor([deviation])).max())
        if not deviation <= PREFIX_TOLERANCE[hidden.dtype]:
            self.progress.say(
                f"note: before the cut, the scaled weights give a stream that differs by "
                f"{deviation:.1e} from the scaled stream; it is computed again"
            )
            return False
        self.cache.scale(factor)
        for p, norms in self._norms.items():
            self._magnitudes[p] = self._magnitudes[p] * factor
            self._norms[p] = [each * factor for each in norms]
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
        return out

    def _note(self, boundary: int, batches: Sequence[torch.Tensor]) -> None:
        self.cache.put(boundary, batches)
        if boundary not in self._magnitudes:
            found = [summarise(hidden) for hidden in batches]
            self._magnitudes[boundary] = torch.cat([magnitude for magnitude, _ in found]).cpu()
            self._norms[boundary] = [norms for _, norms in found]

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

"""Moves calibration batches through the live layers, one layer after the other.

All batches go through a layer before the next layer starts. What is asked for is computed once
and remembered until a cut makes it stale; a cut leaves everything in front of it valid.

Boundaries are counted over live layers: boundary p enters the p-th live layer.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence

import psutil
import torch

from prunecomp.calibration.cache import ActivationCache
from prunecomp.calibration.data import CalibrationSet
from prunecomp.calibration.losses import loss_gradient, sample_losses
from prunecomp.calibration.stats import cosine_sums, summarise
from prunecomp.calibration.view import PlannedModel
from prunecomp.errors import NumericError
from prunecomp.plan import PrunePlan
from prunecomp.progress import Progress

#: Tokens that go through a layer at once.
BATCH_TOKENS = 8192


def default_cache_bytes(device: torch.device) -> int:
    """A third of the memory that is available where activations live."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 3
    return psutil.virtual_memory().available // 3


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
    """Statistics of a `PlannedModel` over a `CalibrationSet`."""

    def __init__(
        self,
        model: PlannedModel,
        calibration: CalibrationSet,
        *,
        progress: Progress,
        batch_size: int | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        self.model, self.progress = model, progress
        ids = calibration.input_ids.to(model.device)
        self._ids = ids.split(batch_size or max(1, BATCH_TOKENS // ids.shape[1]))
        first = self._embed()
        self.cache = ActivationCache(
            boundaries=len(model.live) + 1,
            bytes_per_boundary=sum(h.nbytes for h in first),
            budget=default_cache_bytes(model.device) if cache_bytes is None else cache_bytes,
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
        return self._magnitudes[boundary]

    def cosines(self, lag: int, *, axis: str = "channels") -> list[float]:
        """Mean cosine between boundaries p and p + lag, for p = 0 ... live - lag."""
        known = self._cosines.setdefault((lag, axis), {})
        pairs = len(self.live) - lag + 1
        start = next((p for p in range(pairs) if p not in known), None)
        if start is not None:
            window: deque[Sequence[torch.Tensor]] = deque(maxlen=lag + 1)
            for boundary, batches in self._sweep(start, len(self.live), "scores"):
                window.append(batches)
                p = boundary - lag
                if p >= start:
                    norms = zip(self._norms[p], self._norms[boundary], strict=True)
                    each = zip(window[0], batches, norms, strict=True)
                    sums = torch.cat([cosine_sums(x, y, n, axis=axis) for x, y, n in each])
                    shape = batches[0].shape
                    known[p] = _mean(sums, shape[2] if axis == "sequence" else shape[1])
        return [known[p] for p in range(pairs)]

    def loss(self, *, without: range | None = None, description: str = "loss") -> float:
        """Mean next-token cross entropy in nats, with these live layers (by position) skipped."""
        skipped = range(len(self.live), len(self.live)) if without is None else without
        ((_, batches),) = self._sweep(skipped.start, skipped.start, description)
        for layer in self.live[skipped.stop :]:
            batches = [self._forward(layer, h) for h in batches]
        losses = [sample_losses(self.model, *each) for each in zip(batches, self._ids, strict=True)]
        return _mean(torch.cat(losses), self._ids[0].shape[1] - 1)

    def weight_gradients(
        self,
    ) -> Iterator[tuple[int, dict[str, tuple[torch.Tensor, torch.Tensor]]]]:
        """Gradients of the summed per-sample losses, one layer at a time, last layer first.

        Yields ``(original index, {relative name: (weight, gradient)})``; gradients are float32,
        accumulated over all samples. Only one layer's gradients exist at a time: each layer is
        run again from its stored input, with the gradient of its output.
        """
        last = len(self.live)
        ((_, batches),) = self._sweep(last, last, "forward")
        ids = zip(batches, self._ids, strict=True)
        upstream = [loss_gradient(self.model, *each) for each in ids]
        positions = range(last - 1, -1, -1)
        for p in self.progress.track(positions, "gradients", total=last, unit="layer"):
            ((_, batches),) = self._sweep(p, p, "forward")
            layer = self.live[p]
            named = dict(self.model.layer(layer).named_parameters())
            sums = [torch.zeros_like(w, dtype=torch.float32) for w in named.values()]
            for b, hidden in enumerate(batches):
                inputs = [hidden.detach().requires_grad_(), *named.values()]
                for weight in named.values():
                    weight.requires_grad_()
                with torch.enable_grad():
                    out = self.model.run_layer(layer, inputs[0])
                upstream[b], *gradients = torch.autograd.grad(out, inputs, upstream[b])
                for total, gradient in zip(sums, gradients, strict=True):
                    total += gradient
            for weight in named.values():
                weight.requires_grad_(False)
            yield (
                layer,
                {
                    name: (weight, total)
                    for (name, weight), total in zip(named.items(), sums, strict=True)
                },
            )

    def advance(self, plan: PrunePlan) -> None:
        """Makes the model that of `plan`, which has one round more, and forgets what is stale.

        The stream up to the cut is what it was, unless the factor was folded in front of it.
        """
        done = plan.rounds[-1]
        cut = self.live.index(done.removed[0])
        self.model.apply(plan)
        if plan.recipe.fold == "upstream" and done.factor != 1.0:
            cut = -1
        self.cache.truncate_after(cut)
        for known in (self._magnitudes, self._norms):
            for b in [b for b in known if b > cut]:
                del known[b]
        for (lag, _), known in self._cosines.items():
            for p in [p for p in known if p + lag > cut]:
                del known[p]

    def _embed(self) -> list[torch.Tensor]:
        with torch.no_grad():
            return [self.model.embed(ids) for ids in self._ids]

    def _forward(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.model.run_layer(layer, hidden)

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
                previous, kept = batches, self.cache.get(boundary)
                batches = [] if kept is None else kept
                for hidden in previous if kept is None else ():
                    batches.append(self._forward(self.live[boundary - 1], hidden))
                    bar.update()
                if kept is None:
                    self._note(boundary, batches)
                if boundary >= first:
                    yield boundary, batches

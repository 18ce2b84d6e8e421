"""The original and the pruned model side by side, from layer to layer of the source.

Both read one loader of parts: what a layer's files hold is read once, and becomes the layer as it
is and, where the plan edits it, the layer as it is to be. Up to the first layer that differs there
is one stream.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from prunecomp.calibration.collector import Collector
from prunecomp.calibration.sites import Boundary, Original, Site
from prunecomp.calibration.statistics import Value
from prunecomp.calibration.taps import Tap, Tapped
from prunecomp.calibration.view import PlannedModel
from prunecomp.calibration.weights import OUTSIDE


@dataclass(frozen=True)
class Passed:
    """One model's part of a step.

    Attributes:
        before: batches [n, t, d] that enter the layer.
        behind: batches that leave it.
        taps: what was read in the layer, of each batch.
    """

    before: Sequence[torch.Tensor]
    behind: Sequence[torch.Tensor]
    taps: Sequence[Tapped]


@dataclass(frozen=True)
class Step:
    """A layer of the source that both models have passed.

    Attributes:
        layer: its original index.
        start: boundary 0 of the pruned model.
        pruned: None where the pruned model has no such layer.
    """

    layer: int
    original: Passed
    start: Sequence[torch.Tensor]
    pruned: Passed | None


def _tapped(
    model: PlannedModel, layer: int, batches: Sequence[torch.Tensor], taps: Sequence[Tap]
) -> Passed:
    passed = [model.run_tapped(layer, hidden, taps) for hidden in batches]
    return Passed(batches, [out for _, out in passed], [found for found, _ in passed])


def lockstep(
    model: PlannedModel,
    ids: Sequence[torch.Tensor],
    *,
    original_taps: Sequence[Tap] = (),
    pruned_taps: Sequence[Tap] = (),
) -> Iterator[Step]:
    """Moves all batches through the original of `model` and through `model` itself.

    Args:
        ids: batches [n, t].
        original_taps: places in the original's layers, by original index.
        pruned_taps: places in the pruned model's layers, by position among the live ones.
    """
    with torch.no_grad():
        with model.weights.versions(OUTSIDE) as (plain, edited):
            with plain:
                teacher: Sequence[torch.Tensor] = [model.embed(each) for each in ids]
            student = teacher
            if edited is not plain:
                with edited:
                    student = [model.embed(each) for each in ids]
        start = student
        for layer in range(model.checkpoint.num_hidden_layers):
            here = [tap for tap in original_taps if tap.position == layer]
            with model.weights.versions(layer) as (plain, edited):
                with plain:
                    original = _tapped(model, layer, teacher, here)
                pruned = None
                if layer in model.live:
                    position = model.live.index(layer)
                    own = [tap for tap in pruned_taps if tap.position == position]
                    if student is teacher and edited is plain and not own:
                        pruned = original  # nothing differs so far
                    else:
                        with edited:
                            pruned = _tapped(model, layer, student, own)
            yield Step(layer, original, start, pruned)
            teacher = original.behind
            student = student if pruned is None else pruned.behind


def steps_of(live: Sequence[int]) -> Callable[[Site], int]:
    """When the value of a site is known in `lockstep`: behind so many layers of the source."""

    def step(site: Site) -> int:
        if isinstance(site, Original):
            return site.step
        return 0 if site.step == 0 else live[site.step - 1] + 1

    return step


def collect(model: PlannedModel, ids: Sequence[torch.Tensor], collector: Collector) -> None:
    """Takes the statistics of `collector` on the way of both models, see `lockstep`."""
    wanted = set(collector.sites)
    original = {s.site: s for s in wanted if isinstance(s, Original)}
    own = [s for s in wanted if isinstance(s, Tap)]
    before = list(itertools.accumulate(map(len, ids), initial=0))

    def take(step: int, values: Sequence[dict[Site, Value]]) -> None:
        for batch, found in enumerate(values):
            collector.take(
                step, batch, {s: v for s, v in found.items() if s in wanted},
                held=lambda site: None, samples_before=before[batch],
            )  # fmt: skip

    taps = [site for site in original if isinstance(site, Tap)]
    boundary = 0
    for step in lockstep(model, ids, original_taps=taps, pruned_taps=own):
        if step.layer == 0:
            first = zip(step.original.before, step.start, strict=True)
            take(0, [{Original(Boundary(0)): x, Boundary(0): y} for x, y in first])
        values: list[dict[Site, Value]] = []
        for batch, hidden in enumerate(step.original.behind):
            found = {Original(tap): v for tap, v in step.original.taps[batch].items()}
            values.append({Original(Boundary(step.layer + 1)): hidden, **found})
        if step.pruned is not None:
            boundary += 1
            for batch, hidden in enumerate(step.pruned.behind):
                if step.pruned is not step.original:
                    values[batch].update(step.pruned.taps[batch])
                values[batch][Boundary(boundary)] = hidden
        take(step.layer + 1, values)
        if step.layer + 1 >= collector.steps[1]:
            return

"""Moves calibration batches through the live layers, one layer after the other.

All batches go through a layer before the next layer starts. Boundaries are kept as far as there is
room; a cut leaves everything in front of it valid.

Boundaries are counted over live layers: boundary p enters the p-th live layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from prunecomp.calibration.allocation import Heap
from prunecomp.calibration.cache import ActivationCache, CacheBudget
from prunecomp.calibration.collector import Store
from prunecomp.calibration.counted import Counted
from prunecomp.calibration.data import CalibrationSet
from prunecomp.calibration.detours import Detours
from prunecomp.calibration.sites import Boundary, Site
from prunecomp.calibration.statistics import Magnitudes, PerSample, Value
from prunecomp.calibration.taps import Tap
from prunecomp.calibration.view import PlannedModel
from prunecomp.distributed import Group
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


class Streams:
    """The residual stream of a `PlannedModel` over a `CalibrationSet`, and what is kept of it.

    The samples are shared with the processes of `group`. With `exact_prefix`, everything in front
    of a factor that is folded upstream is computed again.
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
        self._batch_size = batch_size
        self._ids = group.share(ids, batch_size)
        whole = Counted.of(calibration.counted)
        self._tokens = int(whole.numbers(calibration.input_ids).sum())
        self._predicted = int(whole.predicted(calibration.input_ids).sum())
        self._counted = whole.shared(
            lambda mask: group.share(mask.to(model.device), batch_size), len(self._ids)
        )
        shares = group.gather(torch.tensor([sum(map(len, self._ids))]))
        self._first = int(shares[: group.rank].sum())
        self._single = int(group.gather(torch.tensor([len(self._ids)])).max()) == 1
        first = self._embed()
        self._width = first[0].shape[-1]
        sizes = {
            "boundaries": len(model.live) + 1,
            "bytes_per_boundary": sum(h.nbytes for h in first),
        }
        self.cache = ActivationCache(**sizes, budget=cache)
        spare = self.cache.spare
        self._at_once, spare = candidates_at_once(spare, resident=model.resident, **sizes)
        self._detours = Detours(**sizes, budget=spare)
        self._store = Store()
        self._note(0, first)

    @property
    def live(self) -> tuple[int, ...]:
        """Original indices of the layers that are left."""
        return self.model.live

    @property
    def conditions(self) -> dict[str, str | int]:
        """How it is run, as far as that may change a rounding."""
        config, device = self.model.model.config, self.model.device
        cuda = device.type == "cuda"
        return {
            "batch_size": self._batch_size,
            "processes": self._group.world,
            "threads": torch.get_num_threads(),
            "attention": str(getattr(config, "_attn_implementation", None)),
            "experts": str(getattr(config, "_experts_implementation", None)),
            "processor": torch.cuda.get_device_name(device) if cuda
            else torch.backends.cpu.get_cpu_capability(),
        }  # fmt: skip

    @property
    def lead(self) -> int:
        """So many tokens at the start of every sample count nowhere; see `Counted`."""
        return self._counted[0].lead

    def boundaries(
        self, first: int = 0, last: int | None = None, *, description: str = "forward"
    ) -> Iterator[tuple[int, Sequence[torch.Tensor]]]:
        """Yields ``(boundary, batches)`` from `first` to `last`, each batch [n, t, d].

        Begins at the nearest boundary that is kept. Nobody may change what is yielded.

        Args:
            last: None for the one that leaves the last layer.
        """
        return self._sweep(first, len(self.live) if last is None else last, description)

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
        self._store.truncate(cut)

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
        known = self._known_sizes()
        differences = []
        for p in range(cut + 1):
            if p:
                (hidden,) = self._through(p - 1, [hidden])
            for statistic, before in known.get(p, ()):
                after = statistic.measure([hidden], counted)
                differences.append((before[: len(ids)].to(after.device) * factor, after))
        kept = self.cache.get(cut)
        if kept is not None:
            streams = kept[0][: len(ids)].float() * factor, hidden.float()
            x, y = (counted.blank(counted.trim(h)) for h in streams)
            differences.append((x, y))
        if not differences:
            return False  # nothing is known that could be scaled
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
        self._store.scale(factor)
        return True

    def _known_sizes(self) -> Mapping[int, Sequence[tuple[PerSample, torch.Tensor]]]:
        """By boundary, statistics that go with the stream's scale, and their first batch."""
        found: dict[int, list[tuple[PerSample, torch.Tensor]]] = {}
        for statistic, state in self._store.states.items():
            if isinstance(statistic, PerSample) and statistic.power == 1:
                (site,) = statistic.sites
                if isinstance(site, Boundary):
                    found.setdefault(site.position, []).append((statistic, state[0]))
        return found

    def _embed(self) -> list[torch.Tensor]:
        with torch.no_grad(), self.model.outside():
            self.model.prefetch(self.live[0])
            return [self.model.embed(ids) for ids in self._ids]

    def _through(
        self,
        position: int,
        batches: Sequence[torch.Tensor],
        done: Callable[[], None] = lambda: None,
        *,
        taps: Sequence[Tap] = (),
        seen: Callable[[int, Mapping[Site, Value]], None] | None = None,
    ) -> list[torch.Tensor]:
        """The batches behind the live layer at `position`; calls `done` after each.

        Args:
            taps: places in the layer that are read.
            seen: called with the number of each batch, with what they read and the boundary behind.
        """
        layer, out = self.live[position], []
        following = self.live[position + 1] if position + 1 < len(self.live) else None
        with torch.no_grad(), self.model.loaded(layer):
            self.model.prefetch(following)
            for number, hidden in enumerate(batches):
                found, behind = self.model.run_tapped(layer, hidden, taps)
                out.append(behind)
                if seen is not None:
                    seen(number, {**found, Boundary(position + 1): behind})
                done()
        self._heap.tidy()
        return out

    def _note(self, boundary: int, batches: Sequence[torch.Tensor]) -> None:
        """Keeps the boundary, or what may be asked about it."""
        self.cache.put(boundary, batches)
        statistic = Magnitudes(Boundary(boundary))
        if boundary not in self.cache.held and statistic not in self._store.states:
            each = zip(batches, self._counted, strict=True)
            self._store.states[statistic] = [statistic.measure([h], c) for h, c in each]

    def _sweep(
        self,
        first: int,
        last: int,
        description: str,
        taps: Mapping[int, Sequence[Tap]] | None = None,
        take: Callable[[int, int, Mapping[Site, Value]], None] | None = None,
    ) -> Iterator[tuple[int, Sequence[torch.Tensor]]]:
        """Yields ``(boundary, batches)`` from `first` to `last`, from the nearest kept one on.

        Args:
            taps: places that are read, by the position of their layer; these layers are run.
            take: called with boundary, batch and values behind each batch of such a layer.
        """
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
                inside = (taps or {}).get(boundary, ())
                boundary += 1
                seen = functools.partial(take, boundary) if inside and take else None
                kept = None if inside else self.cache.get(boundary)
                if kept is None:
                    batches = self._through(
                        boundary - 1, batches, bar.update, taps=inside, seen=seen
                    )
                    self._note(boundary, batches)
                else:
                    batches = kept
                if boundary >= first:
                    yield boundary, batches

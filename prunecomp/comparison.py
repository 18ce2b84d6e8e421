"""Runs a written model beside its source, whose removed layers are skipped by hand.

A few tokens go through the unedited source, layer by layer; where layers were removed, the stream
is multiplied by the plan's factors, and weights that a repair gave new values have these. Each kept
layer of the written model gets what the same layer of the source got, times the one number that the
fold leaves on the stream there, and must give what the layer of the source gives, times that
number; so must the embeddings, and the head its logits. That is the whole model step by step, so
that neither roundings nor a router's choice add up over the depth, and a factor that is missing
shows where it is missing. Nothing here asks which tensors were edited.

Letters: t tokens, d channels. One layer of one model is in memory at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from prunecomp.calibration.view import PlannedModel
from prunecomp.checkpoint.layout import TORCH_DTYPES
from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.checkpoint.sidecar import sources_of
from prunecomp.errors import VerificationError
from prunecomp.fold import repairs_by_hand
from prunecomp.plan import PrunePlan
from prunecomp.progress import Progress

TOKENS = 16
#: Half the distance of neighbouring numbers, relative to the smaller one, by dtype of the files. In
#: float16 twice that, for small scales have fewer digits there.
_ROUNDING = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-10, "BF16": 2.0**-8}
#: What a layer adds may be off by so many roundings, where those weights were rounded that write,
_WRITERS_ROUNDED = 2.5
#: and where those were that read, behind which attention and activations magnify it.
_ALL_ROUNDED = 8.0
#: What is left of a sum in float32, relative to what was added, and to what it was added to.
_COMPUTED, _ADDED = 2.0**-13, 2.0**-21
#: The eps of a norm is no larger than so much of the mean square of what it reads.
_EPS_SHARE = 1e-4


@dataclass(frozen=True)
class Agreement:
    """How far a written model is from what was planned.

    Attributes:
        layers: largest difference of what a layer adds to the stream, relative to it.
        logits: difference of the logits, relative to them.
        computed: the dtype in which layers were computed.
        tokens: how many there were.
        bytes_read: of weights, of both models.
    """

    layers: float
    logits: float
    computed: str
    tokens: int
    bytes_read: int


def _widened(value: Any) -> Any:
    """The value with all floating tensors in it as float32."""
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _widened(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_widened(each) for each in value)
    return value


class _Side(PlannedModel):
    """One of the two models: the stream is float32, and layers are where there is memory for it."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, *, wide: bool) -> None:
        super().__init__(checkpoint, device=torch.device("cpu"), dtype=dtype, resident=False)
        self._dtype, self._wide = dtype, wide

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = super().embed(input_ids)
        if self._wide:
            shape = tuple(input_ids.shape)
            self._calls[shape] = [_widened(call) for call in self._calls[shape]]
        return hidden.float()

    def run_layer(self, original: int, hidden: torch.Tensor) -> torch.Tensor:
        if not self._wide:
            return super().run_layer(original, hidden.to(self._dtype)).float()
        with self.loaded(original):
            self.layer(original).float()
            return super().run_layer(original, hidden)

    def logits(self, hidden: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        return super().logits(hidden.to(self._dtype), input_ids).float()

    @property
    def eps(self) -> float:
        """The largest eps of its norms."""
        found = [
            value for module in self.model.modules() for key, value in vars(module).items()
            if "eps" in key and isinstance(value, float)
        ]  # fmt: skip
        return max(found, default=0.0)


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The dtype of most of what is not quantised."""
    sizes: dict[str, int] = {}
    for name, spec in checkpoint.index.items():
        if name not in checkpoint.held and spec.dtype in {"F32", "F16", "BF16"}:
            sizes[spec.dtype] = sizes.get(spec.dtype, 0) + spec.nbytes
    return TORCH_DTYPES[max(sizes, key=lambda key: sizes[key], default="F32")]


def _is_wide(checkpoint: Checkpoint, limit: int | None) -> bool:
    """Whether the largest layer fits into memory in float32, beside what it is made from."""
    sizes: dict[int, int] = {}
    for name in checkpoint.dense:
        where = checkpoint.family.layer_of(name)
        if where is not None:
            sizes[where[0]] = sizes.get(where[0], 0) + math.prod(checkpoint.dense.shape(name))
    free = psutil.virtual_memory().available
    if limit is not None:
        free = min(free, limit - psutil.Process().memory_info().rss)
    return 8 * max(sizes.values()) <= free


def _tokens(side: _Side) -> torch.Tensor:
    """Ids [1, t] of tokens from all over the vocabulary, with embeddings that are not small."""
    context = getattr(side.model.config, "max_position_embeddings", None) or TOKENS
    count = min(TOKENS, context, side.vocabulary)
    candidates = torch.linspace(0, side.vocabulary - 1, min(4 * count, side.vocabulary)).long()
    norms = side.embed(candidates.view(-1, 1)).flatten(1).norm(dim=1)
    return candidates[norms.topk(count).indices.sort().values].view(1, -1)


def _cuts(plan: PrunePlan) -> dict[int, float]:
    """What the stream is multiplied by in front of each kept layer, and (-1) behind the last."""
    found = dict.fromkeys((*plan.kept, -1), 1.0)
    for each in plan.rounds:
        behind = next((i for i in plan.kept if i > each.removed[-1]), -1)
        found[behind] *= each.factor
    return found


def _left(plan: PrunePlan, scale: float) -> float:
    """What the fold leaves on the stream of the written model where the cuts so far made `scale`.

    Downstream, the stream stays as it is in front of the first cut; upstream, as it is in the end.
    """
    total = math.prod(each.factor for each in plan.rounds)
    return total / scale if plan.recipe.fold == "upstream" else 1.0 / scale


def _rounding(written: Checkpoint, layer: int | None) -> float:
    """The coarsest rounding of what a layer (None: what is outside of them) stores."""
    dtypes = {
        spec.dtype for name, spec in written.index.items()
        if (written.family.layer_of(name) or (None,))[0] == layer
    }  # fmt: skip
    return max((_ROUNDING[dtype] for dtype in dtypes if dtype in _ROUNDING), default=2.0**-24)


def _offset(written: Checkpoint, layer: int) -> float:
    """By how much a rounding grows where ``1 + w`` is stored as w."""
    ratios = [1.0]
    for relative in written.family.writers:
        name = written.family.tensor_name(layer, relative)
        if relative in written.family.unit_offset and name in written.dense:
            weight = written.dense[name].double()
            ratios.append(float(weight.norm() / (1 + weight).norm().clamp_min(1e-12)))
    return max(ratios)


class _Comparison:
    """The two models, and the largest differences so far."""

    def __init__(
        self, source: Checkpoint, written: Checkpoint, plan: PrunePlan, wide: bool
    ) -> None:
        self.plan, self.written_files = plan, written
        dtype, other = _stored_dtype(source), _stored_dtype(written)
        changed = other != dtype
        if wide and changed:  # tables that models compute, of rotary embeddings, are rounded to it
            dtype = other = torch.float32
        self.source = _Side(source, dtype, wide=wide)
        repairs = repairs_by_hand(plan, source.family, tied=source.tied)
        self.source.weights.apply(repairs, sources_of(source, plan))
        self.written = _Side(written, other, wide=wide)
        # Layers that read the stream without a norm have readers that are scaled, and so rounded.
        rounded = _ALL_ROUNDED if changed or source.family.readers else _WRITERS_ROUNDED
        self._margin = rounded if wide else _ALL_ROUNDED
        self._computed = (_COMPUTED, _ADDED) if wide else (_rounding(source, 0), 4 * 2.0**-8)
        self.layers = 0.0

    def _enlarged(self, hidden: torch.Tensor) -> torch.Tensor:
        """The stream, so large that no norm's eps matters, in either model, behind any cut.

        Where eps matters, no fold of a factor into weights is exact; whether all factors are there
        can be told all the same.
        """
        scale, smallest = 1.0, 1.0
        for factor in _cuts(self.plan).values():
            scale *= factor
            smallest = min(smallest, scale, scale * _left(self.plan, scale))
        smallest = min(smallest, _left(self.plan, 1.0))
        wanted = math.sqrt(max(self.source.eps, self.written.eps) / _EPS_SHARE) / smallest
        least = float(hidden.square().mean(-1).min().sqrt())
        return hidden * max(1.0, wanted / least) if least else hidden

    def embeddings(self, ids: torch.Tensor) -> torch.Tensor:
        """Compares them, and returns the stream [1, t, d] that leaves those of the source."""
        hidden, left = self.source.embed(ids), _left(self.plan, 1.0)
        found, expected = self.written.embed(ids), hidden * left
        tolerance = 2 * _WRITERS_ROUNDED * _rounding(self.written_files, None) + _COMPUTED
        error = _relative(found - expected, expected)
        if not error <= tolerance:
            raise _differs("the embeddings", error, tolerance)
        return self._enlarged(hidden)

    def layer(self, position: int, original: int, hidden: torch.Tensor, left: float) -> Any:
        """Compares a layer on `hidden` [1, t, d], and returns what leaves it in the source."""
        after = self.source.run_layer(original, hidden)
        found = self.written.run_layer(position, hidden * left)
        added = (after - hidden).double().norm() * left
        slack = self._computed[1] * hidden.double().norm() * left
        error = float(((found - after * left).double().norm() - slack).clamp_min(0) / added)
        tolerance = (
            self._margin * self._rounding(position, original)
            * _offset(self.written_files, position) + self._computed[0]
        )  # fmt: skip
        if added and not error <= tolerance:
            raise _differs(
                f"outputs of layer {position} (layer {original} of the source)", error, tolerance
            )
        self.layers = max(self.layers, error if added else 0.0)
        return after

    def _rounding(self, position: int, original: int) -> float:
        """Of a layer that is kept; in the source, new values are rounded to its own dtype."""
        found = _rounding(self.written_files, position)
        names = (weight for r in self.plan.rounds for weight in r.repair.weights)
        located = map(self.source.checkpoint.family.layer_of, names)
        if any(where is not None and where[0] == original for where in located):
            found = max(found, _rounding(self.source.checkpoint, original))
        return found

    def head(self, ids: torch.Tensor, hidden: torch.Tensor, left: float) -> float:
        """Compares the logits behind `hidden`, and returns their difference."""
        expected = self.source.logits(hidden, ids)
        found = self.written.logits(hidden * left, ids)
        error, rounding = _relative(found - expected, expected), _rounding(self.written_files, None)
        if not error <= _ALL_ROUNDED * rounding + _COMPUTED:
            raise _differs("the logits", error, _ALL_ROUNDED * rounding + _COMPUTED)
        return error


def _relative(difference: torch.Tensor, expected: torch.Tensor) -> float:
    return float(difference.double().norm() / expected.double().norm().clamp_min(1e-300))


def _differs(what: str, error: float, tolerance: float) -> VerificationError:
    return VerificationError(
        f"the written model is not the source with layers skipped: {what} differ by {error:.2g} "
        f"(at most {tolerance:.2g}); where factors are far from one, use --fold downstream; else "
        "please report it (--no-check writes it all the same)"
    )


@torch.no_grad()
def compare_with_source(
    source: Checkpoint,
    written: Checkpoint,
    plan: PrunePlan,
    *,
    limit: int | None = None,
    progress: Progress,
) -> Agreement:
    """Compares the model of `plan` with its source on a few tokens; reads the weights of both.

    Args:
        limit: bytes of memory for this process; None for what is free. Where not even a layer fits
            into that in float32, layers are computed as they are stored, and less is seen.

    Raises:
        VerificationError: it is another model.
    """
    wide = _is_wide(source, limit)
    both = _Comparison(source, written, plan, wide)
    ids, cuts = _tokens(both.source), _cuts(plan)
    hidden, scale = both.embeddings(ids), 1.0
    kept = progress.track(plan.kept, "checking", total=len(plan.kept), unit="layer")
    for position, original in enumerate(kept):
        hidden, scale = hidden * cuts[original], scale * cuts[original]
        hidden = both.layer(position, original, hidden, _left(plan, scale))
    hidden, scale = hidden * cuts[-1], scale * cuts[-1]
    logits = both.head(ids, hidden, _left(plan, scale))
    gone = sum(
        spec.nbytes for name, spec in source.index.items()
        if (source.family.layer_of(name) or (plan.kept[0],))[0] not in plan.kept
    )  # fmt: skip
    return Agreement(
        layers=both.layers, logits=logits,
        computed="float32" if wide else str(_stored_dtype(source)).removeprefix("torch."),
        tokens=ids.shape[1], bytes_read=source.index.nbytes - gone + written.index.nbytes,
    )  # fmt: skip

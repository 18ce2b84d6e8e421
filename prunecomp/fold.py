"""Compiles a plan into one edit per written tensor.

The same edits are applied to the model in memory while a plan is made, and to the stream of
tensors that is written, so what was measured is what is written.

Two exact places for the factor s of a cut, in a decoder whose every reader of the stream is
normed (a norm does not see a positive factor, but for its eps):

* **upstream**, as published (Prune&Comp, arXiv 2507.18212, section 3.3): everything that wrote to
  the stream before the cut is multiplied by s. A tied head would be multiplied too; the final
  norm's weight is divided by the same product, so the logits stay right and the tie is kept.
* **downstream**: everything that writes to the stream after the cut is divided by s. The
  embedding is not touched, so the eps of the first norms, where the stream is smallest, keeps
  its meaning, and the layers before the cut are bit for bit the original ones.

A file that holds a tied head a second time has it scaled like the embedding.

Where a sub-block ends in a norm, that norm is the writer; where it starts without one, its
projections read a stream of another scale and are multiplied by the inverse. A norm that
multiplies by 1 + w gets ``s (1 + w) - 1``.

A cut behind which nothing writes any more needs no factor downstream: only the final norm reads
the stream there.

The factor of a quantised weight goes to its scale; its codes are copied.

A repair may give a weight a new value, from its sidecar or from several tensors. Factors of later
rounds are applied to that value; those of earlier ones and of its own are in it already.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch

from prunecomp.errors import CheckpointError, NumericError, PlanError, PruneCompError, UsageError
from prunecomp.families.base import ModelFamily
from prunecomp.plan import PrunePlan, PruneRound
from prunecomp.quantization.base import Held, Spec
from prunecomp.rounds import Repair

_HALF = {torch.bfloat16, torch.float16}


def _ends(tensor: torch.Tensor) -> tuple[float, float]:
    """Smallest and largest value; NaN is both."""
    if not tensor.numel():
        return 0.0, 0.0
    if tensor.dtype.itemsize == 1:
        tensor = tensor.to(torch.float32)
    # isfinite itself is far slower
    low, high = torch.aminmax(tensor)
    return low.item(), high.item()


def _vanishes(before: torch.Tensor, after: torch.Tensor, peak: float) -> bool:
    """Whether values that their dtype held exactly are all too small for that now, or zero.

    Args:
        peak: largest absolute value of `after`.
    """
    if not after.is_floating_point() or peak >= torch.finfo(after.dtype).smallest_normal:
        return False
    return max(map(abs, _ends(before))) >= torch.finfo(before.dtype).smallest_normal


#: Reads a tensor by its name in the source, or by its key in a sidecar; of an elementwise edit,
#: it may be a piece of the tensor.
Read = Callable[[str], torch.Tensor]


class Edit(Protocol):
    """How one tensor of the written checkpoint is made.

    Attributes:
        target: its name in the written checkpoint.
        replaces: the tensor of the source in whose place it stands, and whose shape and dtype it
            has.
        sources: what it is made of: names in the source, or keys of sidecars.
        elementwise: whether a piece of the tensor can be made from that piece of its only source.
    """

    target: str
    elementwise: ClassVar[bool]

    @property
    def replaces(self) -> str: ...

    @property
    def sources(self) -> tuple[str, ...]: ...

    @property
    def is_identity(self) -> bool:
        """Whether its value is that of its only source."""
        ...

    @property
    def changes(self) -> bool:
        """Whether its value is another than that of the tensor that it replaces."""
        ...

    def output_spec(self, specs: Mapping[str, Spec]) -> Spec:
        """Shape and dtype of the result; `specs` are those of the source's tensors."""
        ...

    def apply(self, read: Read, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The value, in `dtype` (None: that of its source); what is read is not changed."""
        ...


@dataclass(frozen=True)
class TensorEdit:
    """Takes one tensor and multiplies it by `scale` (float64).

    With `unit_offset` it is not the tensor w that is multiplied but 1 + w. The result stands in
    the place of `like`; None is the tensor that is taken.
    """

    source: str
    target: str
    scale: float = 1.0
    unit_offset: bool = False
    like: str | None = None
    elementwise: ClassVar[bool] = True

    @property
    def replaces(self) -> str:
        return self.source if self.like is None else self.like

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    @property
    def is_identity(self) -> bool:
        return self.scale == 1.0

    @property
    def changes(self) -> bool:
        return self.scale != 1.0 or self.replaces != self.source

    def output_spec(self, specs: Mapping[str, Spec]) -> Spec:
        return specs[self.replaces]

    def apply(self, read: Read, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Multiplies in fp32 from the source value and rounds once to `dtype`.

        torch multiplies a half-precision tensor by a number in fp32 as well, ten times as fast.

        Raises:
            NumericError: the result overflows the dtype, or vanishes in it.
        """
        tensor = read(self.source)
        dtype = tensor.dtype if dtype is None else dtype
        if self.is_identity:
            if dtype == tensor.dtype:
                return tensor
            scaled = tensor.to(dtype)
        elif dtype == tensor.dtype and dtype in _HALF and not self.unit_offset:
            scaled = tensor * self.scale
        else:
            value = tensor.to(torch.float32) * self.scale
            if self.unit_offset:
                value += self.scale - 1.0
            scaled = value.to(dtype)
        low, high = _ends(scaled)
        exact = self.is_identity or self.unit_offset
        if not (math.isfinite(low) and math.isfinite(high)):
            raise self._reason(tensor, dtype)
        if not exact and _vanishes(tensor, scaled, max(abs(low), abs(high))):
            raise NumericError(
                f"{self.replaces}: times {self.scale:.6g} is too small for {dtype} (largest value "
                f"{max(map(abs, _ends(tensor))):.6g}); use bfloat16, or make the plan again if it "
                "was edited"
            )
        return scaled

    def _reason(self, tensor: torch.Tensor, dtype: torch.dtype) -> PruneCompError:
        """Why the value is not finite."""
        if not all(map(math.isfinite, _ends(tensor))):
            return CheckpointError(
                f"{self.replaces} holds NaN or infinity, so the model gives no numbers; restore "
                "the file, or repeat the merge or conversion that made it"
            )
        narrow = torch.finfo(dtype).max < torch.finfo(torch.bfloat16).max
        advice = "use --fold downstream or bfloat16" if narrow else "no dtype holds it; plan anew"
        return NumericError(
            f"{self.replaces}: times {self.scale:.6g} does not fit {dtype} (largest value "
            f"{tensor.to(torch.float32).abs().max().item():.6g}); {advice}"
        )


@dataclass(frozen=True)
class JoinedEdit:
    """Takes several tensors, of any shapes, that a repair makes one of; then as `TensorEdit`."""

    sources: tuple[str, ...]
    target: str
    replaces: str
    repair: Repair
    scale: float = 1.0
    unit_offset: bool = False
    elementwise: ClassVar[bool] = False
    is_identity: ClassVar[bool] = False
    changes: ClassVar[bool] = True

    def output_spec(self, specs: Mapping[str, Spec]) -> Spec:
        return specs[self.replaces]

    def apply(self, read: Read, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The repair's value, scaled and rounded once.

        Raises:
            NumericError: the result overflows the dtype.
        """
        joined = self.repair.value(self.replaces, *map(read, self.sources))
        scaled = TensorEdit(self.replaces, self.target, self.scale, self.unit_offset)
        return scaled.apply(lambda name: joined, dtype)


def choose_fold(fold: str, family: ModelFamily, *, tied: bool) -> str:
    """Resolves ``auto`` to the family's preferred place, before anything is measured.

    Raises:
        UsageError: the model cannot be folded there.
    """
    # Upstream, a tied head is scaled with the embedding; only a final norm's weight can undo it.
    scaled_head = tied and family.embedding in family.embeddings
    possible = [
        f for f in family.folds if f == "downstream" or family.final_norm or not scaled_head
    ]
    if fold == "auto":
        return possible[0]
    if fold not in possible:
        raise UsageError(
            f"--fold {fold}: not possible for this {family.model_type} model "
            f"(choose from {', '.join(possible)}, auto)"
        )
    return fold


def layer_scale(family: ModelFamily, plan: PrunePlan, layer: int, relative: str) -> float:
    """The factor of a layer's tensor in the published, upstream form."""
    return plan.scale_before(layer) ** family.power(relative)


def _scale(family: ModelFamily, plan: PrunePlan, name: str, *, tied: bool) -> float:
    """The factor of one source tensor under the plan's fold."""
    upstream = plan.recipe.fold == "upstream"
    located = family.layer_of(name)
    if located is not None:
        layer, relative = located
        power = family.power(relative)
        if not power:
            return 1.0
        before = plan.scale_before(layer)
        return (before if upstream else before / plan.total_scale) ** power
    if not upstream:
        return 1.0
    tied = tied and family.embedding in family.embeddings
    if name in family.embeddings or (tied and name == family.head):
        return plan.total_scale
    if tied and name in family.final_norm:
        return 1.0 / plan.total_scale
    return 1.0


def _reads_scaled(family: ModelFamily, name: str) -> bool:
    """Whether a weight that is scaled is scaled because of what it reads."""
    located = family.layer_of(name)
    return name == family.head if located is None else family.power(located[1]) < 0


def compile_edits(
    plan: PrunePlan,
    family: ModelFamily,
    names: Iterable[str],
    *,
    tied: bool,
    held: Mapping[str, Held] | None = None,
) -> tuple[Edit, ...]:
    """One edit per tensor that is written, in the order of `names`; removed layers have none.

    Args:
        plan: with original layer indices.
        family: of the source checkpoint.
        names: all tensors of the source checkpoint.
        tied: whether the head shares the embedding's weight.
        held: what those tensors are that belong to a quantised weight.

    Raises:
        PlanError: a repair gives a new value to a quantised weight.
    """
    position = {layer: new for new, layer in enumerate(plan.kept)}
    later = [replace(plan, rounds=plan.rounds[n:]) for n in range(len(plan.rounds) + 1)]
    edits: list[Edit] = []
    for name in names:
        target = relative = name
        located = family.layer_of(name)
        if located is not None:
            layer, relative = located
            if layer not in position:
                continue
            target = family.tensor_name(position[layer], relative)
        shared = tied and name == family.head  # in the file a second time
        number = plan.rewritten(weight := family.embedding if shared else name)
        behind = later[0 if number is None else number + 1]
        part = (held or {}).get(name)
        if part is None:
            scale = _scale(family, behind, name, tied=tied)
        else:
            scale = _scale(family, behind, part.weight, tied=tied)
            scale = part.factor(scale, reads=_reads_scaled(family, part.weight))
        offset = scale != 1.0 and relative in family.unit_offset
        if number is None:
            edits.append(TensorEdit(name, target, scale, offset))
            continue
        if part is not None:
            raise PlanError(_quantised(number, name))
        repair = plan.rounds[number].repair
        edits.append(_rewritten(repair, weight, name, target, scale, offset))
    return tuple(edits)


def _rewritten(
    repair: Repair, weight: str, name: str, target: str, scale: float, offset: bool
) -> Edit:
    """Puts the new value of `weight` in the place of `name`."""
    sources = repair.sources(weight)
    if len(sources) == 1:
        return TensorEdit(sources[0], target, scale, offset, name)
    return JoinedEdit(sources, target, name, repair, scale, offset)


def repairs_by_hand(plan: PrunePlan, family: ModelFamily, *, tied: bool) -> tuple[Edit, ...]:
    """New values of weights as they are where no factor is folded: in the source, by its names."""
    edits, weights = [], {weight for r in plan.rounds for weight in r.repair.weights}
    for weight in sorted(weights):
        number = plan.rewritten(weight)
        assert number is not None
        before = replace(plan, rounds=plan.rounds[: number + 1])
        scale = 1.0 / _scale(family, before, weight, tied=tied)
        relative = (family.layer_of(weight) or (0, weight))[1]
        offset = scale != 1.0 and relative in family.unit_offset
        repair = plan.rounds[number].repair
        edits.append(_rewritten(repair, weight, weight, weight, scale, offset))
    return tuple(edits)


def _quantised(number: int, name: str) -> str:
    return (
        f"round {number + 1} of the plan gives {name} a new value, but it is quantised; make the "
        "plan for the unquantised model, then quantise the result"
    )


def unchanged_until(done: PruneRound, family: ModelFamily, live: tuple[int, ...]) -> int:
    """The last boundary up to which a round leaves the stream as it was; -1 where there is none.

    A factor that is folded in front of the cut is left out of account: it scales the stream.

    Args:
        live: layers that were there before the round.
    """
    last = live.index(done.removed[0])
    for weight in done.repair.weights:
        located = family.layer_of(weight)
        if located is None:
            last = last if weight in (*family.final_norm, family.head) else -1
        elif located[0] in live:
            last = min(last, live.index(located[0]))
    return last

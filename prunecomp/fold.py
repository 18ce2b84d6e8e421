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

A cut behind which nothing writes any more needs no factor downstream: only the final norm reads
the stream there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch

from prunecomp.errors import NumericError, UsageError
from prunecomp.families.base import ModelFamily
from prunecomp.plan import PrunePlan


class Edit(Protocol):
    """What happens to one tensor on its way from the source to the written checkpoint.

    Scaling is one kind; a compensator that rewrites a whole matrix adds another, with the same
    three members.
    """

    source: str
    target: str

    @property
    def is_identity(self) -> bool:
        """True where the bytes are copied as they are."""
        ...

    def apply(self, tensor: torch.Tensor) -> torch.Tensor:
        """The new value, in the dtype and shape of `tensor`, which is not changed."""
        ...


@dataclass(frozen=True)
class TensorEdit:
    """Renames a tensor and multiplies it by `scale` (float64)."""

    source: str
    target: str
    scale: float = 1.0

    @property
    def is_identity(self) -> bool:
        return self.scale == 1.0

    def apply(self, tensor: torch.Tensor) -> torch.Tensor:
        """Multiplies in fp32 from the source value and rounds once to the tensor's dtype.

        Raises:
            NumericError: the result overflows the dtype.
        """
        if self.is_identity:
            return tensor
        scaled = (tensor.to(torch.float32) * self.scale).to(tensor.dtype)
        if not torch.isfinite(scaled).all():
            raise NumericError(
                f"{self.source}: times {self.scale:.6g} does not fit {tensor.dtype} (largest "
                f"value {tensor.abs().max().item():.6g}); use --fold downstream or convert the "
                "model to bfloat16 first"
            )
        return scaled


def choose_fold(fold: str, family: ModelFamily) -> str:
    """Resolves ``auto`` to the family's preferred place, before anything is measured.

    Raises:
        UsageError: the family cannot be folded there.
    """
    if fold == "auto":
        return family.folds[0]
    if fold not in family.folds:
        raise UsageError(
            f"--fold {fold}: not possible for {family.model_type} "
            f"(choose from {', '.join(family.folds)}, auto)"
        )
    return fold


def _scale(family: ModelFamily, plan: PrunePlan, name: str, *, tied: bool) -> float:
    """The factor of one source tensor under the plan's fold."""
    upstream = plan.recipe.fold == "upstream"
    located = family.layer_of(name)
    if located is not None:
        layer, relative = located
        if relative not in family.writers:
            return 1.0
        before = plan.scale_before(layer)
        return before if upstream else before / plan.total_scale
    if not upstream:
        return 1.0
    if name in family.embeddings or (tied and name == family.head):
        return plan.total_scale
    if tied and name in family.final_norm:
        return 1.0 / plan.total_scale
    return 1.0


def compile_edits(
    plan: PrunePlan, family: ModelFamily, names: Iterable[str], *, tied: bool
) -> tuple[TensorEdit, ...]:
    """One edit per tensor that is written, in the order of `names`; removed layers have none.

    Args:
        plan: with original layer indices.
        family: of the source checkpoint.
        names: all tensors of the source checkpoint.
        tied: whether the head shares the embedding's weight.
    """
    position = {layer: new for new, layer in enumerate(plan.kept)}
    edits = []
    for name in names:
        target = name
        located = family.layer_of(name)
        if located is not None:
            layer, relative = located
            if layer not in position:
                continue
            target = family.tensor_name(position[layer], relative)
        edits.append(TensorEdit(name, target, _scale(family, plan, name, tied=tied)))
    return tuple(edits)

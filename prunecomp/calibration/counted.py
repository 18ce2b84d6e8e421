"""Which tokens of a sample enter means and losses.

What a window begins with (a BOS is a massive outlier in many models) and what it is filled up with
count nowhere: not in a mean over tokens, and not as tokens that are to be predicted. The model
reads them all the same; the token behind the prefix is predicted from it. This module is the only
place that knows how they are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Counted:
    """Which of a batch's tokens [n, t] count.

    Attributes:
        lead: so many at the start of every sample do not, and are cut off by slicing.
        mask: [n, t - lead] bool, of the others; None where all of them count, which costs nothing.
    """

    lead: int = 0
    mask: torch.Tensor | None = None

    @classmethod
    def of(cls, counted: torch.Tensor) -> Counted:
        """From a mask [n, t] bool over all tokens."""
        some = counted.any(dim=0)
        lead = int(some.int().argmax()) if some.any() else counted.shape[1]
        rest = counted[:, lead:]
        return cls(lead, None if rest.all() else rest)

    def shared(
        self, share: Callable[[torch.Tensor], Sequence[torch.Tensor]], batches: int
    ) -> list[Counted]:
        """The same by batch: `share` cuts samples into batches, of which there are so many."""
        if self.mask is None:
            return [self] * batches
        return [Counted(self.lead, mask) for mask in share(self.mask)]

    def first(self, samples: int) -> Counted:
        """Of the first so many samples."""
        return Counted(self.lead, None if self.mask is None else self.mask[:samples])

    def trim(self, values: torch.Tensor) -> torch.Tensor:
        """[n, t, ...] -> [n, t - lead, ...], a view."""
        return values[:, self.lead :]

    def blank(
        self, values: torch.Tensor, where: tuple[slice, slice] = (slice(None), slice(None))
    ) -> torch.Tensor:
        """`values`, changed in place: zero for tokens that do not count.

        Args:
            values: [n, t - lead] or [n, t - lead, d], or what is at `where` of that.
        """
        if self.mask is None:
            return values
        skipped = ~self.mask[where]
        return values.masked_fill_(skipped[..., None] if values.ndim == 3 else skipped, 0)

    def numbers(self, ids: torch.Tensor) -> torch.Tensor:
        """How many tokens of each sample count, of a batch [n, t]: [n] int64."""
        if self.mask is None:
            return torch.full((len(ids),), ids.shape[1] - self.lead, device=ids.device)
        return self.mask.sum(dim=1)

    def first_target(self) -> int:
        """The first position whose token may be predicted; the very first token never is."""
        return max(self.lead, 1)

    def targets(self, where: slice) -> Counted:
        """The same for the tokens at these positions alone, all behind `lead`."""
        if self.mask is None:
            return EVERY
        return Counted(0, self.mask[:, where.start - self.lead : where.stop - self.lead])

    def predicted(self, ids: torch.Tensor) -> torch.Tensor:
        """How many tokens of each sample are predicted, of a batch [n, t]: [n] int64."""
        if self.mask is None:
            terms = ids.shape[1] - self.first_target()
            return torch.full((len(ids),), terms, device=ids.device)
        return self.mask[:, self.first_target() - self.lead :].sum(dim=1)


#: All tokens count.
EVERY = Counted()

"""The whole choice, naively: every round builds the model as it then is and measures it anew."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tests.oracles.metrics import scores as metric_scores
from tests.oracles.stream import boundaries, layers_of, magnitude_factor
from tests.oracles.surgery import by_hand, cut, scale_upstream


@dataclass(frozen=True)
class Round:
    """One cut: original indices, factor, and the scores of the candidates by first layer."""

    removed: tuple[int, ...]
    factor: float
    scores: dict[int, float]

    @property
    def margin(self) -> float:
        """How far the best candidate is ahead of the next, relative to the spread of scores."""
        ranked = sorted(self.scores.values())
        spread = ranked[-1] - ranked[0]
        return (ranked[1] - ranked[0]) / spread if len(ranked) > 1 and spread else 1.0


def prune(
    model,
    ids: torch.Tensor,
    *,
    metric: str,
    strategy: str,
    compensation: str,
    count: int,
    protect: tuple[int, int] = (0, 0),
    form: str = "upstream",
    counted: torch.Tensor | None = None,
) -> list[Round]:
    """Removes `count` layers from a copy of `model`.

    Args:
        strategy: ``iterative`` scores before every round; ``one-shot`` only once, before the
            first; each factor is measured on the model as it then is.
        form: where factors go: ``upstream``, as published, or ``explicit``, a multiplication of
            the stream at the cut (not for ``ppl``, whose `cut` would take the scaling along).
        counted: which tokens enter means and losses, [n, t] bool; None for all.
    """
    assert form == "upstream" or metric != "ppl"
    depth = len(layers_of(model))
    live, rounds = list(range(depth)), list[Round]()
    width = count if metric.startswith("cl") else 1
    current, ranking = model, None
    while depth - len(live) < count:
        if ranking is None or strategy == "iterative":
            values = metric_scores(metric, current, ids, width, counted)
            ranking = {live[p]: value for p, value in enumerate(values)}
        allowed = {
            live[p]: ranking[live[p]]
            for p in range(len(live) - width + 1)
            if live[p] >= protect[0] and live[p + width - 1] < depth - protect[1]
        }
        first = live.index(min(allowed, key=allowed.get))
        factor = 1.0
        if compensation == "magnitude":
            factor = _factor(current, ids, first, first + width, counted)
        rounds.append(Round(tuple(live[first : first + width]), factor, allowed))
        del live[first : first + width]
        if form == "upstream":
            current = cut(current, range(first, first + width))
            scale_upstream(current, first, factor)
        else:
            current = by_hand(model, [(r.removed, r.factor) for r in rounds], "explicit")
    return rounds


def _factor(model, ids: torch.Tensor, first: int, last: int, counted=None) -> float:
    """Factor of the span of positions first ... last-1.

    An explicit scaling in front of layer `first` is inside that layer's module, so the hidden
    state that enters it is multiplied here; one in front of layer `last` is not part of the span.
    """
    h = boundaries(model, ids)
    # transformers notes the stream of the first layer inside that module, so behind the scaling
    entering = getattr(layers_of(model)[first], "s", 1.0) if first else 1.0
    return magnitude_factor(h[first] * entering, h[last], counted)

"""Mag+: how large a layer's weights are."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prunecomp.calibration.needs import Need
from prunecomp.calibration.runner import Runner
from prunecomp.fold import layer_scale
from prunecomp.plan import PrunePlan


class Magnitude:
    """``sum |w|`` over the layer's weights; the lowest goes. Biases are not weights.

    Source: Shortened LLaMA, arXiv 2402.02834, section 3.2, with its rule that the first four and
    the last two layers stay. The sum depends on where a factor is folded, although the model's
    function does not; it is taken in the published form, in which all residual writers before
    a cut are multiplied by its factor, so that a plan does not depend on ``--fold``.
    """

    summary = "sum of |w| over a layer's weights (Shortened LLaMA)"
    protect = (4, 2)
    block = False
    needs = Need.NOTHING

    def scores(
        self, runner: Runner, plan: PrunePlan, positions: Sequence[int], width: int
    ) -> list[float]:
        checkpoint = runner.model.checkpoint
        dense = checkpoint.dense
        totals = dict.fromkeys(runner.live, 0.0)
        for name in dense:
            located = checkpoint.family.layer_of(name)
            if located is None or located[0] not in totals or name.endswith("bias"):
                continue
            scale = layer_scale(checkpoint.family, plan, *located)
            total = dense[name].abs().sum(dtype=torch.float64)
            totals[located[0]] += scale * float(total)
        return [sum(totals[i] for i in runner.live[p : p + width]) for p in positions]


METRIC = Magnitude()

"""Taylor+: how much the loss changes, to first order, when a layer's weights go to zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prunecomp.calibration.needs import Need
from prunecomp.calibration.runner import Runner
from prunecomp.plan import PrunePlan


class Taylor:
    """``sum |w * dLoss/dw|`` over the layer's weights; the lowest goes. Biases are not weights.

    Gradients are accumulated over all samples, in fp32, before the absolute value is taken.

    Source: Shortened LLaMA, arXiv 2402.02834, equation 2, with its rule that the first four and
    the last two layers stay.
    """

    summary = "sum of |w * dLoss/dw| over a layer's weights (Shortened LLaMA)"
    protect = (4, 2)
    block = False
    needs = Need.GRADIENTS

    def scores(
        self, runner: Runner, plan: PrunePlan, positions: Sequence[int], width: int
    ) -> list[float]:
        totals: dict[int, float] = {}
        wanted = {layer for p in positions for layer in runner.live[p : p + width]}
        for layer, weights in runner.weight_gradients(wanted):
            totals[layer] = sum(
                float((weight.float() * gradient).abs().sum(dtype=torch.float64))
                for name, (weight, gradient) in weights.items()
                if not name.endswith("bias")
            )
        return [sum(totals[i] for i in runner.live[p : p + width]) for p in positions]


METRIC = Taylor()

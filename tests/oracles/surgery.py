"""A model with layers cut out and factors applied, by hand, on a deep copy of the HF model.

Three forms of magnitude compensation with factor s at a cut in front of layer p (p may be the
number of layers: a cut in front of the final norm):

* `scale_upstream`: the published form; embedding and all earlier writers times s;
* `scale_downstream`: all later writers divided by s;
* `Scaled`: an explicit multiplication of the stream at the cut, weights untouched; the reference.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from tests.oracles.stream import layers_of


def cut(model, positions: Sequence[int]) -> torch.nn.Module:
    """A deep copy without the layers at `positions`."""
    new = copy.deepcopy(model)
    kept = [i for i in range(len(layers_of(new))) if i not in set(positions)]
    new.model.layers = torch.nn.ModuleList(layers_of(new)[i] for i in kept)
    new.config.num_hidden_layers = len(kept)
    if getattr(new.config, "layer_types", None) is not None:
        new.config.layer_types = [new.config.layer_types[i] for i in kept]
    for index, layer in enumerate(new.model.layers):
        layer.self_attn.layer_idx = index
    return new


def untie(model) -> None:
    """Gives the head a weight of its own, of equal value."""
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.config.tie_word_embeddings = False


@torch.no_grad()
def _multiply(layer, s: float) -> None:
    for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
        linear.weight.mul_(s)
        if linear.bias is not None:
            linear.bias.mul_(s)


def scale_upstream(model, position: int, s: float) -> None:
    """Embedding and the writers of layers 0 ... position-1, times s; the head keeps its value."""
    if model.config.tie_word_embeddings:
        untie(model)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(s)
    for layer in layers_of(model)[:position]:
        _multiply(layer, s)


def scale_downstream(model, position: int, s: float) -> None:
    """The writers of layers position ... end, divided by s."""
    for layer in layers_of(model)[position:]:
        _multiply(layer, 1.0 / s)


class _Times(torch.nn.Module):
    """A layer, or the final norm, behind an explicit multiplication of the stream."""

    def __init__(self, inner: torch.nn.Module, s: float) -> None:
        super().__init__()
        self.inner, self.s = inner, s

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._modules["inner"], name)

    def forward(self, hidden, *args, **kwargs):
        return self.inner(hidden * self.s, *args, **kwargs)


def explicit_scaling(model, scales: dict[int, float]) -> torch.nn.Module:
    """A deep copy that multiplies the stream by ``scales[p]`` where it enters layer p."""
    new = copy.deepcopy(model)
    modules = list(layers_of(new))
    for position, s in scales.items():
        if position == len(modules):
            new.model.norm = _Times(new.model.norm, s)
        else:
            modules[position] = _Times(modules[position], s)
    new.model.layers = torch.nn.ModuleList(modules)
    return new


def by_hand(model, rounds: Sequence[tuple[Sequence[int], float]], fold: str) -> torch.nn.Module:
    """The model after all rounds, one after the other, each on the model as it then is.

    Args:
        rounds: (removed layers by their index in `model`, factor).
        fold: ``upstream``, ``downstream`` or ``explicit``.
    """
    live = list(range(len(layers_of(model))))
    scales: dict[int, float] = {}
    current = copy.deepcopy(model)
    for removed, s in rounds:
        positions = [live.index(layer) for layer in removed]
        first, last = positions[0], positions[-1] + 1
        if fold == "upstream":
            scale_upstream(current, first, s)
        elif fold == "downstream":
            scale_downstream(current, last, s)
        scales = _merge(scales, first, last, s)
        current = cut(current, positions)
        live = [layer for layer in live if layer not in removed]
    return explicit_scaling(current, scales) if fold == "explicit" else current


def _merge(scales: dict[int, float], first: int, last: int, s: float) -> dict[int, float]:
    """Scales by position after positions first ... last-1 are gone, with s added at the cut."""
    merged: dict[int, float] = {}
    for position, value in [*scales.items(), (first, s)]:
        if position >= last:
            position -= last - first
        elif position > first:
            position = first
        merged[position] = merged.get(position, 1.0) * value
    return merged

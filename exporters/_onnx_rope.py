"""Rotary frequencies that depend on the length of the text, decided inside of the graph.

transformers changes a buffer between two calls where a text grows beyond a length (``longrope`` of
Phi-3.5 and Phi-4-mini, ``dynamic`` of Llama and Hunyuan), which no traced graph can do. Here the
frequencies are a function of ``position_ids``, so that one graph holds both sides of the switch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


def _types(module: nn.Module) -> dict[str | None, str]:
    """``{layer type: rope type}`` of a rotary module, under None where all layers share one."""
    found = getattr(module, "rope_type", None)
    return dict(found) if isinstance(found, Mapping) else {None: found} if found else {}


def _depends_on_length(rope_type: str | None) -> bool:
    return rope_type is not None and (rope_type == "longrope" or "dynamic" in rope_type)


def _rotary_modules(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if any(map(_depends_on_length, _types(m).values()))]


def _switch(module: nn.Module, layer_type: str | None) -> int:
    """The longest text, in tokens, that has the frequencies of short ones."""
    if _types(module)[layer_type] != "longrope":
        return int(module.original_max_seq_len)
    parameters = module.config.rope_parameters
    parameters = parameters if layer_type is None else parameters[layer_type]
    return int(parameters["original_max_position_embeddings"])


def switches(model: nn.Module) -> list[int]:
    """The lengths, in tokens, above which rotary frequencies change; ascending."""
    return sorted(
        {
            _switch(module, layer_type)
            for module in _rotary_modules(model)
            for layer_type, rope_type in _types(module).items()
            if _depends_on_length(rope_type)
        }
    )


def _frequencies(
    module: nn.Module, position_ids: torch.Tensor, layer_type: str | None
) -> torch.Tensor:
    """Those of a text as long as the largest position says; [half of the rotated size] float32.

    Source: `transformers.modeling_rope_utils.dynamic_rope_update`, for a model that has seen no
    longer text before.
    """
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope_type, limit = _types(module)[layer_type], _switch(module, layer_type)
    prefix = "" if layer_type is None else f"{layer_type}_"
    length = position_ids.max() + 1
    short = getattr(module, f"{prefix}original_inv_freq")
    long, _ = ROPE_INIT_FUNCTIONS[rope_type](
        module.config,
        position_ids.device,
        seq_len=limit + 1 if rope_type == "longrope" else length,
        layer_type=layer_type,
    )
    return torch.where(length > limit, long, short)


class _Stateless:
    """Stands for a rotary module in its own `forward`: all of it, but frequencies and types."""

    def __init__(self, module: nn.Module, position_ids: torch.Tensor) -> None:
        types = _types(module)
        given = {
            ("" if each is None else f"{each}_") + "inv_freq": _frequencies(
                module, position_ids, each
            )
            for each, rope_type in types.items()
            if _depends_on_length(rope_type)
        }
        plain = {t: "default" if _depends_on_length(r) else r for t, r in types.items()}
        self._module, self.rope_type = module, plain.get(None, plain)
        self.__dict__.update(given)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_module"], name)


@contextlib.contextmanager
def frequencies_in_graph(model: nn.Module) -> Iterator[None]:
    """In this block, rotary modules compute frequencies from positions, and keep no state."""
    modules = _rotary_modules(model)
    for module in modules:

        def forward(
            x: torch.Tensor,
            position_ids: torch.Tensor,
            *rest: Any,
            module: nn.Module = module,
            **named: Any,
        ) -> Any:
            view = _Stateless(module, position_ids)
            return type(module).forward(view, x, position_ids, *rest, **named)

        module.forward = forward
    try:
        yield
    finally:
        for module in modules:
            del module.forward

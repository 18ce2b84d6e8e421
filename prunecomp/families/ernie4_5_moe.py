"""ERNIE 4.5 with experts: dense layers first and last, experts between.

Which layers have experts is told by the first and the last of them, and a step. The ends can be
moved with the layers that stay; a step above one cannot express a hole in the sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prunecomp.families._rules import Config, DepthRule, FirstLayers, Kept, Requires
from prunecomp.families.base import (
    ATTENTION_AND_MLP,
    ATTENTION_INSIDE,
    EXPERT_WRITERS,
    EXPERTS_INSIDE,
    LAYER_TYPES,
    MLP_INSIDE,
    NORMS,
    ModelFamily,
)


@dataclass(frozen=True)
class _LastExpertLayer(DepthRule):
    """The number of the last layer with experts, itself included; -1 is the last of all."""

    key: str = "moe_layer_end_index"

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def reason_against(self, config: Config, depth: int) -> str | None:
        value = config.get(self.key)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return None
        return f"config.json has {self.key} = {value!r}; it must be the number of a layer"

    def rewrite(self, new: dict[str, Any], config: Config, resolved: Config, kept: Kept) -> None:
        value = config.get(self.key, resolved.get(self.key, -1))
        if value == -1:  # still the last one, whatever stays
            return
        last = sum(i <= value for i in kept) - 1
        if last >= 0:
            new[self.key] = last
        else:  # -1 would mean all of them: no layer with experts is left
            new[self.key], new["moe_layer_start_index"] = 0, len(kept)


FAMILY = ModelFamily(
    model_type="ernie4_5_moe",
    architectures=("Ernie4_5_MoeForCausalLM",),
    writers=(
        *ATTENTION_AND_MLP,
        *EXPERT_WRITERS,
        "mlp.shared_experts.down_proj.weight",
        "mlp.shared_experts.down_proj.bias",
    ),
    others=(
        *NORMS,
        *ATTENTION_INSIDE,
        *MLP_INSIDE,
        *EXPERTS_INSIDE,
        "mlp.moe_statics",
        "mlp.gate.moe_statics",
        "mlp.shared_experts.gate_proj",
        "mlp.shared_experts.up_proj",
    ),
    tied_by_default=True,
    released="ERNIE 4.5 21B-A3B, 300B-A47B",
    rules=(
        LAYER_TYPES,
        FirstLayers("moe_layer_start_index"),
        _LastExpertLayer(),
        Requires(
            "moe_layer_interval",
            1,
            "a step between layers with experts cannot express the gaps that a removal leaves",
        ),
    ),
    tiny=(
        {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1},
        {"moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 2, "moe_layer_end_index": 3,
         "tie_word_embeddings": False},
    ),
)  # fmt: skip

"""A tiny random model of the real transformers class for every variant of every family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from prunecomp.families import FAMILIES

DEPTH, VOCABULARY, CONTEXT = 6, 96, 64

#: Values for whichever of these fields a config has. Rectangular where possible, grouped heads,
#: and an eps that cannot hide a wrong scale.
SMALL: Mapping[str, Any] = {
    "vocab_size": VOCABULARY, "num_hidden_layers": DEPTH, "n_layer": DEPTH,
    "hidden_size": 32, "n_embd": 32, "word_embed_proj_dim": 32,
    "intermediate_size": 48, "n_inner": 48, "ffn_dim": 48, "ffn_hidden_size": 48,
    "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40,
    "num_attention_heads": 4, "n_head": 4, "num_key_value_heads": 2, "head_dim": 12,
    "num_experts": 4, "n_routed_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2,
    "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 2,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 12, "max_position_embeddings": CONTEXT, "n_positions": CONTEXT,
    "bos_token_id": 0, "eos_token_id": None, "pad_token_id": None,
    "attention_dropout": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    "dropout": 0.0, "hidden_dropout": 0.0,
}  # fmt: skip


def cases() -> list[tuple[str, int]]:
    """``(family, variant)`` for all there are."""
    return [(name, v) for name in FAMILIES.names() for v in range(len(FAMILIES.get(name).tiny))]


def config_of(name: str, variant: int, **changes: Any):
    """The tiny config; `changes` replace fields that the config has."""
    from transformers import CONFIG_MAPPING

    family = FAMILIES.get(name)
    config_class = CONFIG_MAPPING[family.model_type]
    has = config_class().to_dict()
    fields = {k: v for k, v in {**SMALL, **changes}.items() if k in has}
    return config_class(**{**fields, **family.tiny[variant]})


def build(name: str, variant: int, **changes: Any) -> nn.Module:
    """The model, fp32, in eval mode, with weights among which nothing is zero or one."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(variant + 1)
    model = AutoModelForCausalLM.from_config(config_of(name, variant, **changes))
    offset = {n.rpartition(".")[0] for n in FAMILIES.get(name).unit_offset}
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.ndim > 1:
                # embeddings of size one, against which the eps of any norm is small
                embedding = any(word in path for word in ("embed", "wte", "wpe"))
                parameter.normal_(0.0, 1.0 if embedding else parameter.shape[-1] ** -0.5)
            elif path.endswith("weight"):
                centre = 0.0 if any(path.endswith(f"{o}.weight") for o in offset) else 1.0
                parameter.normal_(centre, 0.2)
            else:
                parameter.normal_(0.0, 0.2)
        _make_sinks_and_routers_plain(model)
    return with_negligible_eps(model.eval().requires_grad_(False))


def _make_sinks_and_routers_plain(model: nn.Module) -> None:
    """Routers decide by rank; scores far apart do not flip by rounding."""
    for path, parameter in model.named_parameters():
        if path.endswith(("mlp.gate.weight", "router.weight", "router.layer.weight")):
            parameter.mul_(6.0)


def with_negligible_eps(model: nn.Module) -> nn.Module:
    """Sets the eps of every norm to 1e-12, also where no config field does."""
    for module in model.modules():
        for attribute in ("eps", "variance_epsilon"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 1e-12)
    return model


def tokens(samples: int = 3, length: int = 14, *, seed: int = 3) -> torch.Tensor:
    """Random token ids [samples, length], longer than every tiny sliding window."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (samples, length), generator=generator)

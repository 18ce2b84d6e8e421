"""What a family declares: the algebra of its residual stream, and what its config says of depth.

A family speaks the names of tensors *in the files*. Everything is data; generic code reads it
and never asks which family it has.

Source: Prune&Comp, arXiv 2507.18212, section 3.3, for the principle that scaling all that writes
to the stream scales the stream; which tensors those are was read from each model's code in
transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from prunecomp.errors import brief
from prunecomp.families._rules import DepthRule, PerLayer
from prunecomp.limits import MAX_LAYERS

ATTENTION_AND_MLP = (
    "self_attn.o_proj.weight",
    "self_attn.o_proj.bias",
    "mlp.down_proj.weight",
    "mlp.down_proj.bias",
)
#: The projections of a layer that reads the stream without a norm in front of them.
UNNORMED_READERS = (
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
)
LAYER_TYPES = PerLayer("layer_types")
_HEAD = "lm_head.weight"
#: What neither writes nor reads without a norm, in layers named as Llama's.
NORMS = ("input_layernorm", "post_attention_layernorm")
ATTENTION_INSIDE = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.q_norm",
    "self_attn.k_norm",
)
MLP_INSIDE = ("mlp.gate_proj", "mlp.up_proj")
#: Experts, each a matrix of its own or all of a layer in one tensor, as transformers 5 has them in
#: memory and writes them with ``save_original_format=False``; the router in front of them.
EXPERT_WRITERS = ("mlp.experts.*.down_proj.weight", "mlp.experts.down_proj")
EXPERTS_INSIDE = (
    "mlp.gate",
    "mlp.experts.*.gate_proj",
    "mlp.experts.*.up_proj",
    "mlp.experts.gate_up_proj",
)


#: Buffers that earlier versions of transformers stored, and that later ones compute: tables of
#: rotary embeddings, and the mask of attention. Nothing reads them from the files any more.
_STORED_BUFFER = re.compile(
    r"(^|\.)(inv_freq|cos_cached|sin_cached|masked_bias)$"
    r"|(^|\.)(attn|self_attn|attention|self_attention)\.(bias|mask|causal_mask)$"
)


def is_stored_buffer(name: str) -> bool:
    """Whether a tensor has the name of a buffer that models compute for themselves."""
    return _STORED_BUFFER.search(name) is not None


_MOST_DIGITS = 18  # of a layer's number in a tensor's name


def any_expert(relative: str) -> str:
    """A name inside a layer with ``*`` for the number of the expert."""
    return re.sub(r"\.\d+\.", ".*.", relative)


@dataclass(frozen=True)
class ModelFamily:
    """One architecture. Relative names are those inside a layer; ``*`` stands for any expert.

    Attributes:
        model_type: ``model_type`` in config.json.
        architectures: the stock causal-LM classes; a checkpoint of another class is refused.
        layers: path of the list of decoder layers, in the files and in the module tree.
        base_prefix: leads the names of all tensors but the head's. Some published files, saved
            from the model without its head, lack it; see `in_files`.
        embeddings: tensors that start the residual stream.
        embedding: the tensor that a tied head shares.
        writers: per layer, relative names of the tensors whose output is added to the stream:
            output projections with their biases, or the norms behind them where the sub-block
            ends in one. All that exist are scaled.
        readers: per layer, relative names of the projections that read the stream without a
            norm; they are scaled by the inverse.
        others: per layer, all else that the layer may have, as names of tensors or of the modules
            that hold them: what no fold changes. A tensor of a layer that stands in none of the
            three lists is refused, for nobody has said whether it takes the factor.
        unit_offset: norms, in a layer or the final one, that multiply by ``1 + w``.
        final_norm: tensors of the norm before the head; empty where it has none.
        head: the output projection; absent from the files when it is tied.
        depth_key: config key that holds the number of layers.
        rules: for all other config fields that speak of depth.
        folds: where a factor can be folded exactly (see `prunecomp.fold`), preferred first.
        tied_by_default: what a config without ``tie_word_embeddings`` means.
        removal_unit: layers go in runs of this length.
        removal_reason: why, in one line, where that is not one.
        released: names under which users know the models.
        tiny: config fields of tiny models on which the family is tested, one per variant.
    """

    model_type: str
    architectures: tuple[str, ...]
    layers: str = "model.layers"
    base_prefix: str = "model."
    embeddings: tuple[str, ...] = ("model.embed_tokens.weight",)
    embedding: str = "model.embed_tokens.weight"
    writers: tuple[str, ...] = ATTENTION_AND_MLP
    readers: tuple[str, ...] = ()
    others: tuple[str, ...] = (*NORMS, *ATTENTION_INSIDE, *MLP_INSIDE)
    unit_offset: tuple[str, ...] = ()
    final_norm: tuple[str, ...] = ("model.norm.weight",)
    head: str = _HEAD
    depth_key: str = "num_hidden_layers"
    rules: tuple[DepthRule, ...] = (LAYER_TYPES,)
    folds: tuple[str, ...] = ("downstream", "upstream")
    tied_by_default: bool = False
    removal_unit: int = 1
    removal_reason: str = ""
    released: str = ""
    tiny: tuple[Mapping[str, Any], ...] = field(default=({},), hash=False)

    def depth(self, config: Mapping[str, Any]) -> int:
        """Number of decoder layers."""
        return int(config[self._depth_keys(config)[0]])

    def _depth_keys(self, config: Mapping[str, Any]) -> list[str]:
        """The keys that hold the depth; transformers also takes the common name for an own one."""
        return [k for k in (self.depth_key, "num_hidden_layers") if k in config] or [self.depth_key]

    def extra_layers(self, config: Mapping[str, Any]) -> range:
        """Numbers of the layers behind the last one, which only predict ahead."""
        count = sum(rule.extra_layers(config) for rule in self.rules)
        return range(self.depth(config), self.depth(config) + count)

    def is_tied(self, config: Mapping[str, Any]) -> bool:
        """Whether the head shares the embedding's weight."""
        return bool(config.get("tie_word_embeddings", self.tied_by_default))

    def in_files(self, names: Mapping[str, Any]) -> ModelFamily:
        """The family with the names that these files use: with `base_prefix`, or without.

        The head may have the name that transformers 5 has for it in every model.
        """
        if self.head not in names and _HEAD in names:
            return replace(self, head=_HEAD).in_files(names)
        if any(name.startswith(self.layers + ".") for name in names):
            return self
        bare = self.layers.removeprefix(self.base_prefix)
        if not any(name.startswith(bare + ".") for name in names):
            return self

        def cut(found: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(name.removeprefix(self.base_prefix) for name in found)

        return replace(
            self, layers=bare, embeddings=cut(self.embeddings), final_norm=cut(self.final_norm),
            embedding=cut((self.embedding,))[0], unit_offset=cut(self.unit_offset),
        )  # fmt: skip

    def layer_of(self, tensor: str) -> tuple[int, str] | None:
        """``(layer, relative name)`` of a layer's tensor; None for all other tensors."""
        prefix = self.layers + "."
        if not tensor.startswith(prefix):
            return None
        index, _, rest = tensor.removeprefix(prefix).partition(".")
        number = index.isascii() and index.isdigit() and len(index) <= _MOST_DIGITS
        return (int(index), rest) if number and rest else None

    def tensor_name(self, layer: int, relative: str) -> str:
        """The inverse of `layer_of`."""
        return f"{self.layers}.{layer}.{relative}"

    def power(self, relative: str) -> int:
        """With which power of the stream's scale a layer's tensor goes: 1, -1 or 0."""
        name = any_expert(relative)
        return (name in self.writers) - (name in self.readers)

    def accounts_for(self, relative: str) -> bool:
        """Whether the family says of a layer's tensor how it goes with the stream's scale."""
        name = any_expert(relative)
        if name in self.writers or name in self.readers or name in self.others:
            return True
        return name.rpartition(".")[0] in self.others

    def is_outside(self, tensor: str) -> bool:
        """Whether a tensor outside of the layers is one that the family speaks of."""
        known = {self.embedding, *self.embeddings, *self.final_norm, self.head}
        return tensor in known or tensor == self.head.replace(".weight", ".bias")

    def reason_against(self, config: Mapping[str, Any]) -> str | None:
        """Why this very checkpoint cannot be compressed; None where it can."""
        classes = config.get("architectures") or [self.architectures[0]]
        first = classes[0] if isinstance(classes, list) else None
        if first not in self.architectures:
            return (
                f"architecture {first} is not supported for model type {self.model_type!r}; "
                f"a causal language model ({', '.join(self.architectures)}) is needed"
            )
        for key in self._depth_keys(config):
            depth = config.get(key)
            if not isinstance(depth, int) or isinstance(depth, bool) or depth < 1:
                return f"config.json has {key} = {brief(depth)}; it must be a positive integer"
            if depth > MAX_LAYERS:
                return (
                    f"config.json has {key} = {depth}, more than the {MAX_LAYERS} layers that a "
                    "model may have here; correct it"
                )
        extra = self.extra_layers(config)
        if extra.stop - extra.start > MAX_LAYERS:
            return f"config.json has over {MAX_LAYERS} layers that only predict ahead; correct it"
        reasons = (rule.reason_against(config, self.depth(config)) for rule in self.rules)
        return next((reason for reason in reasons if reason), None)

    def rewrite_config(
        self, config: Mapping[str, Any], resolved: Mapping[str, Any], kept: tuple[int, ...]
    ) -> dict[str, Any]:
        """The config of the model that has only the layers `kept`, in that order.

        Args:
            config: the parsed config.json. Its unknown keys and their order are kept: other
                readers may need keys that transformers' class does not declare.
            resolved: the same config as transformers resolves it, defaults filled in.
            kept: original indices, ascending.
        """
        new = dict(config)
        for key in self._depth_keys(config):
            new[key] = len(kept)
        for rule in self.rules:
            rule.rewrite(new, config, resolved, kept)
        return new

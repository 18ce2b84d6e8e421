"""What a family declares: the algebra of its residual stream, and what its config says of depth.

A family speaks the names of tensors *in the files*. Everything is data; generic code reads it
and never asks which family it has.

Source: Prune&Comp, arXiv 2507.18212, section 3.3, for the principle that scaling all that writes
to the stream scales the stream; which tensors those are was read from each model's code in
transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelFamily:
    """One architecture.

    Attributes:
        model_type: ``model_type`` in config.json.
        architectures: the stock causal-LM classes; a checkpoint of another class is refused.
        layers: path of the list of decoder layers, in the files and in the module tree.
        embeddings: tensors that start the residual stream.
        writers: per layer, relative names of the tensors whose output is added to the stream.
            All that exist are scaled; biases are absent from most checkpoints.
        final_norm: tensors of the norm before the head.
        head: the output projection; absent from the files when it is tied.
        depth_key: config key that holds the number of layers.
        layer_lists: config keys that hold one entry per layer.
        layer_thresholds: config keys that count the first layers up to an index.
        folds: where a factor can be folded exactly (see `prunecomp.fold`), preferred first.
        tied_by_default: what a config without ``tie_word_embeddings`` means.
    """

    model_type: str
    architectures: tuple[str, ...]
    layers: str = "model.layers"
    embeddings: tuple[str, ...] = ("model.embed_tokens.weight",)
    writers: tuple[str, ...] = (
        "self_attn.o_proj.weight",
        "self_attn.o_proj.bias",
        "mlp.down_proj.weight",
        "mlp.down_proj.bias",
    )
    final_norm: tuple[str, ...] = ("model.norm.weight",)
    head: str = "lm_head.weight"
    depth_key: str = "num_hidden_layers"
    layer_lists: tuple[str, ...] = ("layer_types",)
    layer_thresholds: tuple[str, ...] = ()
    folds: tuple[str, ...] = ("downstream", "upstream")
    tied_by_default: bool = False

    def depth(self, config: Mapping[str, Any]) -> int:
        """Number of decoder layers."""
        return int(config[self.depth_key])

    def is_tied(self, config: Mapping[str, Any]) -> bool:
        """Whether the head shares the embedding's weight."""
        return bool(config.get("tie_word_embeddings", self.tied_by_default))

    def layer_of(self, tensor: str) -> tuple[int, str] | None:
        """``(layer, relative name)`` of a layer's tensor; None for all other tensors."""
        prefix = self.layers + "."
        if not tensor.startswith(prefix):
            return None
        index, _, rest = tensor.removeprefix(prefix).partition(".")
        return (int(index), rest) if index.isascii() and index.isdigit() and rest else None

    def tensor_name(self, layer: int, relative: str) -> str:
        """The inverse of `layer_of`."""
        return f"{self.layers}.{layer}.{relative}"

    def reason_against(self, config: Mapping[str, Any]) -> str | None:
        """Why this very checkpoint cannot be compressed; None where it can."""
        classes = config.get("architectures") or [self.architectures[0]]
        first = classes[0] if isinstance(classes, list) else None
        if first not in self.architectures:
            return (
                f"architecture {first} is not supported for model type {self.model_type!r}; "
                f"a causal language model ({', '.join(self.architectures)}) is needed"
            )
        depth = config.get(self.depth_key)
        if not isinstance(depth, int) or isinstance(depth, bool) or depth < 1:
            return f"config.json has {self.depth_key} = {depth!r}; it must be a positive integer"
        if config.get("quantization_config"):
            quantization = config["quantization_config"]
            named = quantization if isinstance(quantization, dict) else {}
            method = named.get("quant_method", "unknown")
            return (
                f"quantised checkpoints ({method}) are not supported; "
                "compress the unquantised model, then quantise the result"
            )
        for key in self.layer_lists:
            values = config.get(key)
            if values is not None and (not isinstance(values, list) or len(values) != depth):
                count = len(values) if isinstance(values, list) else "no list of"
                return (
                    f"config.json has {count} entries in {key} for {depth} layers; "
                    "correct the config first"
                )
        return None

    def rewrite_config(
        self, config: Mapping[str, Any], resolved: Mapping[str, Any], kept: tuple[int, ...]
    ) -> dict[str, Any]:
        """The config of the model that has only the layers `kept`, in that order.

        Args:
            config: the parsed config.json. Its unknown keys and their order are kept: other
                readers may need keys that transformers' class does not declare.
            resolved: the same config as transformers resolves it, defaults filled in. A
                per-layer list that a config leaves out is generated from a pattern on loading,
                which would be wrong once layers are gone; so lists are written out.
            kept: original indices, ascending.
        """
        new = dict(config)
        new[self.depth_key] = len(kept)
        for key in self.layer_lists:
            values = config.get(key)
            if values is None:
                values = resolved.get(key)
            if values is not None:
                new[key] = [values[i] for i in kept]
        for key in self.layer_thresholds:
            if config.get(key) is not None:
                new[key] = sum(i < config[key] for i in kept)
        return new

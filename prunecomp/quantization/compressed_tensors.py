"""compressed-tensors: FP8 and integer weights, with or without quantised activations.

``float-quantized``, ``int-quantized`` and ``naive-quantized`` store codes [out, in] as ``weight``;
``pack-quantized`` packs integer codes into int32 along the input, offset to be positive, with the
shape beside them. ``(codes - weight_zero_point) * weight_scale`` is the weight, with one scale per
tensor, row, group of columns, or block.

Source: compressed-tensors 0.17, compressors/naive_quantized and compressors/pack_quantized.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from prunecomp.quantization._names import NameList, exact_or_regex
from prunecomp.quantization.base import Format, Spec, spread, unpack

_STORED = ("float-quantized", "int-quantized", "naive-quantized", "pack-quantized")
_STRATEGIES = ("tensor", "channel", "group", "block")


class CompressedTensors(Format):
    """What `config_groups` say of a module decides how its codes are read."""

    method = "compressed-tensors"
    scales = ("weight_scale",)
    required = (("weight",), ("weight_packed", "weight_shape"))
    codes = (
        "weight", "weight_packed", "weight_shape", "weight_zero_point", "weight_g_idx",
        "input_zero_point", "output_zero_point",
    )  # fmt: skip
    inputs = ("input_scale",)
    outputs = ("output_scale",)
    names = (
        NameList(("ignore",), (exact_or_regex,)),
        NameList(("config_groups", "*", "targets"), (exact_or_regex,)),
    )

    def reason_against(self, settings: Mapping[str, Any]) -> str | None:
        status = settings.get("quantization_status")
        if status not in (None, "compressed"):
            return f"quantization_status is {status!r}, so the weights are not stored quantised"
        sparsity = settings.get("sparsity_config") or {}
        if sparsity.get("format", "dense") != "dense" or sparsity.get("targets"):
            return f"sparse weights ({sparsity.get('format')})"
        if settings.get("transform_config"):
            return "transform_config rotates activations while the model runs"
        groups = settings.get("config_groups")
        if not isinstance(groups, dict) or not groups:
            return "config_groups is not a list of schemes"
        reasons = (_reason_against_group(n, g, settings) for n, g in groups.items())
        return next((reason for reason in reasons if reason), None)

    def shape(self, parts: Mapping[str, Spec]) -> tuple[int, ...] | None:
        return parts["weight"].shape if "weight" in parts else None

    def dequantise(
        self, parts: Mapping[str, torch.Tensor], settings: Mapping[str, Any], module: str
    ) -> torch.Tensor:
        group = self._group_of(module, settings)
        arguments = settings["config_groups"][group]["weights"]
        scale, zero = parts["weight_scale"], parts.get("weight_zero_point")
        if "weight_packed" in parts:
            bits = arguments["num_bits"]
            rows, columns = parts["weight_shape"].tolist()
            codes = _signed(unpack(parts["weight_packed"], bits), bits)[:, :columns]
            if tuple(codes.shape) != (rows, columns):
                raise ValueError(f"{tuple(codes.shape)} codes for a weight {(rows, columns)}")
            if zero is not None:  # packed along the output
                zero = _signed(unpack(zero.T, bits), bits)[:, :rows].T
        else:
            codes = parts["weight"]
        block = arguments.get("block_structure")
        if isinstance(block, str):
            block = [int(n) for n in block.split("x")]
        lie = {
            "groups": parts.get("weight_g_idx"),
            "block": tuple(block) if arguments.get("strategy") == "block" and block else None,
        }
        value = codes.to(torch.float32)
        size = (value.shape[0], value.shape[1])
        if zero is not None:
            value = value - spread(zero, size, **lie)
        return value * spread(scale, size, **lie)

    def tidied(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Without the groups whose every module went."""
        groups = {k: g for k, g in settings["config_groups"].items() if g["targets"]}
        return {**settings, "config_groups": groups}

    def _group_of(self, module: str, settings: Mapping[str, Any]) -> str:
        """The config group of a module: one that names it, else one that names a class."""
        groups: Mapping[str, Any] = settings["config_groups"]
        if len(groups) == 1:
            return next(iter(groups))
        for wanted in ("name", "re:", "class"):
            for name, group in groups.items():
                for target in group["targets"]:
                    kind = "re:" if target.startswith("re:") else "name"
                    if kind == "name" and "." not in target and target != module:
                        kind = "class"
                    if kind != wanted:
                        continue
                    # A class in a language model is Linear, but for the embedding.
                    if exact_or_regex(target, {module: None}) or (
                        kind == "class" and (target == "Embedding") == ("embed" in module)
                    ):
                        return name
        raise ValueError(f"no config group targets {module}")


def _signed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Packed codes are offset by half their range."""
    return codes - (1 << (bits - 1))


def _reason_against_group(name: str, group: Any, settings: Mapping[str, Any]) -> str | None:
    if not isinstance(group, dict) or not isinstance(group.get("weights"), dict):
        return f"config_groups.{name} has no weights of its own"
    if not isinstance(group.get("targets"), list) or not group["targets"]:
        return f"config_groups.{name} has no targets"
    stored = group.get("format") or settings.get("format")
    if stored not in _STORED:
        return f"the format is {stored!r}; {', '.join(_STORED)} are supported"
    weights = group["weights"]
    kind, bits = weights.get("type", "int"), weights.get("num_bits", 8)
    if (kind, bits) != ("float", 8) and not (kind == "int" and bits in range(2, 9)):
        return f"weights of {bits} bits, type {kind!r}"
    strategy = weights.get("strategy", "tensor")
    if strategy not in _STRATEGIES:
        return f"weights are scaled by {strategy!r}; {', '.join(_STRATEGIES)} are supported"
    if weights.get("dynamic"):
        return "weights are quantised while the model runs"
    if strategy == "block" and not weights.get("block_structure"):
        return f"config_groups.{name} has blocks without a block_structure"
    inputs = group.get("input_activations") or {}
    if inputs.get("strategy") == "tensor_group" or inputs.get("dynamic") == "local":
        return "activations have scales of two levels (NVFP4)"
    return None


FORMAT = CompressedTensors()

"""``fp8``: E4M3 weights with one scale per block or per tensor.

Blocks are what DeepSeek-V3 and Qwen3 are published with, tensors what AutoFP8 writes.
``weight * weight_scale_inv`` is the weight: despite its name, the scale is multiplied. Blocks are
`weight_block_size` large and cut off at the borders.

Source: transformers 5.19, integrations/finegrained_fp8.py; vLLM 0.32, quantization/fp8.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from prunecomp.quantization._names import NameList, beginning_or_end, exact
from prunecomp.quantization.base import Format, Spec, spread


class Fp8(Format):
    """Codes are the weight itself, in eight bits."""

    method = "fp8"
    scales = ("weight_scale_inv", "weight_scale")
    required = (("weight",),)
    codes = ("weight",)
    inputs = ("input_scale", "activation_scale")
    outputs = ("output_scale",)
    names = (
        NameList(("modules_to_not_convert",), (exact, beginning_or_end)),
        NameList(("ignored_layers",), (exact, beginning_or_end)),
        NameList(("modules_to_convert",), (beginning_or_end,)),
    )

    def reason_against(self, settings: Mapping[str, Any]) -> str | None:
        if settings.get("scale_fmt", "float") != "float":
            return f"scale_fmt is {settings['scale_fmt']!r}: powers of two cannot take a factor"
        if settings.get("store_dtype"):
            return f"store_dtype is {settings['store_dtype']!r}"
        if settings.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
            return f"fmt is {settings['fmt']!r}; e4m3 is supported"
        if settings.get("is_checkpoint_fp8_serialized") is False:
            return "its weights are quantised when it is loaded, so they are not in the files"
        block = settings.get("weight_block_size")
        if block is not None and not (
            isinstance(block, list) and len(block) == 2 and all(isinstance(n, int) for n in block)
        ):
            return f"weight_block_size is {block!r}; two numbers are needed"
        return None

    def shape(self, parts: Mapping[str, Spec]) -> tuple[int, ...] | None:
        return parts["weight"].shape

    def dequantise(
        self, parts: Mapping[str, torch.Tensor], settings: Mapping[str, Any], module: str
    ) -> torch.Tensor:
        codes = parts["weight"].to(torch.float32)
        scale = parts.get("weight_scale_inv", parts.get("weight_scale"))
        assert scale is not None
        block = settings.get("weight_block_size")
        by_block = tuple(block) if block and scale.numel() > 1 else None
        return codes * spread(scale, (codes.shape[0], codes.shape[1]), block=by_block)


FORMAT = Fp8()

"""GPTQ: integer codes packed along the input, scales per group of inputs.

``(code - zero) * scales[g_idx]`` is the weight's transpose. Files of the first version store each
zero point minus one. `desc_act` is the order in ``g_idx``; it needs nothing special.

Source: AutoGPTQ's qlinear modules, as kept in GPTQModel; vLLM 0.32, quantization/auto_gptq.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from prunecomp.quantization._names import NameList, as_regex, signed_regex, substring
from prunecomp.quantization.base import Format, Spec, spread, unpack

_BITS = (2, 4, 8)


class Gptq(Format):
    """Bits, groups and order of a module are read off its tensors, as rules may change them."""

    method = "gptq"
    scales = ("scales",)
    required = (("qweight", "qzeros"),)
    codes = ("qweight", "qzeros", "g_idx")
    names = (
        NameList(("dynamic",), (signed_regex,), as_regex),
        NameList(("modules_in_block_to_quantize",), (substring,)),
    )

    def reason_against(self, settings: Mapping[str, Any]) -> str | None:
        stored = settings.get("checkpoint_format") or settings.get("format") or "gptq"
        if stored not in ("gptq", "gptq_v2"):
            return f"checkpoint_format is {stored!r}; gptq and gptq_v2 are supported"
        if settings.get("is_marlin_format"):
            return "its codes are laid out for one kernel (is_marlin_format)"
        rules = settings.get("dynamic") or {}
        if not isinstance(rules, dict):
            return "dynamic is not a mapping of patterns"
        overrides = [rule for rule in rules.values() if isinstance(rule, dict)]
        for each in (settings, *overrides):
            bits = each.get("bits", None if each is settings else settings.get("bits"))
            if bits not in _BITS:
                return f"weights of {bits} bits; {', '.join(map(str, _BITS))} are supported"
        return None

    def shape(self, parts: Mapping[str, Spec]) -> tuple[int, ...] | None:
        (rows, out), (_, packed) = parts["qweight"].shape, parts["qzeros"].shape
        return out, rows * out // packed  # both are packed by the same number

    def dequantise(
        self, parts: Mapping[str, torch.Tensor], settings: Mapping[str, Any], module: str
    ) -> torch.Tensor:
        qweight, qzeros, scales = parts["qweight"], parts["qzeros"], parts["scales"]
        bits = 32 * qzeros.shape[1] // scales.shape[1]
        if bits not in _BITS:
            raise ValueError(f"zero points {tuple(qzeros.shape)}, scales {tuple(scales.shape)}")
        stored = settings.get("checkpoint_format") or settings.get("format") or "gptq"
        codes = unpack(qweight.T, bits)
        zeros = unpack(qzeros, bits).T + int(stored == "gptq")
        size, groups = (codes.shape[0], codes.shape[1]), parts.get("g_idx")
        return (codes - spread(zeros, size, groups=groups)) * spread(scales.T, size, groups=groups)


FORMAT = Gptq()

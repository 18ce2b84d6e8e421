"""AWQ, as AutoAWQ writes it for its GEMM kernel: 4-bit codes packed along the output.

``(code - zero) * scale`` is the weight's transpose. The eight codes of a word belong to the
outputs 0, 2, 4, 6, 1, 3, 5, 7, lowest bits first.

Source: AutoAWQ, awq/modules/linear/gemm.py; vLLM 0.32, quantization/auto_awq.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from prunecomp.quantization._names import NameList, beginning_or_end, substring
from prunecomp.quantization.base import Format, Spec, spread, unpack

_BITS, _PER_WORD = 4, 8
#: Where in its word the code of each output is.
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


class Awq(Format):
    """Four bits, with zero points, in groups of equal length."""

    method = "awq"
    scales = ("scales",)
    required = (("qweight", "qzeros"),)
    codes = ("qweight", "qzeros")
    names = (NameList(("modules_to_not_convert",), (substring, beginning_or_end)),)

    def reason_against(self, settings: Mapping[str, Any]) -> str | None:
        bits = settings.get("bits", settings.get("w_bit"))
        if bits != _BITS:
            return f"weights of {bits} bits; {_BITS} are supported"
        version = str(settings.get("version", "gemm")).lower()
        if version != "gemm":
            return f"its codes are laid out for another kernel ({version}); gemm is supported"
        if settings.get("zero_point", True) is not True:
            return "it has no zero points"
        return None

    def shape(self, parts: Mapping[str, Spec]) -> tuple[int, ...] | None:
        inputs, packed = parts["qweight"].shape
        return packed * _PER_WORD, inputs

    def dequantise(
        self, parts: Mapping[str, torch.Tensor], settings: Mapping[str, Any], module: str
    ) -> torch.Tensor:
        codes, zeros = _unpacked(parts["qweight"]).T, _unpacked(parts["qzeros"]).T
        size = (codes.shape[0], codes.shape[1])
        return (codes - spread(zeros, size)) * spread(parts["scales"].T, size)


def _unpacked(words: torch.Tensor) -> torch.Tensor:
    """Codes [n, out] of words [n, out / 8], in the order of the outputs."""
    codes = unpack(words, _BITS).unflatten(-1, (-1, _PER_WORD))
    return codes[..., list(_PLACES)].flatten(-2)


FORMAT = Awq()

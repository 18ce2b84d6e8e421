"""The formats of quantised checkpoints that a factor can be folded into: one file each.

Folding multiplies the scales of a weight and never its codes, so nothing is quantised again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunecomp.errors import UnsupportedModelError, brief
from prunecomp.quantization.base import Format
from prunecomp.registry import Registry

FORMATS = Registry(__name__, "FORMAT", "quantisation format")

#: Where config.json speaks of quantisation; vLLM reads the second where the first is absent.
KEYS = ("quantization_config", "compression_config")

#: Why formats that vLLM serves cannot be folded into, where the reason is known.
_REASONS = {
    "mxfp4": "its scales are powers of two, which cannot take a factor",
    "bitsandbytes": "its scales are themselves quantised, or stored beside the format",
    "gguf": "it is not a safetensors checkpoint",
}


def _shown(method: Any) -> str:
    return brief(method)[1:-1] if isinstance(method, str) else "format unknown"


def quantization_of(
    config: Mapping[str, Any], *, where: str
) -> tuple[str, Format, Mapping[str, Any]] | None:
    """``(key in config.json, format, its settings)``; None where the weights are not quantised.

    Raises:
        UnsupportedModelError: the format, or this variant of it, is not supported.
    """
    keys = [key for key in KEYS if config.get(key)]
    if not keys:
        return None
    settings = config[keys[0]]
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if method is None and keys[0] == KEYS[1]:
        method = "compressed-tensors"  # older files of that library do not repeat its name
    known = {FORMATS.get(name).method: name for name in FORMATS.names()}
    if len(keys) > 1:
        reason: str | None = f"config.json has {' and '.join(keys)}"
    elif not isinstance(method, str) or method not in known:
        listed = f"the formats are {', '.join(sorted(known))}"
        reason = _REASONS.get(str(method), listed)
    else:
        found: Format = FORMATS.get(known[method])
        try:
            reason = found.reason_against(settings)
        except (TypeError, AttributeError, KeyError, ValueError) as error:
            reason = f"its settings are not those of the format ({brief(str(error))})"
        if reason is None:
            return keys[0], found, settings
    raise UnsupportedModelError(
        f"{where}: this quantised checkpoint ({_shown(method)}) is not supported: "
        f"{reason}; compress the unquantised model, then quantise the result"
    )

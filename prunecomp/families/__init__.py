"""The supported architectures: one file each, data rather than code."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

from prunecomp.errors import UnsupportedModelError
from prunecomp.families._refused import REFUSED, refusal
from prunecomp.families.base import ModelFamily
from prunecomp.registry import Registry

__all__ = ["FAMILIES", "REFUSED", "did_you_mean_type", "family_for", "supported_types"]

FAMILIES = Registry(__name__, "FAMILY", "model family")
#: Names of models that their own config.json does not use.
_ALSO_CALLED = {"llama2": "llama", "llama3": "llama", "phi4": "phi3", "gpt_j": "gptj"}


def supported_types() -> dict[str, ModelFamily]:
    """Every supported ``model_type`` of config.json, with its family."""
    families = [FAMILIES.get(name) for name in FAMILIES.names()]
    return {family.model_type: family for family in families}


def did_you_mean_type(word: str, known: Iterable[str]) -> str:
    """``; did you mean X?`` for another spelling of a type, else the empty string.

    Types with other numbers, and those that only transformers knows, are other architectures.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    known = set(known)
    if word in CONFIG_MAPPING_NAMES and word not in known:
        return ""
    plain = _plain(_ALSO_CALLED.get(word.casefold(), word))
    alike: dict[str, list[str]] = {}
    for name in sorted(known | CONFIG_MAPPING_NAMES.keys()):
        other = _plain(name)
        same_numbers = re.findall(r"\d", other) == re.findall(r"\d", plain)
        if same_numbers and abs(len(other) - len(plain)) <= 1:
            alike.setdefault(other, []).append(name)
    near = [n for best in get_close_matches(plain, alike, n=1, cutoff=0.85) for n in alike[best]]
    found = [name for name in near if name in known]
    return f"; did you mean {found[0]!r}?" if found else ""


def _plain(name: str) -> str:
    return re.sub(r"[^a-z\d]", "", name.casefold())


def family_for(config: dict, *, where: str) -> ModelFamily:
    """The family of the model that `config` (the parsed config.json) describes.

    Raises:
        UnsupportedModelError: the type is not supported, or this very model uses a feature
            that the family cannot express after layers are gone.
    """
    known = supported_types()
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in known:
        reason = refusal(config, known)
        if reason:
            raise UnsupportedModelError(
                f"{where}: model type {model_type!r} is not supported: {reason}"
            )
        raise UnsupportedModelError(
            f"{where}: model type {model_type!r} is not supported"
            f"{did_you_mean_type(str(model_type), known)} (`cli.py families` lists what is)"
        )
    family = known[model_type]
    reason = family.reason_against(config)
    if reason:
        raise UnsupportedModelError(f"{where}: {reason}")
    return family

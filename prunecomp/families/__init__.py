"""The supported architectures: one file each, data rather than code."""

from __future__ import annotations

from prunecomp.errors import UnsupportedModelError
from prunecomp.families._refused import REFUSED, refusal
from prunecomp.families.base import ModelFamily
from prunecomp.registry import Registry, did_you_mean

__all__ = ["FAMILIES", "REFUSED", "family_for", "supported_types"]

FAMILIES = Registry(__name__, "FAMILY", "model family")


def supported_types() -> dict[str, ModelFamily]:
    """Every supported ``model_type`` of config.json, with its family."""
    families = [FAMILIES.get(name) for name in FAMILIES.names()]
    return {family.model_type: family for family in families}


def family_for(config: dict, *, where: str) -> ModelFamily:
    """The family of the model that `config` (the parsed config.json) describes.

    Raises:
        UnsupportedModelError: the type is not supported, or this very model uses a feature
            that the family cannot express after layers are gone.
    """
    known = supported_types()
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in known:
        names = sorted(known)
        reason = refusal(config)
        if reason:
            raise UnsupportedModelError(
                f"{where}: model type {model_type!r} is not supported: {reason}"
            )
        raise UnsupportedModelError(
            f"{where}: model type {model_type!r} is not supported"
            f"{did_you_mean(str(model_type), names)} (`cli.py families` lists what is)"
        )
    family = known[model_type]
    reason = family.reason_against(config)
    if reason:
        raise UnsupportedModelError(f"{where}: {reason}")
    return family

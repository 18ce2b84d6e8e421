"""Checks of a written model directory, made before it appears under its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.errors import PruneCompError, VerificationError


def _meta_model(path: Path) -> torch.nn.Module:
    """The model that transformers builds from the config, without memory for its weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def _layer_signature(module: torch.nn.Module) -> dict[str, Any]:
    """Parameter shapes, and scalar attributes such as a sliding window, of one layer.

    ``layer_idx`` differs by design: it numbers the layer's slot in the key-value cache.
    """
    found: dict[str, Any] = {n: tuple(p.shape) for n, p in module.named_parameters()}
    for name, child in module.named_modules():
        for key, value in vars(child).items():
            if isinstance(value, (bool, int, float, str, type(None))) and key != "layer_idx":
                found[f"{name}.{key}"] = value
    return found


def check_written(source: Checkpoint, written: Path, kept: tuple[int, ...]) -> list[str]:
    """Confirms that stock transformers will read `written` as `source` with the layers `kept`.

    Returns the names of the checks that passed. No weights are loaded: headers are compared
    with the model that the written config describes, and every kept layer with its original.

    Raises:
        VerificationError: a check failed.
    """
    try:
        result = Checkpoint(written)
        new, old = _meta_model(written), _meta_model(source.path)
    except (PruneCompError, ValueError, OSError, TypeError) as error:
        raise VerificationError(f"the written directory does not load: {error}") from error

    shapes = {name: tuple(spec.shape) for name, spec in result.index.items()}
    expected = {name: tuple(p.shape) for name, p in new.named_parameters()}
    for name in sorted(expected.keys() | shapes.keys()):
        if name == source.family.head and source.tied:
            continue  # a file may or may not repeat a tied head
        if name not in expected and name in source.index:
            continue  # transformers ignores it in the source, too
        if expected.get(name) != shapes.get(name):
            raise VerificationError(
                f"the written weights do not fit the written config: {name} is "
                f"{shapes.get(name, 'absent')}, {expected.get(name, 'nothing')} is expected"
            )
    old_layers = old.get_submodule(source.family.layers)
    new_layers = new.get_submodule(source.family.layers)
    for position, original in enumerate(kept):
        before = _layer_signature(old_layers[original])
        after = _layer_signature(new_layers[position])
        changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
        if changed:
            raise VerificationError(
                f"layer {original} would change when it becomes layer {position}: {changed[0]} is "
                f"{before.get(changed[0])} in the source and {after.get(changed[0])} in the result"
            )
    return ["headers", "tensors-fit-config", "layers-keep-their-attributes"]

"""Checks of a written model directory, made before it appears under its name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from prunecomp.checkpoint.account import check_account
from prunecomp.checkpoint.carried import CONFIG_FILE
from prunecomp.checkpoint.files import resolved_config, stock_config, why_not_built
from prunecomp.checkpoint.index import read_json
from prunecomp.checkpoint.parameters import ParameterMap
from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.errors import CheckpointError, PruneCompError, VerificationError
from prunecomp.families.base import ModelFamily


def meta_model(path: Path, dtype: torch.dtype | None = None) -> torch.nn.Module:
    """The model that transformers builds from the config, without memory for its weights.

    Args:
        dtype: that it is made in; None leaves that to transformers.
    """
    from transformers import AutoModelForCausalLM

    config = stock_config(path)
    with torch.device("meta"):
        options = {} if dtype is None else {"dtype": dtype}
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)


def model_of(path: Path, dtype: torch.dtype | None = None) -> torch.nn.Module:
    """The same, with an error that says what is wrong.

    Raises:
        CheckpointError: transformers cannot build it from the config.
    """
    try:
        return meta_model(path, dtype)
    except Exception as error:  # a config with odd values can raise anything in there
        reason = why_not_built(error, read_json(path / CONFIG_FILE))
        raise CheckpointError(
            f"{path}: transformers cannot build the model ({reason}); correct the config"
        ) from error


def check_source_model(checkpoint: Checkpoint) -> None:
    """Refuses, from headers alone, a checkpoint of which a tensor is not accounted for.

    Raises:
        CheckpointError: transformers cannot build it, or tensors are missing or misshapen.
        UnsupportedModelError: transformers does not accept the config, or there is a tensor of
            which the family does not say how it is scaled.
    """
    resolved_config(checkpoint)
    check_account(checkpoint, model_of(checkpoint.path))


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


def _check_tensors(
    source: Checkpoint,
    written: Checkpoint,
    old: torch.nn.Module,
    new: torch.nn.Module,
    kept: tuple[int, ...],
) -> None:
    """Every parameter of `new` gets a tensor of its shape, and no tensor is without a parameter."""
    parameters = ParameterMap(new, written.dense)
    expected = {name: tuple(p.shape) for name, p in new.state_dict().items()}
    found: dict[str, tuple[int, ...]] = {}
    for group in parameters:
        tensors = {
            name: torch.empty(written.dense.shape(name), device="meta") for name in group.sources
        }
        try:
            made = parameters.convert(group, tensors)
        except (RuntimeError, ValueError) as error:
            raise VerificationError(
                f"the written weights do not fit the written config: {group.sources[0]} and its "
                f"like do not make {group.target} ({error})"
            ) from error
        found.update((name, tuple(value.shape)) for name, value in made.items())
    # transformers ignores what has no parameter; of the source, that is known
    known = _renumbered(source.family, ParameterMap(old, source.dense).unused, kept)
    found.update((n, tuple(written.dense.shape(n))) for n in parameters.unused if n not in known)
    tied = getattr(new, "all_tied_weights_keys", {}) if source.tied else {}
    for name in sorted(expected.keys() | found.keys()):
        if name in tied and name not in found:
            continue  # a file may or may not repeat a tied head
        if expected.get(name) != found.get(name):
            raise VerificationError(
                f"the written weights do not fit the written config: {name} is "
                f"{found.get(name, 'absent')}, {expected.get(name, 'nothing')} is expected"
            )


def _renumbered(family: ModelFamily, names: Iterable[str], kept: tuple[int, ...]) -> set[str]:
    """The names that tensors of the source have once only the layers `kept` are left."""
    position = {original: number for number, original in enumerate(kept)}
    found = set()
    for name in names:
        where = family.layer_of(name)
        if where is None:
            found.add(name)
        elif where[0] in position:
            found.add(family.tensor_name(position[where[0]], where[1]))
    return found


def _check_parts(source: Checkpoint, written: Checkpoint, kept: tuple[int, ...]) -> None:
    """Every kept layer stores what it stored, part by part, in the same dtypes and shapes.

    What is not quantised may have got another dtype.
    """

    def stored(checkpoint: Checkpoint, numbers: dict[int, int]) -> dict[tuple[int, str], object]:
        located = ((checkpoint.family.layer_of(n), n, s) for n, s in checkpoint.index.items())
        return {
            (numbers[where[0]], where[1]): (
                spec.dtype if name in checkpoint.held else "another dtype", spec.shape
            )
            for where, name, spec in located
            if where is not None and where[0] in numbers
        }  # fmt: skip

    before = stored(source, {original: position for position, original in enumerate(kept)})
    after = stored(written, {position: position for position in range(len(kept))})
    for where in sorted(before.keys() | after.keys()):
        if before.get(where) != after.get(where):
            raise VerificationError(
                f"layer {where[0]} of the written model stores {where[1]} as "
                f"{after.get(where, 'nothing')}, the source as {before.get(where, 'nothing')}"
            )


def check_written(source: Checkpoint, written: Path, kept: tuple[int, ...]) -> list[str]:
    """Confirms that stock transformers will read `written` as `source` with the layers `kept`.

    Returns the names of the checks that passed. No weights are loaded: headers are compared
    with the model that the written config describes, and every kept layer with its original.

    Raises:
        VerificationError: a check failed.
    """
    try:
        result = Checkpoint(written)
        new, old = meta_model(written), meta_model(source.path)
    except (PruneCompError, ValueError, OSError, TypeError) as error:
        raise VerificationError(f"the written directory does not load: {error}") from error

    _check_tensors(source, result, old, new, kept)
    old_layers = old.get_submodule(source.layers_path)
    new_layers = new.get_submodule(source.layers_path)
    for position, original in enumerate(kept):
        before = _layer_signature(old_layers[original])
        after = _layer_signature(new_layers[position])
        changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
        if changed:
            raise VerificationError(
                f"layer {original} would change when it becomes layer {position}: {changed[0]} is "
                f"{before.get(changed[0])} in the source and {after.get(changed[0])} in the result"
            )
    checks = ["headers", "tensors-fit-config", "layers-keep-their-attributes"]
    if source.quantized is None:
        return checks
    _check_parts(source, result, kept)
    return [*checks, "quantised-parts-kept"]

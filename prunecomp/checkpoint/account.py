"""Whether every tensor of the files is accounted for, told from headers before anything runs.

Two sides know what a layer consists of: the stock model says which parameters it has, and the
family which tensors take the stream's factor. A checkpoint passes if every parameter gets a tensor
of its shape, and if the family speaks of every tensor of a layer. A writer of another name, or of
another form than the family knows, is then on neither list and cannot pass for one that stays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from prunecomp.checkpoint.parameters import ParameterMap
from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.errors import CheckpointError, UnsupportedModelError
from prunecomp.families.base import is_stored_buffer


@dataclass(frozen=True)
class Matched:
    """How the files and the parameters of a model go together.

    Attributes:
        targets: by the first parameter of a group, all parameters that it becomes.
        missing: parameters that no tensor becomes, those that are tied left out.
        faults: one line for each parameter that is missing or misshapen.
    """

    targets: Mapping[str, list[str]]
    missing: frozenset[str]
    faults: tuple[str, ...]


def match_parameters(model: nn.Module, parameters: ParameterMap, checkpoint: Checkpoint) -> Matched:
    """Compares names and shapes; ties in `model` what the files hold once."""
    dense, expected = checkpoint.dense, model.state_dict()
    missing, wrong = set(expected), []
    targets: dict[str, list[str]] = {}
    for group in parameters:
        shapes = {n: torch.empty(dense.shape(n), device="meta") for n in group.sources}
        try:
            made = parameters.convert(group, shapes)
        except (RuntimeError, ValueError) as error:
            wrong.append(f"{group.sources[0]}: {error}")
            continue
        targets[group.target] = list(made)
        missing -= made.keys()
        for name, value in made.items():
            if name in expected and value.shape != expected[name].shape:
                wrong.append(f"{name} is {tuple(value.shape)}, not {tuple(expected[name].shape)}")
    model.tie_weights(missing_keys=missing, recompute_mapping=False)
    ignored = model._keys_to_ignore_on_load_missing or ()
    missing = {n for n in missing if not any(re.search(pattern, n) for pattern in ignored)}
    return Matched(targets, frozenset(missing), (*sorted(missing), *wrong))


def refuse_faults(checkpoint: Checkpoint, matched: Matched) -> None:
    """Names the first parameter that the files do not hold as the model needs it.

    Raises:
        CheckpointError: there is one.
    """
    if not matched.faults:
        return
    count, first = len(matched.faults), " ".join(matched.faults[0].split())
    raise CheckpointError(
        f"{checkpoint.path}: {count} weights are missing or misshapen ({first}); restore the "
        "files, or correct the config"
    )


def check_account(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Refuses a checkpoint of which a tensor is not accounted for; reads headers only.

    Args:
        model: transformers' stock class for the checkpoint's config, on any device.

    Raises:
        CheckpointError: tensors are missing, empty or misshapen.
        UnsupportedModelError: the family does not say how a tensor goes with the factor.
    """
    parameters = ParameterMap(model, checkpoint.dense)
    _check_empty(checkpoint, parameters)
    _check_declared(checkpoint, set(parameters.unused))
    _check_groups(checkpoint, parameters)
    refuse_faults(checkpoint, match_parameters(model, parameters, checkpoint))


def _check_empty(checkpoint: Checkpoint, parameters: ParameterMap) -> None:
    for name in (name for group in parameters for name in group.sources):
        if 0 in checkpoint.dense.shape(name):
            raise CheckpointError(
                f"{checkpoint.path}: {name} has the shape {list(checkpoint.dense.shape(name))}, "
                "without values: one process of a sharded training saved it; gather the weights "
                "(DeepSpeed: zero_to_fp32.py), and give that directory"
            )


def _check_declared(checkpoint: Checkpoint, unused: set[str]) -> None:
    """Every tensor of a layer, and every parameter outside, is one that the family speaks of.

    What transformers does not load may be there if it is a vector at most, or a stored buffer.
    """
    family, extra = checkpoint.family, checkpoint.family.extra_layers(checkpoint.config)
    for name in checkpoint.dense:
        located = family.layer_of(name)
        if located is None:
            known = name in unused or family.is_outside(name)
        else:
            known = (
                located[0] in extra
                or family.accounts_for(located[1])
                or is_stored_buffer(name)
                or (name in unused and len(checkpoint.dense.shape(name)) < 2)
            )
        if not known:
            raise UnsupportedModelError(
                f"{checkpoint.path}: {name} {list(checkpoint.dense.shape(name))} is not a tensor "
                f"that prunecomp knows in a {family.model_type} model, so nobody can say whether "
                "it takes the factor; save the model with transformers, or without that tensor"
            )


def _check_groups(checkpoint: Checkpoint, parameters: ParameterMap) -> None:
    """What becomes one parameter takes one factor."""
    family = checkpoint.family
    for group in parameters:
        located = [(name, family.layer_of(name)) for name in group.sources]
        powers = {family.power(where[1]): name for name, where in located if where}
        if len(powers) > 1:
            one, other, *_ = powers.values()
            raise UnsupportedModelError(
                f"{checkpoint.path}: {one} and {other} become one parameter, and only one of them "
                "would take the factor; save the model with transformers"
            )

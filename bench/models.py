"""The models of a run: what they are called, and whether they belong together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.schema import Model
from prunecomp.checkpoint.index import read_config
from prunecomp.checkpoint.tensors import CheckpointIndex
from prunecomp.errors import CheckpointError, UsageError
from prunecomp.families import family_for
from prunecomp.manifest import plan_of

CONFIG_FILE = "config.json"


def has_weights(path: Path) -> bool:
    """Whether there are weight files; a directory without serves with ``--load-format dummy``."""
    return any(path.glob("*.safetensors"))


def _described(path: Path, *, name: str, base_depth: int | None) -> Model:
    from bench.work import counts_of

    config = read_config(path / CONFIG_FILE)
    family = family_for(config, where=str(path))
    depth, plan = family.depth(config), plan_of(path)
    counts = counts_of(path)
    return Model(
        id=name, path=str(path), role="base" if base_depth is None else "pruned",
        model_type=family.model_type, num_hidden_layers=depth,
        layers_removed=0 if base_depth is None else base_depth - depth,
        removed=plan.removed if plan else (),
        parameters=counts.parameters,
        weights_bytes=CheckpointIndex(path).nbytes if has_weights(path) else counts.bytes,
        plan=plan.to_json() if plan else None,
    )  # fmt: skip


def describe(base: Path, pruned: Sequence[Path]) -> tuple[Model, ...]:
    """Base and pruned models, each under a short name of its own.

    Raises:
        UsageError: one cannot be read, or does not belong to the base.
    """
    first = _described(base, name="base", base_depth=None)
    found = [first]
    for path in pruned:
        model = _described(path, name="", base_depth=first.num_hidden_layers)
        _check_pair(first, model)
        taken = {m.id for m in found}
        names = (
            f"minus-{model.layers_removed}",
            path.name,
            *(f"{path.name}-{i}" for i in range(99)),
        )
        name = next(n for n in names if n not in taken)
        found.append(Model(**{**vars(model), "id": name}))
    return tuple(found)


def _check_pair(base: Model, model: Model) -> None:
    if model.model_type != base.model_type:
        raise UsageError(
            f"{model.path}: is a {model.model_type} model, and the base {base.path} is "
            f"{base.model_type}; give pruned versions of the base"
        )
    sizes = [read_config(Path(m.path) / CONFIG_FILE).get("vocab_size") for m in (base, model)]
    if sizes[0] != sizes[1]:
        raise UsageError(
            f"{model.path}: has a vocabulary of {sizes[1]}, the base {base.path} of {sizes[0]}; "
            "give pruned versions of the base"
        )
    if model.layers_removed < 0:
        raise UsageError(
            f"{model.path}: has more layers than the base {base.path}; give the base first"
        )


def context_of(path: Path) -> int | None:
    """The longest sequence of a model, as its config says; None where it does not."""
    config = read_config(path / CONFIG_FILE)
    for key in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
        if isinstance(config.get(key), int):
            return config[key]
    return None


def vocabulary_of(path: Path) -> int:
    """Number of token ids.

    Raises:
        CheckpointError: the config does not say.
    """
    size = read_config(path / CONFIG_FILE).get("vocab_size")
    if not isinstance(size, int):
        raise CheckpointError(f"{path}: {CONFIG_FILE} has no vocab_size; add it")
    return size

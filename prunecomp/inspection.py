"""What would happen to a very checkpoint, told without loading its weights."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from prunecomp.checkpoint.files import resolved_config
from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.errors import PruneCompError, UsageError
from prunecomp.families._table import pinned_transformers, row, vllm_results
from prunecomp.families.base import any_expert
from prunecomp.fold import choose_fold, compile_edits
from prunecomp.metrics import METRICS
from prunecomp.pipeline import (
    EVALUATION_SAMPLES,
    PlanRequest,
    load_texts,
    resolve_recipe,
)
from prunecomp.plan import CalibrationRecord, PrunePlan, Recipe, SourceModel
from prunecomp.progress import Progress
from prunecomp.rounds import PruneRound, RemoveSpan, Scale


def _cut(checkpoint: Checkpoint, fold: str, first: int) -> PrunePlan:
    """A plan that removes the run of layers from `first` on, with a factor that is not one."""
    unit, depth = checkpoint.family.removal_unit, checkpoint.num_hidden_layers
    return PrunePlan(
        source=SourceModel("", checkpoint.family.model_type, depth, {}),
        recipe=Recipe("", "iterative", "", fold, unit, 0, 0, "", ""),
        calibration=CalibrationRecord("", 0, 0, 0, ""),
        rounds=(PruneRound(RemoveSpan(tuple(range(first, first + unit))), Scale(2.0), {}),),
    )


def folded_tensors(checkpoint: Checkpoint, fold: str) -> dict[str, dict[str, int]]:
    """Which tensors the fold scales: ``{"layers": {pattern: count}, "outside": {name: 1}}``.

    At most, that is: a cut scales those on its one side. Asked of the compiler of edits itself,
    for a cut at the very front and one at the very end.
    """
    unit, depth = checkpoint.family.removal_unit, checkpoint.num_hidden_layers
    scaled = {
        edit.replaces
        for first in (0, depth - unit)
        for edit in compile_edits(
            _cut(checkpoint, fold, first), checkpoint.family, checkpoint,
            tied=checkpoint.tied, held=checkpoint.held,
        )
        if edit.changes
    }  # fmt: skip
    located = {name: checkpoint.family.layer_of(name) for name in checkpoint if name in scaled}
    return {
        "layers": dict(Counter(any_expert(found[1]) for found in located.values() if found)),
        "outside": {name: 1 for name, found in located.items() if not found},
    }


def _folds(checkpoint: Checkpoint) -> dict[str, Any]:
    where = {
        "downstream": "scaled in every layer behind a cut; at most",
        "upstream": "scaled in every layer before a cut, and outside of the layers; at most",
    }
    found: dict[str, Any] = {}
    for fold, what in where.items():
        try:
            choose_fold(fold, checkpoint.family, tied=checkpoint.tied)
        except UsageError as error:
            found[fold] = {"possible": False, "reason": str(error)}
        else:
            found[fold] = {"possible": True, "what": what, **folded_tensors(checkpoint, fold)}
    return found


def _removable(checkpoint: Checkpoint, metric: str, request: PlanRequest) -> dict[str, Any]:
    family, depth = checkpoint.family, checkpoint.num_hidden_layers
    protect = METRICS.get(metric).protect
    asked = (request.protect_first, request.protect_last)
    first, last = (p if a is None else a for p, a in zip(protect, asked, strict=True))
    eligible = list(range(first, depth - last))
    most = min(len(eligible), depth - 1)
    return {
        "layers": eligible,
        "at_once": family.removal_unit,
        "at_once_reason": family.removal_reason,
        "at_most": most - most % family.removal_unit,
        "protected_first": first,
        "protected_last": last,
        "protected_reason": f"--metric {metric} spares them unless told otherwise"
        if (first, last) != (0, 0) and asked == (None, None)
        else "",
        "dropped_always": [
            i for i in family.extra_layers(checkpoint.config)
            if any((family.layer_of(name) or (-1,))[0] == i for name in checkpoint)
        ],
    }  # fmt: skip


def _quantisation(checkpoint: Checkpoint) -> str | None:
    """The method's name."""
    if checkpoint.quantized is None:
        return None
    return str(checkpoint.config[checkpoint.quantized.key].get("quant_method", "unknown"))


def _text(checkpoint: Checkpoint, request: PlanRequest) -> dict[str, Any]:
    """The shape of the text that `compress` would read.

    Where nobody asked for a text, and the model cannot read the built-in one, a text of the shape
    that was asked for is assumed: all else can still be told.
    """
    from prunecomp.calibration.data import DEFAULT_SAMPLES, DEFAULT_SEQ_LEN

    try:
        calibration, evaluation = load_texts(checkpoint, request)
    except PruneCompError as error:
        context = resolved_config(checkpoint).get("max_position_embeddings") or DEFAULT_SEQ_LEN
        samples = DEFAULT_SAMPLES if request.samples is None else request.samples
        seq_len = min(DEFAULT_SEQ_LEN, context) if request.seq_len is None else request.seq_len
        possible = samples >= 1 and 2 <= seq_len <= context and request.evaluation in {None, "none"}
        if request.calibration != PlanRequest.calibration or not possible:
            raise
        return {
            "source": request.calibration,
            "samples": samples,
            "seq_len": seq_len,
            "evaluation_samples": 0 if request.evaluation == "none" else EVALUATION_SAMPLES,
            "reading": 0,
            "unreadable": str(error),
        }
    samples, seq_len = calibration.input_ids.shape
    return {
        "source": request.calibration,
        "samples": samples,
        "seq_len": seq_len,
        "evaluation_samples": 0 if evaluation is None else len(evaluation.input_ids),
        "reading": calibration.reading,
        "prefix": list(calibration.prefix),
    }


def _memory(checkpoint: Checkpoint, request: PlanRequest, progress: Progress) -> dict[str, Any]:
    """See `prunecomp.memory`; imports and reads what `compress` does, for that is measured."""
    import transformers.core_model_loading  # noqa: F401  what loading imports counts as well

    from prunecomp.calibration import view  # noqa: F401
    from prunecomp.calibration.weights import skeleton
    from prunecomp.device import DTYPES
    from prunecomp.machine import estimate_memory

    unit = checkpoint.family.removal_unit
    several = request.layers != unit and checkpoint.num_hidden_layers > 2 * unit
    free = dataclasses.replace(
        request, layers=2 * unit if several else unit, ratio=None, protect_first=0, protect_last=0
    )
    recipe = resolve_recipe(checkpoint, free, progress)  # for its device and dtype
    model, text = skeleton(checkpoint, DTYPES[recipe.dtype]), _text(checkpoint, request)
    shape = {key: text[key] for key in ("samples", "seq_len", "evaluation_samples", "reading")}
    found = estimate_memory(checkpoint, request, recipe, model, **shape)
    return {
        "text": text,
        "metric": request.metric,
        "dtype": recipe.dtype,
        "device": found.device,
        "mode": found.mode,
        "batch_size": found.batch_size,
        "moment": found.moment,
        "bytes": found.total,
        "parts": found.parts,
        "moments": found.moments,
        "host_bytes": found.host,
        "available_bytes": found.available,
    }


def inspect_model(
    checkpoint: Checkpoint, request: PlanRequest, *, name: str, progress: Progress
) -> dict[str, Any]:
    """All that is known of a checkpoint before a compression, as plain data.

    Args:
        request: what a compression would be asked for; of how many layers it removes, only whether
            they are more than can go at once plays a part.
        name: what the user calls the model.

    Raises:
        UsageError: the checkpoint, or the request, cannot be used.
    """
    resolved = resolved_config(checkpoint)
    family, index = checkpoint.family, checkpoint.index
    told = row(family, vllm_results(), pinned_transformers())
    dtypes: Counter[str] = Counter()
    for spec in index.values():
        dtypes[spec.dtype] += spec.nbytes
    return {
        "model": name,
        "path": str(checkpoint.path),
        "converted_from": checkpoint.converted.facts() if checkpoint.converted else None,
        "model_type": family.model_type,
        "architecture": (checkpoint.config.get("architectures") or family.architectures)[0],
        "num_hidden_layers": checkpoint.num_hidden_layers,
        "hidden_size": resolved.get("hidden_size") or resolved.get("n_embd"),
        "vocab_size": resolved.get("vocab_size"),
        "tensors": len(index),
        "parameters": checkpoint.dense.parameters(index),
        "weight_files": len(index.files),
        "weight_bytes": index.nbytes,
        "bytes_by_dtype": dict(dtypes),
        "quantised": _quantisation(checkpoint),
        "tied_head": checkpoint.tied,
        "head_in_files": family.head in index,
        "removable": _removable(checkpoint, request.metric, request),
        "folds": _folds(checkpoint),
        "config_fields": [
            key for key in (family.depth_key, *told["config_fields"])
            if checkpoint.config.get(key, resolved.get(key)) is not None
        ],
        "restrictions": told["restrictions"],
        "verified": told["verified"],
        "memory": _memory(checkpoint, request, progress),
    }  # fmt: skip

"""A model directory made of another one: weights, config and what lies beside, then checked."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from prunecomp.checkpoint.account import check_account
from prunecomp.checkpoint.carried import left_behind
from prunecomp.checkpoint.files import carry_over, write_config
from prunecomp.checkpoint.layout import Saved, Shard, guessed, layout, saved_as
from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.checkpoint.sidecar import sources_of
from prunecomp.checkpoint.tensors import CheckpointIndex
from prunecomp.checkpoint.writer import write_index, write_weights
from prunecomp.errors import PlanError
from prunecomp.fold import Edit, TensorEdit, compile_edits
from prunecomp.plan import PrunePlan
from prunecomp.plan_checks import check_plan
from prunecomp.progress import Progress
from prunecomp.verify import check_written, model_of


@dataclass(frozen=True)
class Rewritten:
    """What `rewrite_model` wrote; `nbytes` are those of the weights."""

    files: list[str]
    parameters: int
    nbytes: int
    edited_tensors: int
    checks: list[str]
    comparison: dict[str, Any] = field(default_factory=dict)


def check_source(checkpoint: Checkpoint, plan: PrunePlan, *, read: bool = True) -> None:
    """Refuses to apply a plan to a model that it was not made for.

    Args:
        read: compute digests of weight files where they are not known yet; else those files are
            passed over.

    Raises:
        PlanError: depth, config or weights differ.
    """
    found = checkpoint.sha256() if read else checkpoint.known_sha256()
    expected = plan.source.sha256
    differing = sorted(
        file
        for file in found.keys() | expected.keys()
        if file not in found or found[file] not in (None, expected.get(file))
    )
    differing += sorted(found.keys() - expected.keys())
    if differing or checkpoint.num_hidden_layers != plan.source.num_hidden_layers:
        raise PlanError(
            f"{checkpoint.home}: the plan was made for another model ({plan.source.name}): "
            f"{differing[0] if differing else 'the depth'} differs; give the model that was planned"
        )


def _write_weights(
    checkpoint: Checkpoint, plan: PrunePlan | None, edits: Sequence[Edit], target: Path,
    *, dtype: torch.dtype | None, max_shard_bytes: float | None, progress: Progress,
) -> list[str]:  # fmt: skip
    """Writes weights and index; returns the names of the files.

    Loading transformers takes as long as copying some gigabytes. Both are done at once where the
    order that transformers will name can be guessed; a wrong guess is written anew.
    """

    def compare(file: str, digest: str) -> None:
        checkpoint.learn_sha256(file, digest)
        check_source(checkpoint, plan, read=False)

    def ask() -> Saved:
        model = model_of(checkpoint.path, dtype)
        check_account(checkpoint, model)
        return saved_as(checkpoint, model, dtype)

    def write(shards: Sequence[Shard], asked: Future[Saved]) -> None:
        def done(nbytes: int) -> None:
            if asked.done():
                asked.result()  # raises what is wrong with the checkpoint, before all is copied
            bar.update(nbytes)

        unread = None in checkpoint.known_sha256().values()
        total = sum(specs[source].nbytes for edit in edits for source in edit.sources)
        with progress.bar(total, "writing", unit="B") as bar:
            write_weights(
                target, checkpoint, shards, on_written=done,
                on_digest=compare if unread and plan is not None else None, scan=unread,
            )  # fmt: skip

    specs = sources_of(checkpoint, plan)
    guess = guessed(checkpoint) if dtype is None else None
    # before the thread starts, so that no two threads import the same packages
    attempt = layout(checkpoint, edits, guess, max_shard_bytes, specs=specs) if guess else []
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask)
        if attempt:
            write(attempt, asked)
        saved = asked.result()
    shards = layout(checkpoint, edits, saved, max_shard_bytes, specs=specs)
    if shards != attempt:
        for shard in attempt:
            (target / shard.name).unlink()
        write(shards, asked)
    return write_index(target, checkpoint, shards, saved)


def _carry_over(checkpoint: Checkpoint, target: Path, progress: Progress) -> list[str]:
    """Copies what goes along, and says what does not; returns the names of the files."""
    carried = carry_over(checkpoint.path, target)
    if left := left_behind(checkpoint.path, carried):
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        progress.say(f"note: not carried over: {', '.join(left[:5])}{more}")
    return carried


def rewrite_model(
    checkpoint: Checkpoint,
    plan: PrunePlan | None,
    target: Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: float | None = None,
    compare: bool = True,
    max_memory: int | None = None,
    progress: Progress,
) -> Rewritten:
    """Fills the empty directory `target` with the model of `plan`, and checks it.

    Weight files are compared with the plan while they are copied, so that they are read once.

    Args:
        plan: None keeps all layers.
        dtype: of floating tensors; None keeps theirs.
        max_shard_bytes: of tensors in one file; None splits as the source is split.
        compare: run what was written beside the source, see `prunecomp.comparison`.
        max_memory: bytes that the comparison may use; None for what is free.

    Raises:
        CheckpointError: a tensor is missing, or holds NaN or infinity.
        UnsupportedModelError: the family does not say of a tensor whether it takes the factor.
        PlanError: the plan belongs to another model.
        NumericError: a value does not fit its new dtype.
        VerificationError: what was written does not load as what was planned.
    """
    if plan is None:
        kept = tuple(range(checkpoint.num_hidden_layers))
        edits = tuple(TensorEdit(name, name) for name in checkpoint)
    else:
        kept = plan.kept
        check_plan(
            plan, checkpoint.family, checkpoint.num_hidden_layers, tied=checkpoint.tied
        )  # fmt: skip
        check_source(checkpoint, plan, read=False)
        edits = compile_edits(
            plan, checkpoint.family, checkpoint, tied=checkpoint.tied, held=checkpoint.held
        )
    files = _write_weights(
        checkpoint, plan, edits, target, dtype=dtype, max_shard_bytes=max_shard_bytes,
        progress=progress,
    )  # fmt: skip
    files += _carry_over(checkpoint, target, progress)
    write_config(target, checkpoint, None if plan is None else kept, dtype=dtype)
    checks, comparison = check_written(checkpoint, target, kept), {}
    if compare and plan is not None:
        comparison = _compare(checkpoint, target, plan, max_memory, progress)
        checks.append("runs-as-planned")
    return Rewritten(
        sorted([*files, "config.json"]),
        checkpoint.dense.parameters({edit.replaces for edit in edits}),
        CheckpointIndex(target).nbytes,
        sum(edit.changes for edit in edits),
        checks,
        comparison,
    )


def _compare(
    checkpoint: Checkpoint, target: Path, plan: PrunePlan, limit: int | None, progress: Progress
) -> dict[str, Any]:
    """What the comparison found, as plain data."""
    from prunecomp.comparison import compare_with_source

    started = time.monotonic()
    found = compare_with_source(
        checkpoint, Checkpoint(target), plan, limit=limit, progress=progress
    )
    progress.say(
        f"checked: on {found.tokens} tokens, layers differ by at most {found.layers:.1e} of what "
        f"they add, logits by {found.logits:.1e} ({found.bytes_read / 1e9:.2f} GB read again, "
        f"{time.monotonic() - started:.1f} s; --no-check leaves this out)"
    )
    return dataclasses.asdict(found)

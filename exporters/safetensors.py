"""Ordinary safetensors checkpoints, as transformers itself would write them."""

from __future__ import annotations

import argparse
from pathlib import Path

from exporters.base import Exporter, Facts, Source
from prunecomp.progress import Progress


def _add(group: argparse._ArgumentGroup) -> None:
    pass


def _export(source: Source, target: Path, options: argparse.Namespace, progress: Progress) -> Facts:
    from prunecomp.checkpoint.files import carry_over, write_config
    from prunecomp.checkpoint.writer import write_weights
    from prunecomp.fold import TensorEdit, compile_edits
    from prunecomp.pipeline import check_source
    from prunecomp.verify import check_written

    checkpoint, plan = source.checkpoint, source.plan
    if plan is None:
        kept = tuple(range(checkpoint.num_hidden_layers))
        edits = tuple(TensorEdit(name, name) for name in checkpoint)
    else:
        kept = plan.kept
        check_source(checkpoint, plan)
        edits = compile_edits(
            plan, checkpoint.family, checkpoint, tied=checkpoint.tied, held=checkpoint.held
        )
    nbytes = sum(checkpoint.index[edit.source].nbytes for edit in edits)
    with progress.bar(nbytes, "writing", unit="B") as bar:
        files = write_weights(target, checkpoint, edits, on_written=bar.update)
    files += carry_over(checkpoint.path, target)
    write_config(target, checkpoint, kept)
    return {
        "files": sorted([*files, "config.json"]),
        "parameters": checkpoint.dense.parameters({edit.source for edit in edits}),
        "nbytes": nbytes,
        "checks": check_written(checkpoint, target, kept),
    }


EXPORTER = Exporter("an ordinary checkpoint: transformers and vLLM load it", _add, _export)

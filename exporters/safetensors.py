"""Ordinary safetensors checkpoints, as transformers itself would write them."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path

from exporters.base import Exporter, Facts, Source
from prunecomp.errors import UsageError
from prunecomp.progress import Progress
from prunecomp.sizes import parse_bytes


def _size(text: str) -> int:
    try:
        return parse_bytes(text, option="--max-shard-size")
    except UsageError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a size; give one such as 5GB or 500MB"
        ) from error


def _add(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"],
        help="convert to it what is not quantised (default: as stored)",
    )  # fmt: skip
    split = group.add_mutually_exclusive_group()
    split.add_argument(
        "--max-shard-size", type=_size, default=_size("50GB"), metavar="SIZE",
        help="of the tensors in one file, such as 5GB or 500MB (default: 50GB, as in transformers)",
    )  # fmt: skip
    split.add_argument("--single-file", action="store_true", help="one file, whatever its size")


def _export(source: Source, target: Path, options: argparse.Namespace, progress: Progress) -> Facts:
    from prunecomp.device import DTYPES
    from prunecomp.rewrite import rewrite_model

    limit = math.inf if options.single_file else options.max_shard_size
    done = rewrite_model(
        source.checkpoint, source.plan, target, progress=progress, max_shard_bytes=limit,
        dtype=DTYPES[options.dtype] if options.dtype else None, compare=source.check,
    )  # fmt: skip
    return {"dtype": options.dtype or "as stored", **dataclasses.asdict(done)}


EXPORTER = Exporter("an ordinary checkpoint: transformers and vLLM load it", _add, _export)

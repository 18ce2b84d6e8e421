"""Writes safetensors one tensor at a time, byte for byte as the format's own library would.

All names, shapes and dtypes are known before the first byte is written, so the header goes first
and the tensors follow; memory use is one tensor. Tensors without an edit are copied as bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from prunecomp.checkpoint.index import DTYPE_BITS, INDEX_FILE, SINGLE_FILE, TensorSpec
from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.fold import Edit

_CHUNK = 16 << 20
_DTYPE_RANK = {dtype: rank for rank, dtype in enumerate(DTYPE_BITS)}


@dataclass(frozen=True)
class _Output:
    edit: Edit
    spec: TensorSpec  # of the source tensor; an edit keeps dtype and shape


def _order(output: _Output) -> tuple[int, str]:
    """The format's own order inside a file: widest dtype first, then by name."""
    return -_DTYPE_RANK[output.spec.dtype], output.edit.target


def _header(outputs: Sequence[_Output]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for output in outputs:
        end = offset + output.spec.nbytes
        entries[output.edit.target] = {
            "dtype": output.spec.dtype,
            "shape": list(output.spec.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _copy(spec: TensorSpec, out: BinaryIO) -> None:
    with spec.file.open("rb", buffering=0) as source:
        source.seek(spec.offset)
        left = spec.nbytes
        while left:
            chunk = source.read(min(left, _CHUNK))
            if not chunk:
                raise OSError(f"{spec.file} ended early")
            out.write(chunk)
            left -= len(chunk)


def _write_file(
    path: Path,
    outputs: Sequence[_Output],
    checkpoint: Checkpoint,
    on_written: Callable[[int], None],
) -> None:
    ordered = sorted(outputs, key=_order)
    with path.open("wb") as out:
        out.write(_header(ordered))
        for output in ordered:
            if output.edit.is_identity:
                _copy(output.spec, out)
            else:
                tensor = output.edit.apply(checkpoint[output.edit.source]).contiguous()
                out.write(tensor.flatten().view(torch.uint8).numpy().data)
            on_written(output.spec.nbytes)


def _shards(outputs: Sequence[_Output], limit: int) -> list[list[_Output]]:
    """Fills shards in order; a tensor above the limit gets a shard of its own."""
    shards: list[list[_Output]] = [[]]
    used = 0
    for output in outputs:
        if shards[-1] and used + output.spec.nbytes > limit:
            shards.append([])
            used = 0
        shards[-1].append(output)
        used += output.spec.nbytes
    return shards


def write_weights(
    directory: Path,
    checkpoint: Checkpoint,
    edits: Iterable[Edit],
    *,
    on_written: Callable[[int], None] = lambda nbytes: None,
) -> list[str]:
    """Writes the edited weights of `checkpoint` into `directory`; returns the file names.

    A source of one file gives one file. A sharded source gives shards no fuller than its
    fullest, with an index, also when one shard remains.

    Args:
        on_written: called with the number of bytes after each tensor, for progress.
    """
    outputs = [_Output(edit, checkpoint.index[edit.source]) for edit in edits]
    if not checkpoint.index.sharded:
        _write_file(directory / SINGLE_FILE, outputs, checkpoint, on_written)
        return [SINGLE_FILE]
    shards = _shards(outputs, checkpoint.index.largest_file)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(directory / name, shard, checkpoint, on_written)
        weight_map.update({output.edit.target: name for output in shard})
    metadata = {
        "total_parameters": sum(output.spec.numel for output in outputs),
        "total_size": sum(output.spec.nbytes for output in outputs),
    }
    index = json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True)
    (directory / INDEX_FILE).write_text(index + "\n", encoding="utf-8")
    return [*sorted(set(weight_map.values())), INDEX_FILE]

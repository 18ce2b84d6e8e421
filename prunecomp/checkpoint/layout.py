"""Which tensor goes where in written files: as transformers, having loaded a model, saves it.

Order and dtypes are asked of transformers' own model class, on the meta device; the split into
shards is that of huggingface_hub, which transformers uses.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from prunecomp.checkpoint.index import DTYPE_BITS, SINGLE_FILE, TensorSpec
from prunecomp.checkpoint.parameters import ParameterMap
from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.families.base import any_expert
from prunecomp.fold import Edit

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_DTYPE_RANK = {dtype: rank for rank, dtype in enumerate(DTYPE_BITS)}


@dataclass(frozen=True)
class Saved:
    """How transformers would save the tensors of a checkpoint.

    Attributes:
        order: names of all tensors.
        blocks: tensors of one value, which is any, go into the same file.
        dtypes: of tensors that may get another one than they have in the files.
        parameters: names of those that become parameters; buffers do not count as such.
    """

    order: tuple[str, ...]
    blocks: Mapping[str, int]
    dtypes: Mapping[str, str]
    parameters: frozenset[str]


def saved_as(
    checkpoint: Checkpoint, model: torch.nn.Module, dtype: torch.dtype | None = None
) -> Saved:
    """Asks transformers how it would save `checkpoint`, once loaded.

    A tensor that the model does not take is dropped by transformers, and is kept here, at the
    end: an older reader, or a tied head that a file repeats, may have a use for it.

    Args:
        model: of the checkpoint's config, on the meta device; made in `dtype` if that is given.
        dtype: of all floating tensors, but those of quantised weights, and those that the model
            keeps in float32; None leaves them as they are.
    """
    parameters = ParameterMap(model, checkpoint.dense)
    blocks = parameters.saved_order()
    rank = {name: number for number, name in enumerate(blocks)}
    logical = {n: checkpoint.held[n].weight if n in checkpoint.held else n for n in checkpoint}
    order = sorted(checkpoint, key=lambda name: rank.get(logical[name], len(rank)))
    wanted = {} if dtype is None else parameters.dtypes(dtype)
    dtypes = {
        name: _NAMES[new] for name, new in wanted.items()
        if name not in checkpoint.held and checkpoint.index[name].dtype in TORCH_DTYPES
    }  # fmt: skip
    own = {name for name, _ in model.named_parameters()}
    counted = {n for group in parameters if group.target in own for n in group.sources}
    return Saved(tuple(order), blocks, dtypes, frozenset(n for n in order if logical[n] in counted))


def guessed(checkpoint: Checkpoint) -> Saved | None:
    """What `saved_as` will most likely say, without loading transformers; None for no guess.

    Where every tensor is one parameter, transformers saves by name, numbers by their value.
    """
    located = [where for where in map(checkpoint.family.layer_of, checkpoint) if where]
    if any(any_expert(relative) != relative for _, relative in located):
        return None
    if checkpoint.tied and checkpoint.family.head in checkpoint:
        return None

    def natural(name: str) -> list[tuple[bool, int, str, int]]:
        parts = [re.fullmatch(r"(.*?)(\d*)", part) for part in name.split(".")]
        return [(bool(m[1]), 0 if m[1] else int(m[2] or 0), m[1], int(m[2] or -1)) for m in parts]

    return Saved(tuple(sorted(checkpoint, key=natural)), {}, {}, frozenset())


def as_stored(checkpoint: Checkpoint) -> Saved:
    """Order and dtypes of the files as they are."""
    return Saved(tuple(checkpoint), {}, {}, frozenset(checkpoint))


@dataclass(frozen=True)
class Output:
    """One tensor to write: how it is made of `sources`, and the shape and dtype that it gets."""

    edit: Edit
    sources: tuple[TensorSpec, ...]
    shape: tuple[int, ...]
    dtype: str

    @property
    def is_copy(self) -> bool:
        """Whether its bytes are those of its only source."""
        return self.edit.is_identity and self.dtype == self.sources[0].dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8


@dataclass(frozen=True)
class Shard:
    """One file to write; `outputs` in the order of the format: widest dtype first, then by name."""

    name: str
    outputs: tuple[Output, ...]

    @cached_property
    def header(self) -> bytes:
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for output in self.outputs:
            end = offset + output.nbytes
            entries[output.edit.target] = {
                "dtype": output.dtype,
                "shape": list(output.shape),
                "data_offsets": [offset, end],
            }
            offset = end
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def placed(self) -> Iterable[tuple[int, Output]]:
        """All outputs with the offsets of their first bytes in the file."""
        offset = len(self.header)
        for output in self.outputs:
            yield offset, output
            offset += output.nbytes


def _outputs(specs: Mapping[str, TensorSpec], edits: Iterable[Edit], saved: Saved) -> list[Output]:
    """What `edits` make, in the order of `saved`."""
    rank = {name: number for number, name in enumerate(saved.order)}
    outputs = []
    for edit in sorted(edits, key=lambda edit: rank[edit.replaces]):
        made = edit.output_spec(specs)
        dtype = saved.dtypes.get(edit.replaces, made.dtype)
        outputs.append(Output(edit, tuple(specs[n] for n in edit.sources), made.shape, dtype))
    return outputs


def split(outputs: Sequence[Output], saved: Saved, max_shard_bytes: float) -> list[Shard]:
    """Splits `outputs` into files that hold no more than `max_shard_bytes` of tensors.

    A tensor above the limit, or a block of them, gets a file of its own.
    """
    from huggingface_hub import split_state_dict_into_shards_factory

    by_name = {output.edit.target: output for output in outputs}
    sizes = Counter[object]()

    def block(output: Output) -> object:
        return saved.blocks.get(output.edit.replaces, output.edit.replaces)

    for output in outputs:
        sizes[block(output)] += output.nbytes
    found = split_state_dict_into_shards_factory(
        by_name,
        get_storage_id=block,
        get_storage_size=lambda output: sizes[block(output)],
        filename_pattern=SINGLE_FILE.replace(".", "{suffix}.", 1),
        max_shard_size=max_shard_bytes,
    )

    def order(name: str) -> tuple[int, str]:
        return -_DTYPE_RANK[by_name[name].dtype], name

    return [
        Shard(file, tuple(by_name[name] for name in sorted(names, key=order)))
        for file, names in found.filename_to_tensors.items()
    ]


def layout(
    checkpoint: Checkpoint,
    edits: Iterable[Edit],
    saved: Saved,
    max_shard_bytes: float | None,
    *,
    specs: Mapping[str, TensorSpec] | None = None,
) -> list[Shard]:
    """The files that `edits` make.

    Args:
        specs: of all that the edits read; None where that is the checkpoint's own tensors.
        max_shard_bytes: of tensors in one file; None makes shards no fuller than the fullest of
            the source, and one file of one file.
    """
    if max_shard_bytes is None:
        max_shard_bytes = checkpoint.index.largest_file if checkpoint.index.sharded else math.inf
    outputs = _outputs(checkpoint.index if specs is None else specs, edits, saved)
    return split(outputs, saved, max_shard_bytes)


def index_text(shards: Sequence[Shard], checkpoint: Checkpoint, saved: Saved) -> str:
    """The index of several files, as transformers writes it."""
    outputs = [output for shard in shards for output in shard.outputs]
    replaced = {output.edit.replaces for output in outputs} & saved.parameters
    metadata = {
        "total_parameters": checkpoint.dense.parameters(replaced),
        "total_size": sum(output.nbytes for output in outputs),
    }
    weight_map = {o.edit.target: shard.name for shard in shards for o in shard.outputs}
    document = {"metadata": metadata, "weight_map": weight_map}
    return json.dumps(document, indent=2, sort_keys=True) + "\n"

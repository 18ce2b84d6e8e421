"""What a safetensors checkpoint holds, from its headers alone.

Format: https://huggingface.co/docs/safetensors (8 bytes of header length, little endian; a JSON
header; the tensors' bytes, contiguous). Every invariant is checked before a byte of data is
trusted, so a truncated or forged file is refused by name: what the format's own reader refuses is
refused here, and what it accepts is accepted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunecomp import json_files
from prunecomp.errors import CheckpointError, brief
from prunecomp.limits import MAX_JSON_BYTES

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

#: Bits per element of each dtype of the format, in the order in which its writer sorts tensors.
DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8,
    "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16,
    "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64,
    "U64": 64,
}  # fmt: skip

_MAX_DIMENSION = 2**63 - 1  # of a tensor in memory; the format allows more where one is zero
_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class TensorSpec:
    """One tensor: where it is and what it is.

    Attributes:
        name: in the file.
        offset: of its first byte, from the start of the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def read_json(path: Path) -> Any:
    """The parsed JSON of a file of a model directory.

    Raises:
        CheckpointError: unreadable, or not JSON.
    """
    return json_files.read_json(path, CheckpointError, "restore the file", foreign=True)


def read_config(path: Path) -> dict[str, Any]:
    """The same of a config.json, which is an object.

    Raises:
        CheckpointError: unreadable, or something else.
    """
    config = read_json(path)
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: is not a JSON object; restore the file")
    return config


def refuse_pointer(path: Path) -> None:
    """Refuses what a clone without git-lfs has in place of a file.

    Raises:
        CheckpointError: it is such a pointer.
    """
    try:
        with path.open("rb") as file:
            found = file.read(len(_POINTER))
    except OSError:
        return  # who reads it in earnest says why
    if found == _POINTER:
        raise CheckpointError(
            f"{path}: is a Git LFS pointer, not the file itself; run `git lfs pull` in "
            f"{path.parent}, or download it again"
        )


def read_header(path: Path) -> list[TensorSpec]:
    """All tensors of one safetensors file, in file order.

    The format's own reader decides what is a sound file. It lets no byte of the data be without a
    tensor, or belong to two, so that the shapes tell where each one is.

    Raises:
        CheckpointError: unreadable, truncated, or in violation of the format.
    """
    from safetensors import SafetensorError, safe_open

    refuse_pointer(path)
    try:
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
        with safe_open(path, framework="numpy") as file:
            found = [(name, file.get_slice(name)) for name in file.offset_keys()]
            entries = [(name, part.get_dtype(), tuple(part.get_shape())) for name, part in found]
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot read the weights ({error.strerror or error}); check the path and "
            "permissions"
        ) from error
    except SafetensorError as error:
        reason = str(error).rpartition("header: ")[2]
        raise _damaged(path, f"{reason}{_place(path)}") from error
    specs = []
    for name, dtype, shape in entries:
        if dtype not in DTYPE_BITS or max(shape, default=0) > _MAX_DIMENSION:
            raise _damaged(path, f"tensor {brief(name)} is {dtype} {brief(shape)}")
        nbytes = DTYPE_BITS[dtype] * math.prod(shape) // 8
        specs.append(TensorSpec(name, dtype, shape, path, start, nbytes))
        start += nbytes
    return specs


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path}: damaged safetensors file ({what}); download it again")


def _place(path: Path) -> str:
    """Which tensor of a refused header has an entry that is none, where one has; for a message."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, MAX_JSON_BYTES)))
    except (OSError, ValueError, RecursionError, MemoryError):
        return ""
    entries = header.items() if isinstance(header, dict) else ()
    odd = (name for name, entry in entries if name != "__metadata__" and not _is_entry(entry))
    return next((f", in tensor {brief(name)}" for name in odd), "")


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not (isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2):
        return False
    return entry["dtype"] in DTYPE_BITS and all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= _MAX_DIMENSION
        for n in (*shape, *offsets)
    )

"""What a safetensors checkpoint holds, from its headers alone.

Format: https://huggingface.co/docs/safetensors (8 bytes of header length, little endian; a JSON
header; the tensors' bytes, contiguous). Every invariant is checked before a byte of data is
trusted, so a truncated or forged file is refused by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunecomp.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

#: Bits per element of each dtype of the format, in the order in which its writer sorts tensors.
DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8,
    "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16,
    "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64,
    "U64": 64,
}  # fmt: skip

_MAX_HEADER = 100_000_000  # the limit of the format's own reader
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
    """The parsed JSON of `path`.

    Raises:
        CheckpointError: unreadable, or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: cannot read it as JSON ({error}); restore the file"
        ) from error


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

    Raises:
        CheckpointError: unreadable, truncated, or in violation of the format.
    """
    refuse_pointer(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                raise _damaged(path, f"its header claims {length} bytes, the file has {size}")
            header = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot read the weights ({error.strerror}); check the path and permissions"
        ) from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not an object")
    header.pop("__metadata__", None)
    specs = [_spec(path, name, entry, 8 + length) for name, entry in header.items()]
    specs.sort(key=lambda spec: spec.offset)
    end = 8 + length
    for spec in specs:
        if spec.offset != end:
            raise _damaged(path, f"tensor {spec.name} does not start where the one before it ends")
        end += spec.nbytes
    if end != size:
        raise _damaged(path, f"its header describes {end} bytes, the file has {size}")
    return specs


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path}: damaged safetensors file, {what}; download it again")


def _spec(path: Path, name: str, entry: Any, data_start: int) -> TensorSpec:
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        bits = DTYPE_BITS[dtype] * math.prod(shape)
        sound = all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"tensor {name} has a malformed entry ({error!r})") from error
    if not sound or bits % 8 or end - begin != bits // 8:
        raise _damaged(path, f"tensor {name} has offsets that do not fit its shape and dtype")
    return TensorSpec(name, dtype, shape, path, data_start + begin, end - begin)

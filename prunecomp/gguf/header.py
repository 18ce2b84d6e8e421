"""What a GGUF file says of itself: metadata and the table of its tensors, with every claim checked.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The readers of the package
``gguf`` and of transformers trust a file; they see only files that have passed here.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prunecomp.errors import CheckpointError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MOST_DIMENSIONS = 4
_STRING, _ARRAY = 8, 9
#: Kinds of metadata of a fixed size, as `struct` calls them.
_SCALARS: Mapping[int, str] = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
#: Bytes of the smallest entry of metadata (a key of no letters, a kind, one byte), and of a tensor
#: (a name of no letters, no dimensions, a kind, an offset): what a count can be checked against.
_SMALLEST_ENTRY, _SMALLEST_TENSOR = 13, 24


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file.

    Attributes:
        shape: outermost dimension first, as torch has it; of values, not of bytes.
        kind: number of its quantisation; `gguf.GGMLQuantizationType` has the names.
        offset: of its first byte in the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int
    nbytes: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """All of a file but the data of its tensors.

    Attributes:
        metadata: by key; arrays as lists.
        tensors: in the order of their data.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]

    @property
    def architecture(self) -> str:
        return self.metadata["general.architecture"]

    @cached_property
    def types(self) -> dict[str, int]:
        """Number of tensors of each type of quantisation, the one with most values first."""
        from gguf import GGMLQuantizationType

        counts: Counter[int] = Counter(t.kind for t in self.tensors)
        values: Counter[int] = Counter()
        for tensor in self.tensors:
            values[tensor.kind] += tensor.numel
        return {GGMLQuantizationType(k).name: counts[k] for k, _ in values.most_common()}

    @property
    def quantization(self) -> str:
        """What the file's quantisation is called, such as ``Q4_K_M``.

        The type that most values have, or the name that the file gives to a mixture that is mostly
        of that type.
        """
        from gguf import LlamaFileType

        most = next(iter(self.types))
        try:
            name = LlamaFileType(self.metadata.get("general.file_type")).name
        except ValueError:
            return most
        name = name.removeprefix("MOSTLY_").removeprefix("ALL_")
        return name if name.startswith(most) else most


class _Reader:
    """Takes values off the front of a file, and no more than the file has."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.position = path, data, 0

    def damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: damaged: {what[:200]}; download it again")

    @property
    def left(self) -> int:
        return len(self.data) - self.position

    def take(self, nbytes: int, what: str) -> bytes:
        if nbytes > self.left:
            raise self.damaged(
                f"it is cut short or lies about its sizes: {what} at byte {self.position} takes "
                f"{nbytes} bytes, and {self.left} are left"
            )
        taken = self.data[self.position : self.position + nbytes]
        self.position += nbytes
        return taken

    def number(self, form: str, what: str) -> Any:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}"), what))[0]

    def text(self, what: str) -> str:
        raw = self.take(self.number("Q", f"the length of {what}"), what)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self.damaged(f"{what} is not UTF-8") from error

    def count(self, what: str, smallest: int) -> int:
        """A number of things that take at least `smallest` bytes each."""
        found = self.number("Q", f"the number of {what}")
        if found * smallest > self.left:
            raise self.damaged(
                f"it is cut short or lies about its sizes: it claims {found} {what}, for which "
                f"{self.left} bytes are too few"
            )
        return found

    def value(self, kind: int, what: str) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind], what)
        if kind == _STRING:
            return self.text(what)
        if kind != _ARRAY:
            raise self.damaged(f"{what} is of kind {kind}, which GGUF does not have")
        inner = self.number("I", what)
        if inner in _SCALARS:
            size = struct.calcsize(f"<{_SCALARS[inner]}")
            length = self.count(f"values of {what}", size)
            return list(
                struct.unpack(f"<{length}{_SCALARS[inner]}", self.take(length * size, what))
            )
        if inner != _STRING:
            raise self.damaged(f"{what} is a list of kind {inner}, which GGUF does not have")
        return [self.text(what) for _ in range(self.count(f"values of {what}", 8))]


def _metadata(reader: _Reader, count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(count):
        key = reader.text("a key of the metadata")
        if key in found:
            raise reader.damaged(f"it has {key} twice")
        found[key] = reader.value(reader.number("I", key), key)
    return found


def _sizes(reader: _Reader) -> Callable[[str, int], tuple[int, int]]:
    """Values and bytes of one block of each type of quantisation that can be unpacked."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    checked: dict[int, tuple[int, int]] = {}

    def sizes(name: str, number: int) -> tuple[int, int]:
        if number not in checked:
            try:
                kind = GGMLQuantizationType(number)
                values, nbytes = GGML_QUANT_SIZES[kind]
                dequantize(np.zeros((1, nbytes), dtype=np.uint8), kind)
            except (ValueError, KeyError, NotImplementedError) as error:
                known = GGMLQuantizationType.__members__.values()
                called = next((k.name for k in known if k == number), f"number {number}")
                raise CheckpointError(
                    f"{reader.path}: {name} has the quantisation {called}, which the package gguf "
                    "cannot unpack; take another file of the model, or update gguf"
                ) from error
            checked[number] = values, nbytes
        return checked[number]

    return sizes


def _tensors(reader: _Reader, count: int, alignment: int) -> tuple[GgufTensor, ...]:
    sizes, found, expected, names = _sizes(reader), [], 0, set[str]()
    for _ in range(count):
        name = reader.text("the name of a tensor")
        dimensions = reader.number("I", name)
        if dimensions > _MOST_DIMENSIONS:
            raise reader.damaged(f"{name} has {dimensions} dimensions")
        shape = tuple(reader.number("Q", name) for _ in range(dimensions))[::-1] or (1,)
        kind, offset = reader.number("I", name), reader.number("Q", name)
        values, nbytes = sizes(name, kind)
        if name in names:
            raise reader.damaged(f"it has {name} twice")
        if not all(shape) or shape[-1] % values:
            raise reader.damaged(f"{name} cannot be of shape {list(shape)} in blocks of {values}")
        if offset != expected:
            raise reader.damaged(
                f"the data of {name} should begin at {expected}, and it says {offset}"
            )
        names.add(name)
        found.append(GgufTensor(name, shape, kind, offset, math.prod(shape) // values * nbytes))
        expected = _aligned(offset + found[-1].nbytes, alignment)
    start, size = _aligned(reader.position, alignment), len(reader.data)
    placed = [GgufTensor(t.name, t.shape, t.kind, start + t.offset, t.nbytes) for t in found]
    for tensor in placed:
        if tensor.offset + tensor.nbytes > size:
            raise reader.damaged(
                f"it is cut short or lies about its sizes: {tensor.name} of shape "
                f"{list(tensor.shape)} ends at byte {tensor.offset + tensor.nbytes}, the file at "
                f"{size}"
            )
    return tuple(placed)


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _alignment(reader: _Reader, metadata: Mapping[str, Any]) -> int:
    found = metadata.get("general.alignment", 32)
    if type(found) is not int or found < 1 or found & (found - 1):
        raise reader.damaged(f"general.alignment is {found!r}, not a power of two")
    return found


def read_header(path: Path) -> GgufHeader:
    """Everything but the data of the tensors, of which the places and sizes are checked.

    Raises:
        CheckpointError: unreadable, cut short, in violation of the format, or of a version or
            a quantisation that cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            if start[:4] != _MAGIC or len(start) < 8:
                raise CheckpointError(
                    f"{path}: is no GGUF file, it does not begin with GGUF; download it again"
                )
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read(_Reader(path, data))
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot read it ({error.strerror}); check the path and its permissions"
        ) from error


def _read(reader: _Reader) -> GgufHeader:
    reader.take(4, "the beginning")
    version = reader.number("I", "the version")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        said = f"{swapped}, big-endian" if swapped in _VERSIONS else version
        raise CheckpointError(
            f"{reader.path}: is GGUF of version {said}; versions 2 and 3, little-endian, can be "
            "read; convert the model again"
        )
    tensors = reader.count("tensors", _SMALLEST_TENSOR)
    entries = reader.count("entries of metadata", _SMALLEST_ENTRY)
    metadata = _metadata(reader, entries)
    if not isinstance(metadata.get("general.architecture"), str):
        raise reader.damaged("its metadata have no general.architecture")
    return GgufHeader(
        reader.path, metadata, _tensors(reader, tensors, _alignment(reader, metadata))
    )

"""Finds NaN and infinity in the bytes of weights, as fast as they can be read.

A floating number is not finite if its exponent has all bits set, so, its sign left out, it is the
largest of integers: two maxima tell, one over the bits as signed integers for positive values, one
as unsigned integers for negative ones. Types without infinity have NaN alone there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunecomp.checkpoint.index import TensorSpec
from prunecomp.errors import CheckpointError


@dataclass(frozen=True)
class _Bits:
    """How values lie: bytes of one, and the smallest positive bits that are no finite number."""

    nbytes: int
    first: int

    def finite(self, data: np.ndarray) -> bool:
        """Whether all values in these bytes (whole ones) are."""
        if not data.size:
            return True
        positive = data.view(f"<i{self.nbytes}").max() < self.first
        sign = 1 << (8 * self.nbytes - 1)
        return bool(positive and data.view(f"<u{self.nbytes}").max() < self.first + sign)


class _Fnuz(_Bits):
    """One byte without a negative zero: what would be it is NaN, and nothing else is."""

    def finite(self, data: np.ndarray) -> bool:
        return bool(not data.size or data.view("<i1").min() > -128)


_BITS = {
    "F64": _Bits(8, 0x7FF0 << 48), "F32": _Bits(4, 0x7F80 << 16),
    "F16": _Bits(2, 0x7C00), "BF16": _Bits(2, 0x7F80),
    "F8_E5M2": _Bits(1, 0x7C), "F8_E4M3": _Bits(1, 0x7F),
    "F8_E5M2FNUZ": _Fnuz(1, 0), "F8_E4M3FNUZ": _Fnuz(1, 0),
}  # fmt: skip


class FiniteScan:
    """Is fed one weight file from front to back, in pieces of any size."""

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        """`specs` of the tensors to look at; only floating numbers are."""
        floating = (spec for spec in specs if spec.dtype in _BITS)
        self._specs = sorted(floating, key=lambda spec: spec.offset)
        self._next, self._at, self._rest = 0, 0, b""

    def feed(self, data: memoryview) -> None:
        """Looks at the next bytes of the file.

        Raises:
            CheckpointError: a tensor holds a value that is no finite number.
        """
        start, end = self._at, self._at + len(data)
        while self._next < len(self._specs):
            spec = self._specs[self._next]
            last = spec.offset + spec.nbytes
            if spec.offset >= end:
                break
            self._look(spec, data[max(start, spec.offset) - start : min(end, last) - start])
            if last > end:
                break
            self._next, self._rest = self._next + 1, b""
        self._at = end

    def _look(self, spec: TensorSpec, data: memoryview) -> None:
        bits = _BITS[spec.dtype]
        if self._rest:  # of a value that the last piece cut in two
            missing = bits.nbytes - len(self._rest)
            head, data = self._rest + bytes(data[:missing]), data[missing:]
            if len(head) < bits.nbytes:
                self._rest = head
                return
            self._check(spec, np.frombuffer(head, np.uint8))
        whole = len(data) - len(data) % bits.nbytes
        self._check(spec, np.frombuffer(data[:whole], np.uint8))
        self._rest = bytes(data[whole:])

    def _check(self, spec: TensorSpec, data: np.ndarray) -> None:
        if not _BITS[spec.dtype].finite(data):
            raise CheckpointError(
                f"{spec.file}: {spec.name} holds NaN or infinity, so the model gives no numbers; "
                "restore the file, or repeat the merge or conversion that made it"
            )

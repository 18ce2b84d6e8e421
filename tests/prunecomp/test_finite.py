"""Values that are no numbers, found in bytes; the oracle is torch's own isfinite."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunecomp.checkpoint.finite import FiniteScan
from prunecomp.checkpoint.index import TensorSpec
from prunecomp.errors import CheckpointError

ALL_BITS = {
    "F16": (torch.float16, torch.int16, 2), "BF16": (torch.bfloat16, torch.int16, 2),
    "F8_E4M3": (torch.float8_e4m3fn, torch.uint8, 1),
    "F8_E5M2": (torch.float8_e5m2, torch.uint8, 1),
    "F8_E4M3FNUZ": (torch.float8_e4m3fnuz, torch.uint8, 1),
    "F8_E5M2FNUZ": (torch.float8_e5m2fnuz, torch.uint8, 1),
}  # fmt: skip
ODD = [float("nan"), -float("nan"), float("inf"), -float("inf")]


def found(dtype: str, data: bytes, *, offset: int = 0, piece: int = 1 << 20) -> bool:
    """Whether a file of one tensor behind `offset` bytes is refused."""
    spec = TensorSpec("a.weight", dtype, (1,), Path("f"), offset, len(data))
    try:
        fed([spec], b"\xff" * offset + data + b"\xff" * 9, piece)
    except CheckpointError:
        return True
    return False


def fed(specs, file: bytes, piece: int) -> None:
    scan = FiniteScan(specs)
    for start in range(0, len(file), piece):
        scan.feed(memoryview(file)[start : start + piece])


@pytest.mark.parametrize("dtype", ALL_BITS)
def test_every_value_of_short_types(dtype):
    kind, integer, nbytes = ALL_BITS[dtype]
    bits = torch.arange(256**nbytes).to(integer)
    values = bits.view(kind)
    finite = torch.isfinite(values.float())
    for number in range(0, len(bits), 1 if nbytes == 1 else 61):
        data = bits[number : number + 1].numpy().tobytes()
        assert found(dtype, data) != bool(finite[number]), values[number]
    assert not found(dtype, bits[finite].numpy().tobytes())


@pytest.mark.parametrize("dtype", ["F32", "F64"])
@pytest.mark.parametrize("odd", ODD)
def test_long_types(dtype, odd):
    kind = {"F32": torch.float32, "F64": torch.float64}[dtype]
    largest = torch.finfo(kind).max
    values = torch.tensor([0.0, -0.0, largest, -largest, torch.finfo(kind).tiny], dtype=kind)
    assert not found(dtype, values.numpy().tobytes())
    values[3] = odd
    assert found(dtype, values.numpy().tobytes())


@given(
    st.integers(0, 30), st.integers(0, 17), st.integers(1, 13),
    st.sampled_from(["F16", "F32", "F64"]), st.sampled_from(ODD),
)  # fmt: skip
def test_pieces_may_cut_values_in_two(place, offset, piece, dtype, odd):
    """Whatever the pieces are, and wherever the tensor begins; other bytes are not looked at."""
    kind = {"F16": torch.float16, "F32": torch.float32, "F64": torch.float64}[dtype]
    values = torch.ones(31, dtype=kind)
    assert not found(dtype, values.numpy().tobytes(), offset=offset, piece=piece)
    values[place] = odd
    assert found(dtype, values.numpy().tobytes(), offset=offset, piece=piece)


def test_integers_have_no_odd_values():
    assert not found("I16", b"\xff" * 8)
    assert not found("BOOL", b"\xff" * 8)


def test_neighbours_are_told_apart():
    """Of several tensors, one of them empty, the right one is named."""
    good, bad = torch.ones(3), torch.tensor([1.0, float("nan")])
    data = good.numpy().tobytes() + bad.numpy().tobytes()
    specs = [
        TensorSpec("good", "F32", (3,), Path("f"), 0, 12),
        TensorSpec("empty", "F32", (0,), Path("f"), 12, 0),
        TensorSpec("bad", "F32", (2,), Path("f"), 12, 8),
    ]
    for piece in (1, 5, 12, 100):
        with pytest.raises(CheckpointError, match="f: bad holds NaN or infinity"):
            fed(specs, data, piece)

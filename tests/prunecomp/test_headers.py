"""Headers of safetensors: the verdict of the format's own reader, over headers of every kind.

The offsets are compared with those that the header states, which the reader does not give.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
from safetensors import safe_open

from prunecomp.checkpoint.index import DTYPE_BITS, read_header
from prunecomp.errors import CheckpointError

ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
NAMES = ["a", "model.layers.0.x", "é", "line\u2028break", "\x1b[31m", ""]


def put(path: Path, header, body: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + text + body)
    return path


def official(path: Path) -> dict[str, tuple] | None:
    try:
        with safe_open(path, framework="numpy") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {n: (p.get_dtype(), tuple(p.get_shape())) for n, p in parts.items()}
    except Exception:  # noqa: BLE001  whatever it raises, it refuses
        return None


def same_verdict(path: Path, stated: dict | None = None) -> bool:
    """Checks `read_header` against the official reader; whether the file is sound."""
    expected = official(path)
    if expected is None:
        with pytest.raises(CheckpointError, match=rf"^{path}: .*; download it again$"):
            read_header(path)
        return False
    specs = read_header(path)
    assert {s.name: (s.dtype, s.shape) for s in specs} == expected
    start = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    for spec in specs:
        if stated is not None and spec.name in stated:
            begin, end = stated[spec.name]["data_offsets"]
            assert (spec.offset, spec.nbytes) == (start + begin, end - begin)
    return True


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_every_dtype(tmp_path, dtype):
    nbytes = 8 * DTYPE_BITS[dtype] // 8
    head = {"x": {"dtype": dtype, "shape": [2, 4], "data_offsets": [0, nbytes]}}
    assert same_verdict(put(tmp_path / "f", head, bytes(nbytes)), head)
    head["x"]["shape"] = [1]  # less than a byte for some, less than the data for all
    assert not same_verdict(put(tmp_path / "f", head, bytes(nbytes)))


RAW = {
    "a key twice in an entry": b'{"a":{"dtype":"I8","dtype":"F32","shape":[2],'
                               b'"data_offsets":[0,8]}}',
    "a name twice": b'{"a":{"dtype":"I8","shape":[8],"data_offsets":[0,8]},'
                    b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    "a float": b'{"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}',
    "minus zero": b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[-0,8]}}',
    "blanks before": b'  {"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    "blanks behind": b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}} \n ',
    "a nought behind": b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}\0',
    "a byte order mark": b'\xef\xbb\xbf{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    "NaN": b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":NaN}}',
    "a surrogate": b'{"a\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    "more keys": b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":[{}]}}',
    "400 digits": b'{"a":{"dtype":"F32","shape":[' + b"9" * 400 + b'],"data_offsets":[0,8]}}',
    "deep": b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":' + b"[" * 500 + b"]" * 500
            + b"}}",
    "metadata of numbers": b'{"__metadata__":{"format":1},'
                           b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    "metadata that is a list": b'{"__metadata__":[],'
                               b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    "a list for an entry": b'{"a":["F32",[2],[0,8]]}',
    "UTF-16": '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.encode("utf-16"),
    "nothing": b"", "an empty object": b"{}", "a list": b"[]", "null": b"null",
}  # fmt: skip


@pytest.mark.parametrize("kind", RAW)
def test_headers_by_hand(tmp_path, kind):
    for body in (bytes(8), b""):
        same_verdict(put(tmp_path / "f", RAW[kind], body))


@pytest.mark.parametrize(
    ("shapes", "sound"),
    [
        ([[2, 3], [0]], True), ([[0], [2, 3], [0, 5]], True), ([[]], True), ([[0]], True),
        ([[True, 6]], False), ([[10**30]], False), ([[10**12, "a"]], False), ([[-2, -3]], False),
        ([[2**62, 4]], False), ([[2**32, 2**32, 0]], False), ([[1] * 200 + [6]], True),
    ],
)  # fmt: skip
def test_shapes(tmp_path, shapes, sound):
    head, start = {}, 0
    for place, shape in enumerate(shapes):
        size = 4
        for n in shape:
            size = size * n if isinstance(n, int) and abs(n) < 100 else 24
        head[f"t{place}"] = {"dtype": "F32", "shape": shape, "data_offsets": [start, start + size]}
        start += size
    for order in (list(head), list(reversed(head))):
        shuffled = {name: head[name] for name in order}
        assert same_verdict(put(tmp_path / "f", shuffled, bytes(max(start, 0))), head) is sound


@pytest.mark.parametrize(
    ("key", "value"),
    [("shape", [10**30, "a"]), ("shape", [True, 6]), ("dtype", "F33"), ("data_offsets", [0])],
)
def test_the_tensor_is_named(tmp_path, key, value):
    head = {"a": ENTRY, "guilty": {**ENTRY, "data_offsets": [24, 48], key: value}, "b": ENTRY}
    with pytest.raises(CheckpointError, match="in tensor 'guilty'"):
        read_header(put(tmp_path / "f", head, bytes(72)))


def test_a_bomb_of_dimensions_is_refused_without_multiplying(tmp_path):
    head = {"a": {**ENTRY, "shape": [int("9" * 4000)] * 1600}}
    before = time.process_time()
    assert not same_verdict(put(tmp_path / "f", head, bytes(24)))
    assert time.process_time() - before < 5  # multiplying takes minutes


def mutated(rng: random.Random) -> tuple[bytes, dict, bytes]:
    """A header of up to four tensors, of which something was changed now and then."""
    head, start = {}, 0
    for name in rng.sample(NAMES, rng.randint(0, 4)):
        dtype, shape = rng.choice(list(DTYPE_BITS)), [rng.randint(0, 4), 8]
        size = shape[0] * DTYPE_BITS[dtype]
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size]}
        start += size
    names = list(head)
    rng.shuffle(names)
    head = {name: head[name] for name in names}
    if rng.random() < 0.3:
        head["__metadata__"] = rng.choice([{"format": "pt"}, {}, None, {"a": 1}, [], "x"])
    if names and rng.random() < 0.6:
        odd = [
            None,
            True,
            0,
            -1,
            1.0,
            "8",
            [],
            {},
            2**63,
            2**64,
            10**30,
            [0],
            [1, 2],
            [0, 8],
            "F32",
        ]
        entry = head[rng.choice(names)]
        key = rng.choice([*entry, "extra"])
        value = entry.get(key)
        if isinstance(value, list) and rng.random() < 0.6:
            value[rng.randrange(len(value))] = rng.choice(odd)
        else:
            entry[key] = rng.choice(odd)
    text = json.dumps(head, ensure_ascii=rng.random() < 0.5).encode()
    if rng.random() < 0.3:
        place = rng.randrange(len(text))
        text = text[:place] + bytes([rng.randrange(256)]) + text[place + rng.randint(0, 1) :]
    body = bytes(max(0, start + rng.choice([0, 0, 0, 0, 1, -1])))
    return text, head, body


def test_the_same_verdict_over_mutated_headers(tmp_path):
    rng, sound = random.Random(14), 0
    for _ in range(1500):
        text, _, body = mutated(rng)
        length = rng.choice([None] * 20 + [0, len(text) - 1, len(text) + 1, 2**63])
        sound += same_verdict(put(tmp_path / "f", text, body, length=length))
    assert 200 < sound < 1300  # both kinds were tried

"""What counts as JSON, in files of our own and in those of other programs."""

from __future__ import annotations

import json

import pytest

from prunecomp.errors import CheckpointError
from prunecomp.json_files import JsonError, parse_json, read_json
from prunecomp.limits import MAX_JSON_DEPTH

NESTED = MAX_JSON_DEPTH + 2


@pytest.mark.parametrize(
    "text",
    ["{}", '{"a": [1, 2.5, true, null, "\\u00e9"]}', '"\\ud83d\\ude00"',
     '{"a": 9223372036854775807}',
     "[" * 90 + "]" * 90, '{"a": -1e300}'],
)  # fmt: skip
def test_what_every_reader_takes(text):
    for foreign in (False, True):
        assert parse_json(text.encode(), foreign=foreign) == json.loads(text)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "line 1, column 1"),
        (b"{", "column 2"),
        (b"\xff{}", "byte 0 is not UTF-8"),
        ("{}".encode("utf-16"), "not UTF-8"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'{"a": "\\ud800"}', "'a' holds half of a surrogate pair"),
        (b'{"\\udfff": 1}', "half of a surrogate pair"),
        (b'{"a": ["x", "\\ud800\\ud800"]}', "'a' holds half of a surrogate pair"),
        (b'{"a": 1' + b"0" * 400 + b"}", "'a' holds a number of about 39"),
        (b'{"a": -9223372036854775809}', "'a' holds a number of about 19 digits"),
        (b"1" * 5000, "thousands of digits"),
        (b"[" * 200_000, "nested"),
        (b"[" * NESTED + b"]" * NESTED, "nested more than"),
        (b'{"a":' * NESTED + b"1" + b"}" * NESTED, "nested more than"),
        (b'"\x00"', "control character"),
    ],
)
def test_what_none_takes(data, says):
    for foreign in (False, True):
        with pytest.raises(JsonError, match=says) as error:
            parse_json(data, foreign=foreign)
        assert len(str(error.value)) < 120


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[NaN]", "NaN, which is no number"),
        ('{"a": -Infinity}', "-Infinity, which is no number"),
        ('{"a": 1e999}', "'a' holds inf, which is no number"),
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "'c' stands twice"),
    ],
)
def test_what_only_other_programs_may_write(text, says):
    with pytest.raises(JsonError, match=says):
        parse_json(text.encode())
    assert repr(parse_json(text.encode(), foreign=True)) == repr(json.loads(text))


def test_what_tokenizers_call_unbounded():
    text = '{"model_max_length": 1000000000000000019884624838656}'
    assert parse_json(text.encode()) == json.loads(text)


def test_a_file(tmp_path, monkeypatch):
    """Its name, what is wrong, and what to do."""
    path = tmp_path / "a.json"
    with pytest.raises(CheckpointError, match=r"a\.json: cannot read it \(No such file.*; restore"):
        read_json(path, CheckpointError, "restore it")
    with pytest.raises(CheckpointError, match=r"Is a directory"):
        read_json(tmp_path, CheckpointError, "restore it")
    path.write_text("{")
    with pytest.raises(
        CheckpointError, match=r"a\.json: cannot read it as JSON \(.*\); restore it$"
    ):
        read_json(path, CheckpointError, "restore it")
    monkeypatch.setattr("prunecomp.json_files.MAX_JSON_BYTES", 10)
    path.write_text(json.dumps("x" * 20))
    with pytest.raises(CheckpointError, match="more than 10 bytes"):
        read_json(path, CheckpointError, "restore it")

"""Tokens: which ones come out of which source, and what is refused.

The tokenizer of `text_model` gives one token per byte, so tokens can be compared with the text.
"""

from __future__ import annotations

import gzip
import json
import sys
import types

import pytest
import torch
from safetensors.torch import save_file

from prunecomp.calibration.data import BUILT_IN, TextSource, load_tokens, save_tokens
from prunecomp.errors import MissingDependencyError, UsageError
from tests.oracles import tiny_models

LENGTH = 16


@pytest.fixture
def load(text_model):
    """``load(source name, field=..., ...)`` with a small default shape."""

    def run(name, **options):
        source = {k: options.pop(k) for k in ("field", "config", "split") if k in options}
        defaults = {"samples": 4, "seq_len": LENGTH, "vocab_size": 257, "max_seq_len": 32}
        return load_tokens(
            TextSource(str(name), **source), tokenizer_dir=text_model, **{**defaults, **options}
        )

    return run


@pytest.fixture(scope="module")
def decode(text_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(text_model)
    return lambda ids: [tokenizer.decode(row) for row in ids.tolist()]


#: 40 windows of LENGTH bytes, each unlike all others.
WINDOWS = [f"window {i:02d} text. " for i in range(40)]
TEXT = "".join(WINDOWS)


def test_text_file(load, decode, tmp_path):
    """Samples are windows of the text at multiples of their length: none overlap."""
    assert {len(w) for w in WINDOWS} == {LENGTH}
    (tmp_path / "a.txt").write_text(TEXT)
    tokens = load(tmp_path / "a.txt", samples=10)
    assert tokens.input_ids.shape == (10, LENGTH)
    assert tokens.input_ids.dtype == torch.int64
    found = decode(tokens.input_ids)
    assert set(found) <= set(WINDOWS)
    assert len(set(found)) == 10


def test_seed_decides_the_choice(load, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    one, again, other = (load(tmp_path / "a.txt", samples=10, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.input_ids, again.input_ids)
    assert one.sha256 == again.sha256
    assert not torch.equal(one.input_ids, other.input_ids)
    assert one.sha256 != other.sha256


def test_fewer_windows_than_samples_gives_all(load, decode, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT + "and a rest")
    tokens = load(tmp_path / "a.txt", samples=1000)
    assert sorted(decode(tokens.input_ids)) == sorted(WINDOWS)


def test_jsonl(load, decode, tmp_path):
    """One object per line, joined by blank lines; empty lines do not count."""
    path = tmp_path / "a.jsonl"
    path.write_text(
        "\n".join(json.dumps({"body": w[:-2], "text": 1}) for w in WINDOWS[:6]) + "\n\n"
    )
    tokens = load(path, field="body", samples=10)
    expected = [w[:-2] + "\n\n" for w in WINDOWS[:5]]
    assert sorted(decode(tokens.input_ids)) == expected  # the sixth ends without a blank line


@pytest.mark.parametrize("separator", ["\u2028", "\u0085", "\u001c", "\r"])
def test_jsonl_with_unescaped_line_separators(separator, load, tmp_path):
    """JSON allows most of them raw inside a string, and web text is full of them."""
    path = tmp_path / "a.jsonl"
    raw = json.dumps({"text": f"one{separator}two " * 10}, ensure_ascii=False)
    path.write_text(raw + "\n", encoding="utf-8", newline="")
    assert load(path, samples=2).input_ids.shape == (2, LENGTH)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"body": "x"}',
            r"line 2: has the fields body, and no text under 'text'.*--calibration-f.*--chat-field",
        ),
        ('{"text": 3}', "line 2: has the fields text, and no text under 'text'"),
        ('["text"]', "line 2: is no JSON object, and has no text"),
        ("{", "line 2: is not JSON"),
    ],
)
def test_jsonl_errors(line, message, load, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line)
    with pytest.raises(UsageError, match=message):
        load(tmp_path / "a.jsonl")


def test_token_file(load, tmp_path):
    ids = torch.arange(60).view(3, 20)
    save_file({"input_ids": ids.to(torch.int32)}, tmp_path / "a.safetensors")
    whole = load(tmp_path / "a.safetensors", samples=None, seq_len=None)
    assert torch.equal(whole.input_ids, ids)
    assert torch.equal(
        load(tmp_path / "a.safetensors", samples=2, seq_len=5).input_ids, ids[:2, :5]
    )
    save_tokens(whole, tmp_path / "b.safetensors")
    again = load(tmp_path / "b.safetensors", samples=None, seq_len=None, seed=5)
    assert again.sha256 == whole.sha256


def test_sha256_is_of_shape_and_little_endian_tokens(load, tmp_path):
    import hashlib
    import struct

    save_file({"input_ids": torch.tensor([[1, 2, 3], [4, 5, 256]])}, tmp_path / "a.safetensors")
    tokens = load(tmp_path / "a.safetensors", samples=None, seq_len=None)
    expected = hashlib.sha256(b"(2, 3)" + struct.pack("<6q", 1, 2, 3, 4, 5, 256)).hexdigest()
    assert tokens.sha256 == expected


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        (torch.ones(20, dtype=torch.int64), {}, "integer tensor input_ids"),
        (torch.ones(2, 20), {}, "integer tensor input_ids"),
        (torch.ones(2, 20, dtype=torch.bool), {}, "integer tensor input_ids"),
        (torch.ones(2, 20, dtype=torch.int64), {"samples": 3}, "2 samples of 20 tokens, 3 of 20"),
        (torch.ones(2, 20, dtype=torch.int64), {"seq_len": 21}, "2 samples of 20 tokens, 2 of 21"),
        (torch.ones(2, 20, dtype=torch.int64), {"samples": 0}, "0 of 20"),
        (torch.ones(0, 20, dtype=torch.int64), {}, "0 samples"),
        (torch.ones(2, 1, dtype=torch.int64), {}, "1 tokens"),
        (torch.full((2, 20), 257), {}, "token 257 is outside the model's vocabulary of 257"),
        (torch.full((2, 20), -1), {}, "token -1 is outside"),
        (torch.ones(2, 33, dtype=torch.int64), {}, "33 tokens exceed the model's context of 32"),
    ],
)
def test_token_files_that_are_refused(ids, options, message, load, tmp_path):
    save_file({"other": torch.ones(1), "input_ids": ids}, tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=message):
        load(tmp_path / "a.safetensors", **{"samples": None, "seq_len": None, **options})


def test_token_files_that_cannot_be_read(load, tmp_path):
    save_file({"ids": torch.ones(2, 20, dtype=torch.int64)}, tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match="integer tensor input_ids"):
        load(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"not one")
    for name in ("a.safetensors", "missing.safetensors"):
        with pytest.raises(UsageError, match=f"{name}: cannot read the tokens"):
            load(tmp_path / name)


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_empty_text(text, load, tmp_path):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UsageError, match="the calibration text is empty"):
        load(tmp_path / "a.txt")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}))
    with pytest.raises(UsageError, match="the calibration text is empty"):
        load(tmp_path / "a.jsonl")


def test_text_shorter_than_one_sample(load, tmp_path):
    (tmp_path / "a.txt").write_text("x" * (LENGTH - 1))
    with pytest.raises(UsageError, match=r"has 15 tokens, .* one sample of 16; .*--seq-len"):
        load(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text("x" * LENGTH)
    assert load(tmp_path / "a.txt").input_ids.shape == (1, LENGTH)


def test_shape_of_text_samples(load, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    assert load(tmp_path / "a.txt", seq_len=None).input_ids.shape == (4, 32)  # the context
    for wrong in ({"samples": 0}, {"seq_len": 1}, {"samples": -1}):
        with pytest.raises(UsageError, match="at least one sample of two tokens"):
            load(tmp_path / "a.txt", **wrong)
    with pytest.raises(UsageError, match="exceed the model's context of 32"):
        load(tmp_path / "a.txt", seq_len=33)
    with pytest.raises(UsageError, match="outside the model's vocabulary of 50"):
        load(tmp_path / "a.txt", vocab_size=50)


def test_other_things_that_are_not_text(load, tmp_path):
    with pytest.raises(UsageError, match=r"missing\.txt: no such"):
        load(tmp_path / "missing.txt")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="UTF-8"):
        load(tmp_path / "a.txt")
    with pytest.raises(UsageError, match=f"unknown calibration source 'wiki'.*{BUILT_IN[0]}"):
        load("wiki")


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_model_without_a_tokenizer(name, tiny_directory, tmp_path):
    """transformers 5 makes an empty tokenizer of some model types, which has no tokens."""
    (tmp_path / "a.txt").write_text(TEXT)
    with pytest.raises(UsageError, match=r"tokenizer.*\.safetensors"):
        load_tokens(
            TextSource(str(tmp_path / "a.txt")), tokenizer_dir=tiny_directory(name),
            vocab_size=97, samples=1, seq_len=8,
        )  # fmt: skip


# --- hub -----------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the package ``datasets``: serves `rows`, notes how it was called."""

    class Fake(types.ModuleType):
        rows: list = [{"text": w, "body": w.upper(), "n": 1} for w in WINDOWS]  # noqa: RUF012
        calls: list = []  # noqa: RUF012
        read = 0
        error: Exception | None = None

        def load_dataset(self, *args, **options):
            self.calls.append((args, options))
            if self.error:
                raise self.error
            for row in self.rows:
                self.read += 1
                yield row

    module = Fake("datasets")
    module.calls = []
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        (
            "wikitext-2", {},
            {"path": "Salesforce/wikitext", "name": "wikitext-2-raw-v1", "split": "train"},
        ),
        (
            "wikitext-2", {"split": "test"},
            {"path": "Salesforce/wikitext", "name": "wikitext-2-raw-v1", "split": "test"},
        ),
        (
            "c4", {},
            {
                "path": "allenai/c4", "split": "train",
                "data_files": {"train": "en/c4-train.00000-of-01024.json.gz"},
            },
        ),
        (
            "wikitext-2", {"held_out": True},
            {"path": "Salesforce/wikitext", "name": "wikitext-2-raw-v1", "split": "test"},
        ),
        (
            "c4", {"held_out": True},
            {
                "path": "allenai/c4", "split": "validation",
                "data_files": {"validation": "en/c4-validation.00000-of-00008.json.gz"},
            },
        ),
        ("owner/name", {}, {"path": "owner/name", "split": "train"}),
        (
            "owner/name", {"config": "en", "split": "validation", "field": "body"},
            {"path": "owner/name", "name": "en", "split": "validation"},
        ),
    ],
)  # fmt: skip
def test_hub_data_sets(name, options, expected, load, hub, decode):
    tokens = load(name, **options)
    assert hub.calls == [((), {**expected, "streaming": True})]
    upper = options.get("field") == "body"
    assert all((row.upper() == row) == upper for row in decode(tokens.input_ids))


def test_hub_rows_are_read_only_as_far_as_needed(load, hub):
    hub.rows = ({"text": "x" * 1000} for _ in range(10_000))
    load("owner/name", samples=2)
    assert hub.read < 100


def test_hub_field_is_missing(load, hub):
    with pytest.raises(
        UsageError, match=r"fields text, body, n, and no text under 'content'.*--cal"
    ):
        load("owner/name", field="content")
    with pytest.raises(UsageError, match="no text under 'n'"):
        load("owner/name", field="n")


@pytest.mark.parametrize("error", [ConnectionError("offline"), ValueError("bad\nsplit"), OSError()])
def test_hub_errors_are_one_line(error, load, hub):
    hub.error = error
    with pytest.raises(UsageError, match=r"\Aowner/name: cannot load the data set .*\Z"):
        load("owner/name")


def test_hub_without_the_package(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match=r"prunecomp\[data\]"):
        load("wikitext-2")


def test_the_real_package_takes_these_arguments(load, tmp_path):
    """`datasets` itself, on a local data set, through the same call."""
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    with gzip.open(tmp_path / "set" / "train.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": w}) + "\n" for w in WINDOWS)
    assert load(tmp_path / "set").input_ids.shape == (4, LENGTH)

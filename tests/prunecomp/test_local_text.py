"""Large local files: read as far as is needed, at places all over them."""

from __future__ import annotations

import json
import re

import pytest
import torch

from prunecomp.calibration import tokenizer as tokenizers
from prunecomp.calibration import windows
from prunecomp.calibration.data import TextSource, load_tokens
from prunecomp.calibration.local_text import Reading, json_records, text_fragments
from prunecomp.errors import UsageError

LINES = 60_000
#: Each of 31 characters; 1.9 MB.
TEXT = [f"this is line {i:06d} of the text. " for i in range(LINES)]
KINDS = {
    "lines.txt": "\n".join(TEXT),
    "one_line.txt": "".join(TEXT),
    "UPPER.TXT": "\r\n".join(TEXT),
    "lines.jsonl": "\n".join(json.dumps({"text": line}) for line in TEXT),
    "one_line.jsonl": json.dumps({"text": "".join(TEXT)}) + "\n",
    "UPPER.JSONL": "\n".join(json.dumps({"text": line}) for line in TEXT),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("texts")
    for name, text in KINDS.items():
        (directory / name).write_bytes(text.encode())
    return directory


@pytest.fixture
def load(files, text_model):
    def run(name, **options):
        return load_tokens(
            TextSource(str(files / name)), tokenizer_dir=text_model, vocab_size=257,
            **{"samples": 8, "seq_len": 32, **options},
        )  # fmt: skip

    return run


@pytest.mark.parametrize("name", KINDS)
def test_samples_come_from_all_of_a_file_of_which_little_is_tokenised(name, load, monkeypatch):
    lengths = []

    def noted(tokenizer, text):
        lengths.append(len(text))
        return encode(tokenizer, text)

    encode = tokenizers.encode
    monkeypatch.setattr(tokenizers, "encode", noted)
    monkeypatch.setattr(windows, "encode", noted)
    tokens = load(name, samples=24)
    assert max(lengths) <= tokenizers.PIECE
    assert sum(lengths) <= 3 * tokenizers.PIECE  # of thirty
    assert tokens.input_ids.shape == (24, 32)
    places = [int(n) for n in re.findall(rb"line (\d{6}) of", _as_text(tokens))]
    assert max(places) - min(places) > LINES / 3
    assert len({place // (LINES // 20) for place in places}) >= 5


def _as_text(tokens) -> bytes:
    """The bytes that the tokens of the byte-level tokenizer stand for."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    space = alphabet.index("Ġ")
    return b"".join(
        b" " if i == space else alphabet[i].encode() if i < 256 else b"" for row in tokens.input_ids
        for i in row.tolist()
    )  # fmt: skip


@pytest.mark.parametrize("name", ["lines.txt", "lines.jsonl", "one_line.jsonl"])
def test_the_seed_decides(name, load):
    one, again, other = (load(name, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.input_ids, again.input_ids)
    assert not torch.equal(one.input_ids, other.input_ids)


def test_a_small_file_is_read_as_a_whole_in_order(files):
    wanted = Reading.of(1, 32, torch.Generator().manual_seed(0))
    (files / "small.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert list(text_fragments(files / "small.txt", wanted)) == ["one\ntwo\nthree\n"]


@pytest.mark.parametrize("block", [4096, 10_000])
@pytest.mark.parametrize("text", ["ä€😀" * 9000, "ä € 😀 " * 9000, "ä€\n😀\n" * 9000])
def test_blocks_make_up_the_file(block, text, tmp_path):
    """No character is cut, lost, or there twice, wherever blocks begin."""
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    wanted = Reading(1, block, torch.Generator().manual_seed(0))
    found = "".join(text_fragments(tmp_path / "a.txt", wanted)).replace("\n", "").replace(" ", "")
    plain = text.replace("\n", "").replace(" ", "")
    assert sorted(found) == sorted(plain)


@pytest.mark.parametrize("block", [7, 64, 1000])
def test_every_line_is_read_once(block, tmp_path):
    lines = [json.dumps({"text": "x" * (i * 37 % 200), "n": i}) for i in range(100)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    wanted = Reading(1, block, torch.Generator().manual_seed(0))
    found = list(json_records(tmp_path / "a.jsonl", wanted))
    assert sorted(value["n"] for _, value in found) == list(range(100))
    assert all(str(where).endswith(f"line {value['n'] + 1}") for where, value in found)
    assert [v["n"] for _, v in found] != list(range(100))
    assert wanted.largest == max(len(line) + 1 for line in lines)


def test_a_wrong_line_is_told_by_its_number(tmp_path):
    lines = ['{"text": "a"}'] * 500
    lines[400] = "{"
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    wanted = Reading(1, 100, torch.Generator().manual_seed(0))
    with pytest.raises(UsageError, match=r"a\.jsonl, line 401: is not JSON"):
        list(json_records(tmp_path / "a.jsonl", wanted))

"""A GGUF file that is damaged, lies, or is something else: exit code 2, one line, nothing left."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from gguf import GGUFReader

from tests.oracles import gguf_files
from tests.oracles.gguf_files import byte_level

NAME = b"blk.0.attn_q.weight"


@pytest.fixture
def file(tiny_gguf, tmp_path) -> Path:
    """A copy, to be damaged."""
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_gguf("llama", byte_level, kind=Q.Q8_0)[0].read_bytes())
    return path


@pytest.fixture
def refuses(refused):
    """``refuses(path, words...)`` through a command of the command line."""

    def check(path: Path, *words: str) -> None:
        line = refused("compress", path, "-q", "-o", path.parent / "out", "--layers", 1, says=words)
        assert len(line) < 300 + len(str(path)) + 10
        assert path.name in line

    return check


@pytest.fixture
def made(tmp_path):
    """``made(...)`` writes a file with other metadata or tensors."""

    def write(name: str = "made.gguf", architecture: str = "llama", **options) -> Path:
        words = byte_level()
        words.update(options.pop("words", {}))
        model = gguf_files.model_of("llama", words if words["tokens"] else byte_level())
        return gguf_files.write(tmp_path / name, model, architecture, words, **options)

    return write


def patch(path: Path, at: int, data: bytes) -> Path:
    whole = bytearray(path.read_bytes())
    whole[at : at + len(data)] = data
    path.write_bytes(whole)
    return path


def after(path: Path, words: bytes) -> int:
    """Where what follows `words` begins."""
    return path.read_bytes().index(words) + len(words)


# --- the file


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.3, 0.45, 0.8, 0.999])
def test_cut_short(file, refuses, share):
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    refuses(file)


def test_cut_by_its_last_byte(file, refuses):
    file.write_bytes(file.read_bytes()[:-64])
    refuses(file, "cut short or lies about its sizes: ", "ends at byte")


@pytest.mark.parametrize("at", [8, 16])
@pytest.mark.parametrize("count", [2**63, 2**64 - 1, 10**9])
def test_huge_counts(file, refuses, at, count):
    refuses(patch(file, at, struct.pack("<Q", count)), "it claims", "are too few")


def test_a_huge_text(file, refuses):
    refuses(patch(file, 24, struct.pack("<Q", 2**62)), "cut short or lies about its sizes")


def test_a_huge_list(file, refuses):
    at = after(file, b"tokenizer.ggml.tokens") + 8
    refuses(patch(file, at, struct.pack("<Q", 2**40)), "it claims", "tokenizer.ggml.tokens")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1", "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(100), "version 1;"),
        (b"GGUF" + struct.pack("<I", 99) + bytes(100), "version 99;"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(100), "version 3, big-endian"),
    ],
)
def test_another_file(file, refuses, data, words):
    file.write_bytes(data)
    refuses(file, words)


def test_missing(refused, tmp_path):
    refused("inspect", tmp_path / "no.gguf", says="no.gguf: no such file")


@pytest.mark.parametrize(("number", "words"), [(999, "number 999"), (25, "I16"), (4, "number 4")])
def test_a_quantisation_that_nobody_can_read(file, refuses, number, words):
    at = after(file, NAME) + 4 + 16
    refuses(patch(file, at, struct.pack("<I", number)), "blk.0.attn_q.weight", words)


@pytest.mark.parametrize(
    "shape", [(32, 64), (64, 32), (64, 128), (64, 0), (63, 64), (2**60, 2**60)]
)
def test_a_shape_that_is_not_that_of_the_data(file, refuses, shape):
    refuses(patch(file, after(file, NAME) + 4, struct.pack("<2Q", *shape)))


def test_a_place_that_is_not_that_of_the_data(file, refuses):
    at = after(file, NAME) + 4 + 16 + 4
    refuses(patch(file, at, struct.pack("<Q", 64)), "should begin at", "it says 64")


def test_the_same_tensor_twice(file, refuses):
    at = file.read_bytes().index(b"blk.1.attn_q.weight")
    refuses(patch(file, at, NAME), "it has blk.0.attn_q.weight twice")


def test_ten_dimensions(file, refuses):
    refuses(patch(file, after(file, NAME), struct.pack("<I", 10)), "has 10 dimensions")


@pytest.mark.parametrize("alignment", [0, 3, 2**31 + 1])
def test_an_odd_alignment(made, refuses, alignment):
    path = made(more=lambda w: w.add_uint32("general.alignment", alignment))
    refuses(path, f"general.alignment is {alignment}")


# --- values


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["blk.1.ffn_norm.weight", "blk.2.ffn_down.weight"])
def test_values_that_are_no_numbers(made, refuses, name, value):
    def change(tensors) -> None:
        tensors[name].reshape(-1)[7] = value

    refuses(made(change=change), name, "NaN or infinite")


def test_a_scale_that_is_no_number(file, refuses):
    """A block of Q8_0 begins with its scale."""
    (tensor,) = (t for t in GGUFReader(file).tensors if t.name == "output.weight")
    last = tensor.data_offset + tensor.n_bytes - 34
    refuses(patch(file, int(last), struct.pack("<e", np.nan)), "output.weight", "NaN")


# --- metadata


def metadata(key: str, form: str, *values):
    """Changes a number of the metadata."""

    def change(path: Path) -> Path:
        return patch(path, after(path, key.encode()) + 4, struct.pack(f"<{form}", *values))

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (metadata("llama.block_count", "I", 2**32 - 1), "llama.block_count is 4294967295"),
        (metadata("llama.block_count", "I", 3), "tensors are of 4 layers"),
        (metadata("llama.block_count", "I", 0), "llama.block_count is 0"),
        (metadata("llama.embedding_length", "I", 128), "other sizes than transformers reads"),
        (metadata("llama.embedding_length", "I", 0), ""),
        (metadata("llama.attention.head_count", "I", 0), "transformers cannot"),
        (metadata("llama.attention.head_count", "I", 2**31), ""),
        (metadata("llama.attention.head_count_kv", "I", 3), ""),
        (metadata("llama.feed_forward_length", "I", 97), "other sizes than transformers reads"),
        (metadata("llama.attention.layer_norm_rms_epsilon", "f", np.nan), "epsilon is nan"),
        (metadata("llama.rope.freq_base", "f", np.inf), "freq_base is inf"),
        (metadata("tokenizer.ggml.bos_token_id", "I", 10**6), "bos_token_id is 1000000"),
        (metadata("tokenizer.ggml.eos_token_id", "I", 2**32 - 1), "eos_token_id"),
    ],
)
def test_metadata_that_cannot_be(file, refuses, change, words):
    refuses(change(file), words)


def test_a_kind_of_metadata_that_there_is_not(file, refuses):
    at = after(file, b"llama.block_count")
    refuses(patch(file, at, struct.pack("<I", 77)), "llama.block_count is of kind 77")


def test_names_that_are_not_utf8(file, refuses):
    at = file.read_bytes().index(b"llama.block_count")
    refuses(patch(file, at, b"\xff\xfe"), "not UTF-8")


def test_tensors_are_missing(made, refuses):
    path = made(change=lambda tensors: tensors.pop("blk.3.ffn_up.weight"))
    refuses(path, "model.layers.3.mlp.up_proj.weight", "it holds nothing")


@pytest.mark.parametrize("words", [{"tokens": []}, {"model": "none"}, {"model": "no_vocab"}])
def test_tokens_without_a_vocabulary(made, refuses, words):
    if not words.get("tokens", True):
        words = {**words, "types": [], "merges": ["a b"]}
    refuses(made(words=words), "tokens without a vocabulary")


def test_another_vocabulary(made, refuses):
    refuses(made(words={"types": [1, 1]}), "tokenizer.ggml.token_type is 2 long for")
    refuses(made(words={"model": "rwkv"}), "transformers cannot make its tokenizer")
    path = made(more=lambda w: w.add_vocab_size(9))
    refuses(path, "model.embed_tokens.weight [9, 64]")


@pytest.mark.parametrize(
    ("architecture", "words"),
    [("rwkv6", "rwkv6"), ("t5", "t5"), ("gemma", "gemma"), ("clip", "image part of a model")],
)
def test_another_architecture(made, refuses, architecture, words):
    refuses(made(architecture=architecture), words)


@pytest.mark.parametrize(
    ("kind", "words"),
    [("adapter", "LoRA adapter"), ("mmproj", "image part"), ("imatrix", "importance matrix")],
)
def test_something_else_than_a_model(made, refuses, kind, words):
    refuses(made(more=lambda w: w.add_type(kind)), words)


def test_a_vocabulary_alone(made, refuses):
    path = made(change=lambda tensors: tensors.clear())
    refuses(path, "holds no weights but a vocabulary")


def test_a_part_of_a_model(made, refuses):
    refuses(made("big-00002-of-00003.gguf"), "one of 3 parts", "llama-gguf-split --merge")
    refuses(made(more=lambda w: w.add_uint16("split.count", 2)), "one of 2 parts")


# --- directories


def test_several_in_one_directory(refused, made, tmp_path):
    for name in ("d/a-Q4.gguf", "d/b-Q8.GGUF"):
        made(name)
    says = "has 2 GGUF files (a-Q4.gguf, b-Q8.GGUF); name one of them"
    refused("inspect", tmp_path / "d", says=says)


def test_a_directory_of_that_name(refused, tmp_path):
    (tmp_path / "d.gguf").mkdir()
    refused("inspect", tmp_path / "d.gguf", says="has no config.json")


def test_without_the_package(refused, file, monkeypatch):
    from prunecomp.gguf import source

    monkeypatch.setattr(source, "find_spec", lambda name: None)
    refused("inspect", file, says="pip install 'prunecomp[gguf]'", code=5)


def test_the_output_must_leave_the_file_alone(cli, made, tmp_path):
    """A directory that also has a config.json looks like one that may be replaced."""
    path = made("d/model.gguf")
    (path.parent / "config.json").write_text("{}")
    for model in (path, path.parent):
        command = ["compress", model, "-o", path.parent, "--layers", 1, "--overwrite"]
        ended = cli(*command)
        assert ended.code == 2
        assert ": is the model itself" in ended.err or ": holds files of the model" in ended.err
    assert path.exists()

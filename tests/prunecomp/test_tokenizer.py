"""What a tokenizer puts in front of a text, as its own encoding shows it."""

from __future__ import annotations

import pytest
import torch

from prunecomp.calibration.data import TextSource, load_tokens, save_tokens
from prunecomp.calibration.tokenizer import (
    PIECE,
    affixes,
    encode,
    load_tokenizer,
    prefix_of,
    token_stream,
)
from prunecomp.errors import UsageError
from tests.prunecomp import made_tokenizers
from tests.prunecomp.made_tokenizers import IDS, VOCABULARY

BOS, EOS, LANG = (IDS[t] for t in ("<bos>", "<eos>", "<lang>"))
CASES = {
    "none": ({}, (), ()),
    "bos": ({"front": ["<bos>"]}, (BOS,), ()),
    "eos": ({"behind": ["<eos>"]}, (), (EOS,)),
    "both": ({"front": ["<bos>"], "behind": ["<eos>"]}, (BOS,), (EOS,)),
    "the same at both ends": ({"front": ["<eos>"], "behind": ["<eos>"]}, (EOS,), (EOS,)),
    "two in front": ({"front": ["<lang>", "<bos>"]}, (LANG, BOS), ()),
    # a flag that this class of tokenizer ignores: the encoding has the word
    "a flag alone": ({"add_bos_token": True}, (), ()),
}


@pytest.mark.parametrize("case", CASES)
def test_affixes(case, tmp_path):
    options, front, behind = CASES[case]
    tokenizer = load_tokenizer(made_tokenizers.write(tmp_path, **options))
    assert affixes(tokenizer) == (front, behind)
    text = "any text"
    assert tokenizer(text)["input_ids"] == [*front, *encode(tokenizer, text), *behind]


def test_gemma(tmp_path):
    """Gemma's class: words begin with a mark, and a BOS is put in front where its flag says so."""
    from transformers import GemmaTokenizer

    names = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", *map(chr, range(33, 127))]
    vocabulary = {name: i for i, name in enumerate(names)}
    for flag, front in ((True, (2,)), (False, ())):
        made = GemmaTokenizer(vocab=vocabulary, merges=[], add_bos_token=flag)
        made.save_pretrained(tmp_path / str(flag))
        tokenizer = load_tokenizer(tmp_path / str(flag))
        assert tuple(tokenizer("The cat")["input_ids"][:1]) == (front or (vocabulary["T"],))
        assert affixes(tokenizer) == (front, ())


def test_modes(tmp_path):
    tokenizer = load_tokenizer(made_tokenizers.write(tmp_path / "a", behind=["<eos>"]))
    found = [prefix_of(tokenizer, mode, where="a") for mode in ("auto", "each", "none")]
    assert found == [(), (BOS,), ()]
    without = load_tokenizer(made_tokenizers.write(tmp_path / "b", bos_token=None))
    with pytest.raises(UsageError, match="--bos each: the tokenizer of b has no BOS"):
        prefix_of(without, "each", where="b")
    assert prefix_of(without, "auto", where="b") == ()


@pytest.fixture
def load(tmp_path):
    """``load(tokenizer options, **load_tokens options)`` on a text of 40 windows of 16 bytes."""
    (tmp_path / "a.txt").write_text("".join(f"window {i:02d} text. " for i in range(40)))

    def run(made, **options):
        directory = made_tokenizers.write(tmp_path / "model", **made)
        defaults = {"samples": 6, "seq_len": 17, "vocab_size": VOCABULARY}
        return load_tokens(
            TextSource(str(options.pop("name", tmp_path / "a.txt"))), tokenizer_dir=directory,
            **{**defaults, **options},
        )  # fmt: skip

    return run


def test_every_window_begins_with_what_the_tokenizer_puts_there(load):
    made = {"front": ["<bos>"], "behind": ["<eos>"]}
    tokens = load(made)
    assert tokens.prefix == (BOS,)
    assert (tokens.input_ids[:, 0] == BOS).all()
    assert not (tokens.input_ids == EOS).any()
    assert torch.equal(tokens.counted, torch.arange(17).expand(6, 17) > 0)
    plain = load(made, bos="none", seq_len=16)
    assert torch.equal(plain.input_ids, tokens.input_ids[:, 1:])  # windows of as much text
    assert plain.counted.all()
    assert torch.equal(load({}, seq_len=16).input_ids, plain.input_ids)
    assert torch.equal(load({}, bos="each").input_ids, tokens.input_ids)
    assert plain.sha256 != tokens.sha256


def test_a_replay_is_exact(load, tmp_path):
    tokens = load({"front": ["<lang>", "<bos>"]})
    save_tokens(tokens, tmp_path / "t.safetensors")
    again = load({}, name=tmp_path / "t.safetensors", samples=None, seq_len=None)
    assert (again.prefix, again.bos, again.sha256) == ((LANG, BOS), "auto", tokens.sha256)
    assert torch.equal(again.counted, tokens.counted)
    with pytest.raises(UsageError, match=r"--bos each: .*tokens, which are taken as they are"):
        load({}, name=tmp_path / "t.safetensors", samples=None, seq_len=None, bos="each")
    with pytest.raises(UsageError, match="leave no room"):
        load({"front": ["<lang>", "<bos>"]}, seq_len=2)


def test_a_file_of_tokens_alone_is_taken_as_it_is(load, tmp_path):
    from safetensors.torch import save_file

    ids = torch.full((2, 8), BOS)
    save_file({"input_ids": ids}, tmp_path / "t.safetensors")
    tokens = load({"front": ["<bos>"]}, name=tmp_path / "t.safetensors", samples=None, seq_len=None)
    assert torch.equal(tokens.input_ids, ids)
    assert tokens.prefix == ()
    assert tokens.counted.all()


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"counted": torch.ones(2, 7, dtype=torch.bool)}, None),
        ({"counted": torch.ones(2, 8)}, None),
        ({}, '{"prefix": [4]}'),
        ({}, '{"prefix": ["x"]}'),
        ({}, '{"prefix": 3}'),
        ({}, "[1]"),
        ({}, "{"),
        ({}, '{"prefix": [3, 3, 3, 3, 3, 3, 3, 3]}'),
    ],
)
def test_what_a_file_says_of_its_tokens_must_fit_them(tensors, metadata, load, tmp_path):
    from safetensors.torch import save_file

    ids = torch.full((2, 8), 3)
    known = {"prunecomp": metadata} if metadata else None
    save_file({"input_ids": ids, **tensors}, tmp_path / "t.safetensors", metadata=known)
    with pytest.raises(UsageError, match=r"t\.safetensors: what it says .*does not fit"):
        load({}, name=tmp_path / "t.safetensors", samples=None, seq_len=None)


def test_a_sample_of_which_nothing_counts(load, tmp_path):
    from safetensors.torch import save_file

    counted = torch.ones(2, 8, dtype=torch.bool)
    counted[1, 1:] = False
    save_file({"input_ids": torch.full((2, 8), 3), "counted": counted}, tmp_path / "t.safetensors")
    with pytest.raises(UsageError, match="a sample has none that counts"):
        load({}, name=tmp_path / "t.safetensors", samples=None, seq_len=None)


def test_tokens_of_pieces_are_those_of_the_whole():
    """The tiny model's tokenizer, of the kind of Llama 3's; the text is cut in several places."""
    from pathlib import Path

    directory = Path(__file__).parents[2] / "examples" / "tiny-python-lm"
    tokenizer = load_tokenizer(directory)
    text = "".join(
        f"def f{i}(x):\n    # it is number {i}, and it says hello to 12 others\n    return x\n\n"
        for i in range(3 * PIECE // 80)
    )
    parts = [text[i : i + 999] for i in range(0, len(text), 999)]
    found = token_stream(tokenizer, parts, characters=len(text), tokens=1)
    assert found.tolist() == encode(tokenizer, text)
    some = token_stream(tokenizer, iter(parts), characters=PIECE // 2, tokens=1)
    assert len(some) < len(found) / 2
    assert token_stream(tokenizer, [" ", "\n"], characters=9, tokens=1) is None

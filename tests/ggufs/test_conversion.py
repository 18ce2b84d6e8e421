"""What a GGUF file becomes is what transformers gives for the same file, bit for bit."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from gguf import GGMLQuantizationType as Q
from safetensors import safe_open

from prunecomp.checkpoint.converted import read_record
from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.errors import UsageError
from prunecomp.gguf import convert, source
from prunecomp.progress import Progress
from tests.oracles import gguf_files
from tests.oracles.gguf_files import byte_level, sentencepiece

#: A Qwen's tokenizer is one of bytes whatever its file says.
VOCABULARIES = {
    "llama": sentencepiece, "gemma2": sentencepiece, "qwen2": byte_level, "qwen3moe": byte_level,
}  # fmt: skip
TEXT = "The other one is in the tin 1234."


def converted(path):
    return source.model_directory(path, Progress(quiet=True))


def by_transformers(path):
    """Model and tokenizer, in bfloat16, from the file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.bfloat16
    )
    return model, AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def read(directory):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    return model, AutoTokenizer.from_pretrained(directory)


def logits(model):
    ids = torch.arange(40).reshape(2, 20) % model.config.vocab_size
    with torch.no_grad():
        return model(ids).logits


def greedy(model):
    return model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=12, do_sample=False)


def check_equal(path):
    """The written directory against transformers' own reading of the file."""
    directory = converted(path)
    (ours, our_words), (theirs, their_words) = read(directory), by_transformers(path)
    mine, other = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == other.keys()
    assert [name for name in mine if not torch.equal(mine[name], other[name])] == []
    assert torch.equal(logits(ours), logits(theirs))
    assert torch.equal(greedy(ours), greedy(theirs))
    left = {"_name_or_path", "_model_name_or_path", "quantization_config", "architectures"}
    configs = [m.config.to_dict() for m in (ours, theirs)]
    assert {k: v for k, v in configs[0].items() if k not in left} == {
        k: v for k, v in configs[1].items() if k not in left
    }
    assert ours.generation_config.to_dict() == theirs.generation_config.to_dict()
    assert our_words.get_vocab() == their_words.get_vocab()
    assert our_words.chat_template == their_words.chat_template
    assert our_words.special_tokens_map == their_words.special_tokens_map
    plain = {"add_special_tokens": False}
    ids = our_words(TEXT, **plain).input_ids
    assert ids == their_words(TEXT, **plain).input_ids
    assert our_words.decode(ids) == their_words.decode(ids)
    return directory


@pytest.mark.parametrize(
    "kind", [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1], ids=lambda k: k.name
)
def test_a_llama_of_each_quantisation(tiny_gguf, kind):
    path, _ = tiny_gguf("llama", byte_level, kind=kind)
    found = read_record(check_equal(path))
    assert (found.quantization, found.lossy) == (kind.name, kind != Q.BF16)


@pytest.mark.parametrize("kind", [Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q5_K, Q.Q6_K], ids=lambda k: k.name)
def test_super_blocks(tmp_path, kind):
    """Blocks of 256 values, made of random bytes: reading them is what counts."""
    words = byte_level()
    model = gguf_files.model_of("llama", words, hidden_size=256, head_dim=64)
    path = gguf_files.write(tmp_path / "m" / "wide.gguf", model, "llama", words, kind=kind)
    assert read_record(check_equal(path)).quantization == kind.name


@pytest.mark.parametrize("architecture", gguf_files.ARCHITECTURES)
def test_every_layout(tiny_gguf, architecture):
    """Interleaved rows, norms of ``1 + w``, a tied head, experts: against the model itself, too."""
    path, original = tiny_gguf(architecture, VOCABULARIES[architecture])
    ours, _ = read(check_equal(path))
    state = ours.float().state_dict()
    for name, value in original.state_dict().items():
        if architecture == "gemma2" and "norm" in name:  # 1 + w is rounded in the file
            assert torch.allclose(state[name], value, atol=2e-3)
        else:
            assert torch.equal(state[name], value), name
    if architecture != "gemma2":
        assert torch.allclose(logits(ours.float()), logits(original), atol=1e-4)


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3moe"])
def test_files_are_those_of_save_pretrained(tiny_gguf, tmp_path, architecture):
    """Names, order and header: experts one by one, no tied head, no trace of a quantisation."""
    path, _ = tiny_gguf(architecture, byte_level)
    directory = converted(path)
    read(directory)[0].save_pretrained(tmp_path / "saved")
    ours, other = (d / "model.safetensors" for d in (directory, tmp_path / "saved"))
    assert ours.read_bytes() == other.read_bytes()
    config = json.loads((directory / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    Checkpoint(directory)


@pytest.mark.parametrize(
    ("vocabulary", "said", "begins", "ends"),
    [
        (byte_level, {}, False, False),
        (byte_level, {"add_bos_token": False}, False, False),
        (byte_level, {"add_bos_token": True, "add_eos_token": True}, True, True),
        (byte_level, {"pre": "llama-bpe"}, True, False),
        (sentencepiece, {}, True, False),
        (sentencepiece, {"add_bos_token": False}, False, False),
        (sentencepiece, {"add_eos_token": True}, True, True),
    ],
)
def test_whether_a_text_begins_with_a_bos(tmp_path, vocabulary, said, begins, ends):
    """What the file says, and where it is silent what llama.cpp does."""
    words = {**vocabulary(), **({"pre": said["pre"]} if "pre" in said else {})}

    def more(writer) -> None:
        for name, value in said.items():
            if name != "pre":
                writer.add_bool(f"tokenizer.ggml.{name}", value)

    model = gguf_files.model_of("llama", words)
    path = gguf_files.write(tmp_path / "m" / "a.gguf", model, "llama", words, more=more)
    _, tokenizer = read(converted(path))
    ids = tokenizer("the tin").input_ids
    bare = tokenizer("the tin", add_special_tokens=False).input_ids
    assert ids == [1] * begins + bare + [2] * ends
    assert tokenizer.bos_token_id == 1
    assert tokenizer.eos_token_id == 2


def test_a_gemma_begins_with_a_bos(tiny_gguf):
    path, _ = tiny_gguf("gemma2")
    _, tokenizer = read(converted(path))
    assert tokenizer("the tin").input_ids[0] == tokenizer.bos_token_id == 1
    assert tokenizer("the tin").input_ids[1] != 1
    said = tokenizer.apply_chat_template([{"role": "a", "content": "b"}], tokenize=False)
    assert said == "<a>b"


def test_a_tokenizer_that_would_not_be_read_back(tiny_gguf, cache):
    """transformers cuts texts for a Qwen as it always does, whatever the files say."""
    path, _ = tiny_gguf("qwen2", sentencepiece)
    with pytest.raises(UsageError, match="its tokenizer is not the one that qwen2 models have"):
        converted(path)
    assert not cache.exists()


def test_shards_and_their_index(tiny_gguf, monkeypatch):
    path, _ = tiny_gguf("qwen3moe", byte_level)
    whole, _ = read(converted(path))
    monkeypatch.setattr(convert, "_MAX_SHARD_BYTES", 300_000)
    monkeypatch.setattr(source, "_SCHEME", "sharded")
    directory = converted(path)
    files = sorted(directory.glob("*.safetensors"))
    assert len(files) > 3
    for file in files:
        with safe_open(file, framework="pt") as opened:
            assert all(opened.get_tensor(name).isfinite().all() for name in opened.keys())  # noqa: SIM118
    model, _ = read(directory)
    assert torch.equal(logits(model), logits(whole))


def test_what_is_in_small_pieces_is_the_same(tiny_gguf, monkeypatch):
    path, _ = tiny_gguf("llama", byte_level, kind=Q.Q4_0)
    whole = (converted(path) / "model.safetensors").read_bytes()
    monkeypatch.setattr(convert, "_CHUNK_VALUES", 100)
    monkeypatch.setattr(source, "_SCHEME", "pieces")
    assert (converted(path) / "model.safetensors").read_bytes() == whole


def test_licence_and_origin_are_carried(tmp_path):
    words = byte_level()

    def more(writer) -> None:
        writer.add_license("apache-2.0")
        writer.add_license_link("https://example.org/a: b\nbase_model: evil/one")
        writer.add_source_repo_url("https://huggingface.co/SomeOne/Some-Model")

    model = gguf_files.model_of("llama", words)
    path = gguf_files.write(tmp_path / "m" / "a.gguf", model, "llama", words, more=more)
    card = (converted(path) / "README.md").read_text()
    assert card == "---\nlicense: apache-2.0\nbase_model: SomeOne/Some-Model\n---\n"


# --- the cache


def test_it_is_converted_once(tiny_gguf, cache, monkeypatch, tmp_path):
    path, _ = tiny_gguf()
    first = converted(path)
    assert first.parent.parent == cache
    assert first.name == "tiny-llama"
    monkeypatch.setattr(convert, "prepare", lambda header: pytest.fail("converted again"))
    copy = tmp_path / "Under Another Name.GGUF"
    copy.write_bytes(path.read_bytes())
    assert converted(copy) == first


def test_an_interrupt_leaves_nothing(tiny_gguf, cache, monkeypatch):
    path, _ = tiny_gguf()
    real, calls = convert._parameter, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(convert, "_parameter", interrupted)
    with pytest.raises(KeyboardInterrupt):
        converted(path)
    assert not cache.parent.exists()
    monkeypatch.setattr(convert, "_parameter", real)
    assert converted(path).is_dir()


def test_one_that_is_not_complete_is_made_again(tiny_gguf):
    path, _ = tiny_gguf()
    directory = converted(path)
    (directory / "prunecomp-source.json").unlink()
    (directory / "model.safetensors").write_bytes(b"half")
    again = converted(path)
    assert again.name == "tiny-llama-2"
    Checkpoint(again)
    assert converted(path) == again


def test_another_process_that_is_faster(tiny_gguf, tmp_path, monkeypatch):
    path, _ = tiny_gguf()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    other = converted(path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    real = convert.write

    def slow(conversion, target, progress):
        real(conversion, target, progress)
        shutil.copytree(other, target.parent / other.name)

    monkeypatch.setattr(convert, "write", slow)
    directory = converted(path)
    Checkpoint(directory)
    assert [p.name for p in directory.parent.iterdir()] == [directory.name]


def test_no_room(tiny_gguf, cache, monkeypatch):
    path, _ = tiny_gguf()
    monkeypatch.setattr(source, "_SPARE_BYTES", 10**18)
    with pytest.raises(UsageError, match=r"takes 0.00 GB, and .* set XDG_CACHE_HOME"):
        converted(path)
    assert not cache.exists()


def test_at_most_one_parameter_is_held(tiny_gguf, monkeypatch):
    """What is alive while the largest one is written, in values of float32."""
    import weakref

    path, _ = tiny_gguf("qwen3moe", byte_level)
    alive: list[weakref.ref] = []
    real = convert._parameter

    def watched(*arguments):
        assert sum(ref() is not None for ref in alive) <= 1
        value = real(*arguments)
        alive.append(weakref.ref(value))
        return value

    monkeypatch.setattr(convert, "_parameter", watched)
    converted(path)
    assert len(alive) > 40

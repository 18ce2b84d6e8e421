"""Calibration text that is not there, not text, too short, or of another model."""

from __future__ import annotations

import json
import sys

import pytest

from tests.cli.support import CONTEXT, VOCABULARY

LINE = json.dumps({"text": "hello world " * 20}) + "\n"


@pytest.fixture
def calibrate(refused_compress, model, tmp_path):
    """``calibrate(name, content, *options, says=...)``: must be refused."""

    def check(name, content=None, *options, **expected):
        source = name
        if content is not None:
            source = tmp_path / name
            source.write_bytes(content if isinstance(content, bytes) else content.encode())
        return refused_compress(model, "--calibration", source, *options, **expected)

    return check


@pytest.fixture
def calibrates(cli, model, tmp_path):
    """The same for what must work."""

    def check(name: str, content: bytes, *options) -> None:
        (tmp_path / name).write_bytes(content)
        ended = cli("plan", model, "-q", "-o", tmp_path / "plan.json", "--layers", 1, "--samples",
                    2, "--seq-len", 16, "--calibration", tmp_path / name, *options)  # fmt: skip
        assert (ended.code, ended.err) == (0, "")

    return check


# --- names


@pytest.mark.parametrize("name", ["wikitext2", "python_stdlib", "python-stdlib2"])
def test_near_miss(calibrate, name):
    calibrate(name, says=(f"unknown calibration source {name!r}", "did you mean", "OWNER/NAME"))


@pytest.mark.parametrize("name", ["zzz", "", "/no/such/text", "../no/such", "a/b/c", "/dev/stdin"])
def test_unknown(calibrate, name):
    calibrate(name, says=("unknown calibration source", "python-stdlib, prose, wikitext-2, c4"))


@pytest.mark.parametrize("name", ["nope.txt", "no/such.jsonl", "nope.safetensors"])
def test_missing_file(calibrate, name):
    assert "no such file" in calibrate(name, says=name).lower()


@pytest.mark.parametrize("name", ["notes.md", "corpus.text", "corpus", "data.json"])
def test_file_of_another_kind(calibrate, name):
    calibrate(name, "hello", says=(name, "is a .txt, a .jsonl or a .safetensors"))


@pytest.mark.parametrize("name", ["text.txt", "text.jsonl", "ids.safetensors"])
def test_directory(refused_compress, model, tmp_path, name):
    (tmp_path / name).mkdir()
    refused_compress(model, "--calibration", tmp_path / name, says=name)


def test_evaluation_text(refused_compress, model):
    refused_compress(model, "--evaluation", "nope.txt", says="nope.txt: no such file")


# --- .txt


@pytest.mark.parametrize("content", ["", "  \n\t \n", "\ufeff"])
def test_empty(calibrate, content):
    calibrate("text.txt", content, says=("text.txt", "is empty", "name another source"))


def test_shorter_than_one_sample(calibrate):
    calibrate("text.txt", "x" * 31, says=("31 tokens", "less than one sample of 32", "--seq-len"))


def test_exactly_one_sample(calibrates):
    calibrates("text.txt", b"x" * 16)


def test_not_utf8(calibrate):
    calibrate("text.txt", "hello".encode("utf-16") * 50, says="cannot read it as UTF-8 text")


def test_unreadable_text(calibrate, monkeypatch):
    """Also after it was seen to be there, as on a network disk."""
    from pathlib import Path

    def fail(self, *args, **kwargs):
        raise OSError(5, "Input/output error")

    read = Path.open
    monkeypatch.setattr(
        Path, "open", lambda p, *a, **k: (fail if a == ("rb",) else read)(p, *a, **k)
    )
    calibrate("text.txt", "hello " * 50, says="Input/output error")


def test_byte_order_mark(calibrates):
    calibrates("text.txt", b"\xef\xbb\xbf" + b"hello world " * 20)
    calibrates("text.jsonl", b"\xef\xbb\xbf" + LINE.encode(), "--overwrite")


# --- .jsonl


@pytest.mark.parametrize(
    "bad", ["{oops", "[" * 200_000, '{"text": ' + "1" * 5000 + "}"], ids=["half", "deep", "big"]
)
def test_line_that_is_not_json(calibrate, bad):
    """The number counts blank lines, as editors do."""
    content = LINE + "\n" + LINE + bad + "\n" + LINE
    calibrate("text.jsonl", content, says=("text.jsonl, line 4:", "is not JSON"))


@pytest.mark.parametrize("bad", ['{"content": "x"}', '{"text": 3}', '{"text": null}', "[1]", '"x"'])
def test_line_without_the_field(calibrate, bad):
    calibrate(
        "text.jsonl", LINE + bad, says=("line 2:", "no text under 'text'", "--calibration-field")
    )


def test_line_that_is_not_text(calibrate):
    calibrate("text.jsonl", LINE + '{"text": "\\ud800"}', says=("line 2:", "surrogate"))


@pytest.mark.parametrize("content", ["", "\n\n", '{"text": ""}\n{"text": " "}\n'])
def test_empty_lines(calibrate, content):
    calibrate("text.jsonl", content, says="is empty")


def test_lines_of_every_kind(calibrates):
    """CRLF, no newline at the end, another field, and separators that JSON allows in a string."""
    text = "hello \u2028 world \u0085 again \f " * 10
    lines = [json.dumps({"body": text}, ensure_ascii=False)] * 3
    calibrates("text.jsonl", "\r\n".join(lines).encode(), "--calibration-field", "body")


# --- .safetensors


@pytest.fixture
def tokens(tmp_path):
    """``tokens(tensor, name="input_ids")`` writes a file of tokens."""

    def write(tensor, name: str = "input_ids"):
        from safetensors.torch import save_file

        save_file({name: tensor}, tmp_path / "ids.safetensors")
        return tmp_path / "ids.safetensors"

    return write


def ids(*shape: int, high: int = VOCABULARY):
    import torch

    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(0))


def test_tokens_under_another_name(refused, model, tokens, tmp_path):
    command = ["compress", model, "-o", tmp_path / "out", "--layers", "1", "--calibration"]
    refused(*command, tokens(ids(4, 32), "tokens"), says="must hold an integer tensor input_ids")


@pytest.mark.parametrize("change", [
    lambda t: t.float(), lambda t: t > 3, lambda t: t.cfloat(), lambda t: t[0].clone(),
    lambda t: t[None].clone(),
], ids=["float", "bool", "complex", "1-D", "3-D"])  # fmt: skip
def test_tokens_of_another_kind(refused, model, tokens, tmp_path, change):
    command = ["compress", model, "-o", tmp_path / "out", "--layers", "1", "--calibration"]
    refused(*command, tokens(change(ids(4, 32))), says="must hold an integer tensor input_ids")


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (ids(2, 32) + VOCABULARY, "outside the model's vocabulary of 260"),
        (ids(2, 32) - VOCABULARY, "outside the model's vocabulary of 260"),
        (ids(2, CONTEXT + 1), "exceed the model's context of 64"),
        (ids(0, 32), "holds 0 samples"),
        (ids(2, 0), "holds 2 samples of 0 tokens"),
        (ids(2, 1), "of 1 tokens"),
    ],
)
def test_tokens_that_do_not_fit(refused, model, tokens, tmp_path, tensor, says):
    command = ["compress", model, "-o", tmp_path / "out", "--layers", "1", "--calibration"]
    refused(*command, tokens(tensor), says=("ids.safetensors", says))


@pytest.mark.parametrize("options", [["--samples", "5"], ["--samples", "0"], ["--seq-len", "33"],
                                     ["--seq-len", "1"]])  # fmt: skip
def test_more_tokens_than_there_are(refused, model, tokens, tmp_path, options):
    command = ["compress", model, "-o", tmp_path / "out", "--layers", "1", *options]
    refused(*command, "--calibration", tokens(ids(4, 32)),
            says=("holds 4 samples of 32 tokens", "were asked for"))  # fmt: skip


@pytest.mark.parametrize("content", [b"", b"junk", b"\xff" * 100])
def test_tokens_that_are_junk(calibrate, content):
    calibrate("ids.safetensors", content, says="cannot read the tokens")


@pytest.mark.parametrize("rows", [3, 100])
def test_tokens_to_evaluate_on(cli, model, tokens, small, tmp_path, rows):
    """Any number of them."""
    ended = cli("plan", model, "-q", "-o", tmp_path / "plan.json", "--layers", 1, *small,
                "--evaluation", tokens(ids(rows, 16)))  # fmt: skip
    assert (ended.code, ended.err) == (0, "")


# --- the hub


class Fails:
    """A hub that is not there."""

    def __init__(self, error: Exception) -> None:
        self.error, self.asked = error, []

    def __call__(self, *args, **kwargs):
        self.asked.append(kwargs)
        raise self.error


NETWORK = [
    ConnectionError("[Errno -2] Name or service not known"),
    ValueError("Unknown split \"x\".\nShould be one of ['train']."),
    KeyError("text"),
    Exception("503\nService Unavailable"),
]


@pytest.mark.parametrize("error", NETWORK, ids=repr)
@pytest.mark.parametrize("name", ["wikitext-2", "c4", "owner/name"])
def test_data_set_that_does_not_come(calibrate, monkeypatch, name, error):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", Fails(error))
    calibrate(name, says=(f"{name}: cannot load the data set", "check its name and the network"))


@pytest.mark.parametrize("after", [0, 1])
def test_data_set_that_breaks_off(calibrate, monkeypatch, after):
    datasets = pytest.importorskip("datasets")

    def rows(**request):
        yield from [{"text": "hello"}] * after
        raise TimeoutError("timed out")

    monkeypatch.setattr(datasets, "load_dataset", rows)
    calibrate("owner/name", says=("cannot load the data set", "timed out"))


def test_data_set_without_the_field(calibrate, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", lambda **r: [{"a": "x", "b": "y"}])
    calibrate(
        "owner/name",
        says=("owner/name: has the fields a, b, and no text under", "--calibration-field"),
    )


def test_empty_data_set(calibrate, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", lambda **r: [])
    calibrate("owner/name", says="is empty")


def test_without_the_package_datasets(calibrate, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    calibrate("wikitext-2", code=5, says=("needs the package datasets", "prunecomp[data]"))


@pytest.mark.parametrize("error", NETWORK, ids=repr)
def test_model_that_does_not_come(refused_compress, monkeypatch, error):
    import huggingface_hub

    hub = Fails(error)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    says = ("owner/name@v1: no such directory, and the hub did not give it", "the network")
    refused_compress("owner/name@v1", says=says)
    assert hub.asked[0]["revision"] == "v1"
    assert not [p for p in hub.asked[0]["allow_patterns"] if p in {"*", "*.py", "*.bin"}]


@pytest.mark.parametrize("name", ["./owner/name", "/owner/name", "a/b/c", "name", "../a/b", "~/m"])
def test_paths_are_not_asked_from_the_hub(refused_compress, monkeypatch, name):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", Fails(AssertionError("asked")))
    refused_compress(name, says="no such directory; name a model directory")

"""Every command takes a GGUF file, or a directory that holds one, where it takes a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Q

from tests.oracles.gguf_files import byte_level, sentencepiece


@pytest.fixture
def file(tiny_gguf, tmp_path) -> Path:
    """A Q4_0 Llama with a vocabulary of bytes, in a directory with a README."""
    path = tmp_path / "some" / "Tiny.Q4_0.GGUF"
    path.parent.mkdir()
    shutil.copyfile(tiny_gguf("llama", byte_level, kind=Q.Q4_0)[0], path)
    (path.parent / "README.md").write_text("# Something\n")
    return path


def read(directory):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


@pytest.mark.parametrize("which", ["file", "directory"])
def test_compress(cli, file, small, tmp_path, which):
    model = file if which == "file" else file.parent
    out = tmp_path / "out"
    ended = cli("compress", model, "-o", out, "--layers", 1, *small)
    assert ended.code == 0, ended.err
    assert "Tiny.Q4_0.GGUF: GGUF, Q4_0; converting it once to bfloat16, 0.00 GB in " in ended.err
    manifest = json.loads((out / "prunecomp.json").read_text())
    found = manifest["converted_from"]
    assert found["quantization"] == "Q4_0"
    assert found["lossy"] is True
    assert manifest["plan"]["source"]["name"] == file.name
    assert manifest["plan"]["source"]["sha256"] == {"model.gguf": found["sha256"]}
    card = (out / "README.md").read_text()
    assert "# Tiny.Q4_0.GGUF without 1 of 4 layers" in card
    assert "`Tiny.Q4_0.GGUF` is a GGUF file of Q4_0 weights" in card
    assert "lossy" in card
    assert found["sha256"] in card
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    assert not (out / "prunecomp-source.json").exists()
    assert read(out).config.num_hidden_layers == 3
    assert {p.name for p in file.parent.iterdir()} == {file.name, "README.md"}


def test_a_plan_is_applied_elsewhere(cli, refused, file, tiny_gguf, small, tmp_path, monkeypatch):
    """To the same file, whatever it is called there and whoever converts it."""
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    assert cli("plan", file, "-o", plan, "--layers", 2, *small).code == 0
    other = tmp_path / "renamed.gguf"
    file.rename(other)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    ended = cli("apply", other, plan, "-o", out, "--rounds", 1)
    assert ended.code == 0, ended.err
    assert cli("export", other, "--plan", plan, "-o", tmp_path / "exported").code == 0
    assert read(tmp_path / "exported").config.num_hidden_layers == 2
    wrong, _ = tiny_gguf("llama", byte_level, kind=Q.Q8_0)
    assert cli("inspect", wrong, *small).code == 0
    says = (f"{wrong}: the plan was made for another model", "model.gguf differs")
    refused("apply", wrong, plan, "-q", "-o", tmp_path / "no", says=says)


def test_export_alone(cli, file, tmp_path):
    out = tmp_path / "out"
    ended = cli("export", file, "-o", out, "--dtype", "float32")
    assert ended.code == 0, ended.err
    assert "`Tiny.Q4_0.GGUF` is a GGUF file of Q4_0 weights" in (out / "README.md").read_text()
    assert json.loads((out / "prunecomp.json").read_text())["converted_from"]["lossy"] is True
    assert "plan" not in json.loads((out / "prunecomp.json").read_text())
    assert read(out).config.num_hidden_layers == 4


def test_inspect(cli, file, small):
    ended = cli("inspect", file, *small)
    assert ended.code == 0, ended.err
    assert "converted     from Tiny.Q4_0.GGUF: GGUF, Q4_0, lossy (30 x Q4_0, 9 x F32)" in ended.out
    found = json.loads(cli("inspect", file, "--json", *small).out)
    assert found["converted_from"]["types"] == {"Q4_0": 30, "F32": 9}
    assert found["model"] == str(file)


def test_frontier(cli, file, small, tmp_path):
    out = tmp_path / "frontier"
    ended = cli(
        "frontier", file, "--max-layers", 2, "-o", out, *small, "--json", "--evaluation", small[1]
    )
    assert ended.code == 0, ended.err
    assert len(json.loads(ended.out)["points"]) == 3


def test_bench(file, tmp_path, cli):
    """It starts other programs on what the names stand for."""
    from bench.models import describe
    from prunecomp.commands.base import model_directory
    from prunecomp.progress import Progress

    assert cli("export", file, "-o", tmp_path / "other").code == 0
    base = model_directory(str(file), Progress(quiet=True))
    assert [m.num_hidden_layers for m in describe(base, [tmp_path / "other"])] == [4, 4]
    ended = cli("bench", file, tmp_path / "none.gguf", "-o", tmp_path / "report")
    assert ended.code == 2
    assert "none.gguf: no such file" in ended.err


def test_beside_safetensors_it_is_left_alone(cli, file, small, tmp_path):
    out = tmp_path / "ordinary"
    assert cli("export", file, "-o", out).code == 0
    (out / "model.gguf").write_bytes(b"anything")
    found = json.loads(cli("inspect", out, "--json", *small).out)
    assert found["converted_from"] is None


def test_a_file_without_its_suffix(cli, file, small, tmp_path):
    """As in the store of the hub's cache, where files are called by their digests."""
    blob = tmp_path / "0a1b2c"
    file.rename(blob)
    link = tmp_path / "linked.gguf"
    link.symlink_to(blob)
    assert cli("inspect", blob, *small).code == 0
    assert json.loads(cli("inspect", link, "--json", *small).out)["model"] == str(link)


def test_the_tokenizer_of_the_result_begins_with_a_bos(cli, tiny_gguf, small, tmp_path):
    from transformers import AutoTokenizer

    for name, vocabulary, begins in (("a", sentencepiece, True), ("b", byte_level, False)):
        path, _ = tiny_gguf("llama", vocabulary)
        ended = cli("compress", path, "-o", tmp_path / name, "--layers", 1, *small)
        assert ended.code == 0, ended.err
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        assert (tokenizer("the tin").input_ids[0] == tokenizer.bos_token_id) is begins
        assert tokenizer.chat_template
        assert (tmp_path / name / "generation_config.json").exists()


def test_no_place_to_write(cli, refused, file, tmp_path, monkeypatch):
    (tmp_path / "a-file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a-file"))
    refused("inspect", file, "-q", says=("cannot be kept", "set XDG_CACHE_HOME"))


def test_a_full_disk(cli, file, cache, monkeypatch):
    from prunecomp.gguf import source
    from tests.cli.support import largest_file

    monkeypatch.setattr(source, "_SPARE_BYTES", 0)
    with largest_file(100_000):
        ended = cli("inspect", file, "-q")
    assert ended.code == 1
    assert "cannot be written (File too large)" in ended.err
    assert "XDG_CACHE_HOME" in ended.err
    assert not cache.exists()

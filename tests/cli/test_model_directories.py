"""Directories as people have them: what else lies beside the weights, and what goes along."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.cli.support import INDEX, halves, put, shard, tensors

SINGLE = "model.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 4976698\n"


# --- adapters, and directories that are no models


@pytest.mark.parametrize(("kind", "called"), [("LORA", "a LoRA adapter"), ("IA3", "type IA3"),
                                              (3, "a LoRA adapter")])  # fmt: skip
def test_adapter(refused, refused_compress, model, tmp_path, kind, called):
    """Beside a model, transformers applies it; alone, it is none."""
    settings = {"peft_type": kind, "base_model_name_or_path": "meta-llama/Llama-3.1-8B"}
    (model / "adapter_config.json").write_text(json.dumps(settings))
    (model / "adapter_model.safetensors").write_bytes(b"x")
    refused_compress(model, says=(called, "beside the model", "adapter_config.json", "merge"))
    (model / SINGLE).unlink()
    refused("inspect", model, says=("holds only", called))
    (model / "config.json").unlink()
    refused("inspect", model, says=(
        "holds only", called, "'meta-llama/Llama-3.1-8B'", "merge_and_unload", "name NEW",
    ))  # fmt: skip


def test_folder_of_models(refused, model, tmp_path):
    for name in ("checkpoint-500", "checkpoint-1000"):
        shutil.copytree(model, tmp_path / "run" / name)
    refused("inspect", tmp_path / "run", says=("checkpoint-1000", "1 other", "name"))


def test_folder_of_a_hub_cache(refused, model, tmp_path):
    snapshot = tmp_path / "models--acme--tiny" / "snapshots" / "0123"
    shutil.copytree(model, snapshot)
    refused("inspect", tmp_path / "models--acme--tiny", says=f"name {snapshot}")


def test_makers_own_format(refused, model):
    (model / "config.json").rename(model / "params.json")
    refused("inspect", model, says=("params.json", "for transformers"))
    (model / "params.json").rename(model / "config.json")
    (model / SINGLE).rename(model / "consolidated.safetensors")
    refused("inspect", model, says=("consolidated.safetensors", "Mistral's own names"))


# --- Git LFS


@pytest.mark.parametrize(
    "file", [SINGLE, "config.json", "tokenizer.json", "tokenizer_config.json",
             "generation_config.json", "LICENSE", "modules.json"],
)  # fmt: skip
def test_git_lfs_pointer(refused_compress, model, file):
    (model / file).write_text(POINTER)
    refused_compress(model, says=(file, "Git LFS pointer", "git lfs pull"))


def test_git_lfs_pointer_in_a_shard(refused, model):
    names = shard(model, halves(tensors(model)))
    (model / SINGLE).unlink()
    (model / names[1]).write_text(POINTER)
    refused("inspect", model, says=(names[1], "Git LFS pointer"))


# --- what goes along


@pytest.fixture
def exported(cli, model):
    """``exported()``: the names of what `export` writes of the model, with folders."""

    def run() -> set[str]:
        out = model.parent / "out"
        ended = cli("export", model, "-o", out)
        assert ended.code == 0, ended.err
        run.said = ended.err
        return {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}

    return run


def test_embedding_model(model, exported):
    """Of sentence-transformers: its modules, and what their folders hold for them."""
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path}
               for kind, path in (("Transformer", ""), ("Pooling", "1_Pooling"),
                                  ("Dense", "2_Dense"), ("Normalize", "3_Normalize"))]  # fmt: skip
    (model / "modules.json").write_text(json.dumps(modules))
    for folder in ("1_Pooling", "2_Dense", "unrelated"):
        (model / folder).mkdir()
        (model / folder / "config.json").write_text("{}")
        (model / folder / "evil.py").touch()
    put(model / "2_Dense" / SINGLE, {"linear.weight": tensors(model)["model.norm.weight"]})
    names = {"config_sentence_transformers.json", "sentence_bert_config.json"}
    for name in names:
        (model / name).write_text("{}")
    assert exported() >= names | {"modules.json", "1_Pooling/config.json", "2_Dense/config.json",
                                  f"2_Dense/{SINGLE}"}  # fmt: skip
    out = model.parent / "out"
    assert not list(out.rglob("*.py"))
    assert not (out / "unrelated").exists()
    assert "not carried over: unrelated/" in exported.said
    listed = json.loads((out / "prunecomp.json").read_text())["files"]
    assert "2_Dense/model.safetensors" in listed


@pytest.mark.parametrize(
    ("modules", "says"),
    [([{"type": "custom_st.Transformer", "path": ""}], "Python code"),
     ([{"type": "sentence_transformers.models.Pooling", "path": "../x"}], "not a folder"),
     ([{"type": "sentence_transformers.models.Pooling", "path": 3}], "not a folder"),
     ([{"path": ""}], "Python code"), ({}, "not a list"), ([3], "not a list"),
     ([{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}], "pickle")],
)  # fmt: skip
def test_modules_that_cannot_go_along(refused_compress, model, modules, says):
    (model / "modules.json").write_text(json.dumps(modules))
    (model / "2_Dense").mkdir()
    (model / "2_Dense" / "pytorch_model.bin").touch()
    refused_compress(model, says=says)


def test_known_names_go_along_and_no_others(model, exported):
    known = {"tokenizer.model", "tokenizer.model.v3", "tekken.json", "vocab.json", "merges.txt",
             "qwen.tiktoken", "spiece.model", "special_tokens_map.json", "added_tokens.json",
             "chat_template.jinja", "chat_template.json", "LICENSE", "LICENSE-2.0", "Notice.txt",
             "USE_POLICY.md", "preprocessor_config.json",
             "additional_chat_templates/tool.jinja"}  # fmt: skip
    others = {"vocab.pkl", "LICENSE.py", "tokenizer.py", "tokenizer_x/evil.py", "params.json",
              "custom_generate/generate.py", "additional_chat_templates/evil.py",
              "additional_chat_templates/deep/x.jinja", "optimizer.bin", "runs/log"}  # fmt: skip
    for name in known | others:
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text("{}")
    found = exported()
    assert found >= known
    assert not found & others
    assert "vocab.pkl" not in found
    assert "note: not carried over: " in exported.said


@pytest.mark.parametrize("name", ["generation_config.json", "chat_template.jinja", "modules.json",
                                  "tokenizer.json", "config.json", SINGLE])  # fmt: skip
def test_dead_link(refused_compress, model, name):
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to("../../blobs/gone")
    refused_compress(model, says=(name, "dead link", "complete the download"))


def test_dead_link_of_a_shard(refused, model):
    names = shard(model, halves(tensors(model)))
    (model / SINGLE).unlink()
    (model / names[0]).unlink()
    (model / names[0]).symlink_to("../../blobs/gone")
    refused("inspect", model, says=(INDEX, names[0], "dead link"))


@pytest.mark.parametrize("name", ["LICENSE", "chat_template.jinja", "tokenizer_extra.txt",
                                  "additional_chat_templates/x.jinja", "additional_chat_templates",
                                  "1_Pooling/config.json", "1_Pooling"])  # fmt: skip
def test_link_that_leads_out(refused_compress, model, tmp_path, name):
    """Its target would be in a directory that may be pushed to the hub."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "config.json").write_text("PRIVATE")
    (model / name).parent.mkdir(exist_ok=True)
    whole = name in ("1_Pooling", "additional_chat_templates")
    (model / name).symlink_to(tmp_path / "home" / ("" if whole else "config.json"))
    modules = [{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]
    (model / "modules.json").write_text(json.dumps(modules))
    refused_compress(model, says=(str(model / name), "leads out of the model directory"))


def test_link_inside_the_directory(model, exported):
    (model / "COPYING").write_text("terms")
    (model / "LICENSE").symlink_to("COPYING")
    assert "LICENSE" in exported()
    written = model.parent / "out" / "LICENSE"
    assert written.read_text() == "terms"
    assert not written.is_symlink()


def test_link_to_itself(refused, model):
    (model / "LICENSE").symlink_to("LICENSE")
    refused("inspect", model, says=("LICENSE", "dead link"))


def test_pipe(refused, model):
    os.mkfifo(model / "NOTICE")
    refused("inspect", model, says=("NOTICE", "not an ordinary file"))


@pytest.mark.parametrize("through_link", [False, True])
def test_snapshot_of_the_hub_cache(cli, model, tmp_path, through_link):
    """Links to the repository's own blobs, at any depth, are what the cache is made of."""
    repository = tmp_path / "hub" / "models--acme--tiny"
    snapshot, blobs = repository / "snapshots" / "0123", repository / "blobs"
    blobs.mkdir(parents=True)
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "x.jinja").write_text("{{ x }}")
    files = [path for path in model.rglob("*") if path.is_file()]
    for number, path in enumerate(files):
        link = snapshot / path.relative_to(model)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blobs / f"{number:064x}")
        link.symlink_to(os.path.relpath(blobs / f"{number:064x}", link.parent))
    named = snapshot
    if through_link:
        named = tmp_path / "alias"
        named.symlink_to(snapshot)
    assert cli("export", named, "-q", "-o", tmp_path / "out").code == 0
    assert (tmp_path / "out" / "additional_chat_templates" / "x.jinja").read_text() == "{{ x }}"
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (
        model / "tokenizer.json"
    ).read_bytes()


def test_blobs_of_another_repository(refused, model, tmp_path):
    snapshot = tmp_path / "models--acme--tiny" / "snapshots" / "0123"
    snapshot.parent.mkdir(parents=True)
    shutil.move(model, snapshot)
    other = tmp_path / "models--me--private" / "blobs"
    other.mkdir(parents=True)
    (other / "abc").write_text("PRIVATE")
    (snapshot / "LICENSE").symlink_to(other / "abc")
    refused("inspect", snapshot, says=("LICENSE", "leads out"))


# --- tokenizers that need Python code


@pytest.fixture
def with_code(model) -> Path:
    """As stablelm-2 and Moonlight are published: a vocabulary, and the code that reads it."""
    (model / "tokenizer.json").unlink()
    (model / "my.tiktoken").write_text("IQ== 0\n")
    (model / "tokenization_mine.py").write_text("class MyTok: pass\n")
    settings = {"tokenizer_class": "MyTok", "auto_map": {
        "AutoTokenizer": ["tokenization_mine.MyTok", None]}}  # fmt: skip
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    return model


@pytest.mark.parametrize("place", ["tokenizer_config.json", "config.json"])
def test_tokenizer_that_needs_code(cli, refused, refused_compress, with_code, tmp_path, place):
    """Told at once, also where tokens are given; without the pointer, the tokens do."""
    import torch
    from safetensors.torch import save_file

    path = with_code / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    if place == "config.json":
        config = json.loads((with_code / place).read_text())
        config["auto_map"] = settings.pop("auto_map")
        (with_code / place).write_text(json.dumps(config))
        path.write_text(json.dumps(settings))
    save_file({"input_ids": torch.arange(64).view(2, 32)}, tmp_path / "tokens.safetensors")
    tokens = ["--calibration", tmp_path / "tokens.safetensors"]
    says = (place, "needs Python code (tokenization_mine.MyTok)", "delete auto_map")
    refused_compress(with_code, says=says)
    refused("compress", with_code, "-o", tmp_path / "out", "--layers", 1, *tokens, says=says)
    refused("inspect", with_code, says=says)
    named = with_code / place
    named.write_text(json.dumps({**json.loads(named.read_text()), "auto_map": {}}))
    ended = cli("compress", with_code, "-q", "-o", tmp_path / "out", "--layers", 1, *tokens)
    assert (ended.code, ended.err) == (0, "")


def test_code_that_is_not_needed(cli, with_code):
    """A stock class that the code only repeats."""
    path = with_code / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": "LlamaTokenizer"}
    path.write_text(json.dumps(settings))
    assert cli("export", with_code, "-q", "-o", with_code.parent / "out").code == 0
    assert "auto_map" not in json.loads((with_code.parent / "out" / path.name).read_text())

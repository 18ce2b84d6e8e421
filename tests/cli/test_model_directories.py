"""Directories as people have them: which weights count, what else lies there, what goes along.

What both transformers and vLLM would load is written; what they disagree about is refused, with
both names. The oracle for what transformers loads is transformers.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from prunecomp.checkpoint.weight_files import weight_files

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
GATE = "model.layers.0.mlp.gate_proj.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 4976698\n"


def tensors(path: Path) -> dict:
    from safetensors.torch import load_file

    found = {}
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        found |= load_file(file)
    return found


def put(path: Path, found: dict) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(exist_ok=True)
    save_file(found, path, metadata={"format": "pt"})


def changed(found: dict) -> dict:
    return {name: tensor + 0.25 for name, tensor in found.items()}


def shard(model: Path, parts: list[dict], folder: str = "") -> list[str]:
    """Adds shards and their index; returns the names of the shards."""
    names = [f"{folder}model-{i + 1:05d}-of-{len(parts):05d}.safetensors"
             for i in range(len(parts))]  # fmt: skip
    for name, part in zip(names, parts, strict=True):
        put(model / name, part)
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    document = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (model / INDEX).write_text(json.dumps(document))
    return names


def halves(found: dict) -> list[dict]:
    keys = list(found)
    return [{k: found[k] for k in keys[:20]}, {k: found[k] for k in keys[20:]}]


def loaded(model: Path) -> dict:
    """The weights that transformers loads."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model).state_dict()


def assert_written(cli, model: Path, expected: dict) -> None:
    """`export` takes the directory, and writes `expected`, which transformers finds there, too."""
    import torch

    out = model.parent / "out"
    ended = cli("export", model, "-q", "-o", out)
    assert (ended.code, ended.err) == (0, "")
    got = tensors(out)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    again = loaded(out)
    assert all(torch.equal(again[name], expected[name]) for name in expected)


# --- a single file and an index


@pytest.mark.parametrize("newer", ["single", "shards"])
def test_single_file_and_other_shards(refused, model, newer):
    """transformers takes the single file, vLLM the shards; which is newer, nobody can say."""
    import torch

    old = tensors(model)
    single, sharded = (changed(old), old) if newer == "single" else (old, changed(old))
    put(model / SINGLE, single)
    shards = shard(model, halves(sharded))
    assert torch.equal(loaded(model)[GATE], single[GATE])
    refused("inspect", model, says=(SINGLE, INDEX, shards[0], "transformers", "vLLM",
                                    "delete what is out of date"))  # fmt: skip


def test_single_file_and_the_same_in_shards(cli, model):
    shard(model, halves(tensors(model)))
    assert_written(cli, model, tensors(model / SINGLE))


def test_single_file_and_shards_of_which_one_tensor_is_another(refused, model):
    """Bit for bit: a copy of a model is not told from its fine-tuning by names and sizes."""
    found = tensors(model)
    last = {**found, "model.norm.weight": found["model.norm.weight"].clone()}
    last["model.norm.weight"][-1] += 0.5
    shard(model, halves(last))
    refused("inspect", model, says=("model.norm.weight differs", SINGLE, INDEX))


def test_index_whose_shards_are_gone(cli, model):
    """transformers takes the single file, vLLM refuses: there is but one model to mean."""
    found = tensors(model)
    for name in shard(model, halves(changed(found))):
        (model / name).unlink()
    assert_written(cli, model, found)


def test_index_of_which_some_shards_are_gone(refused, model):
    names = shard(model, halves(tensors(model)))
    (model / names[1]).unlink()
    refused("inspect", model, says=(SINGLE, INDEX, names[1], "missing"))
    (model / SINGLE).unlink()
    refused("inspect", model, says=(INDEX, names[1], "missing; complete the download"))


def test_index_that_names_the_single_file(cli, model):
    found = tensors(model)
    document = {"metadata": {}, "weight_map": dict.fromkeys(found, SINGLE)}
    (model / INDEX).write_text(json.dumps(document))
    assert_written(cli, model, found)


def test_leftover_shard_without_index(cli, refused, model):
    """vLLM loads it first, and the single file over it; a name behind that one's comes last."""
    found = tensors(model)
    stray = {GATE: found[GATE] + 1}
    put(model / "model-00001-of-00002.safetensors", stray)
    assert_written(cli, model, found)
    put(model / "new.safetensors", stray)
    refused("inspect", model, says=("model.safetensors", "new.safetensors", "gate_proj", "vLLM"))
    put(model / "new.safetensors", {GATE: found[GATE]})
    assert cli("inspect", model, "--samples", 1, "--seq-len", 8).code == 0


def test_config_that_names_the_file(cli, refused, model):
    """``transformers_weights``, which vLLM does not know: it loads all that is there."""
    found = tensors(model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(
        json.dumps({**config, "transformers_weights": "w.safetensors"})
    )
    (model / SINGLE).rename(model / "w.safetensors")
    assert_written(cli, model, found)
    assert "transformers_weights" not in json.loads((model.parent / "out/config.json").read_text())
    put(model / "z.safetensors", changed(found))
    refused("inspect", model, says=("w.safetensors", "z.safetensors"))
    (model / "w.safetensors").unlink()
    refused("inspect", model, says=("config.json", "w.safetensors", "missing"))


# --- tensors in two shards


def test_two_copies_that_differ(refused, model):
    found = tensors(model)
    first, second = halves(found)
    names = shard(model, [first, {**second, GATE: first[GATE] + 1}])
    (model / SINGLE).unlink()
    refused("inspect", model, says=(GATE, names[0], names[1], "different contents"))


def test_two_copies_of_different_shapes(refused, model):
    first, second = halves(tensors(model))
    names = shard(model, [first, {**second, GATE: first[GATE][:1].clone()}])
    (model / SINGLE).unlink()
    refused("inspect", model, says=(GATE, names[0], names[1], "different contents"))


def test_two_copies_that_are_the_same(cli, model):
    found = tensors(model)
    first, second = halves(found)
    shard(model, [first, {**second, GATE: first[GATE]}])
    (model / SINGLE).unlink()
    assert cli("export", model, "-q", "--single-file", "-o", model.parent / "out").code == 0
    assert tensors(model.parent / "out").keys() == found.keys()


def test_index_that_places_a_tensor_in_another_shard(cli, model):
    """Both readers open the files that it names, and take all that these hold."""
    import torch

    found = tensors(model)
    names = shard(model, halves(found))
    document = json.loads((model / INDEX).read_text())
    document["weight_map"][GATE] = names[1]
    (model / INDEX).write_text(json.dumps(document))
    (model / SINGLE).unlink()
    assert torch.equal(loaded(model)[GATE], found[GATE])
    assert cli("export", model, "-q", "-o", model.parent / "out").code == 0
    assert torch.equal(tensors(model.parent / "out")[GATE], found[GATE])


def test_shards_in_a_folder(cli, refused, model, small):
    """Which transformers reads, and vLLM refuses; a plan names them and knows them again."""
    found = tensors(model)
    shard(model, halves(found), folder="weights/")
    (model / SINGLE).unlink()
    assert loaded(model).keys() == found.keys()
    plan = model.parent / "plan.json"
    assert cli("plan", model, "-q", "-o", plan, "--layers", 2, *small).code == 0
    assert cli("apply", model, plan, "-q", "-o", model.parent / "out").code == 0
    assert (model.parent / "out" / INDEX).exists()
    (model / INDEX).unlink()
    refused("inspect", model, says=("weights lie in the folder weights", "move them up"))


def test_shards_without_index(refused, model):
    names = shard(model, halves(tensors(model)))
    (model / SINGLE).unlink()
    (model / INDEX).unlink()
    refused("inspect", model, says=(names[0], f"no {INDEX}", "complete the download"))


def test_what_transformers_takes_is_what_is_found(model):
    """Its own function, asked about every case above that it can answer."""
    from transformers.modeling_utils import _get_resolved_checkpoint_files

    def theirs() -> list[str]:
        files, _ = _get_resolved_checkpoint_files(str(model), None, None, None, None, False)
        return files

    assert [str(f) for f in weight_files(model).files] == theirs()
    shard(model, halves(tensors(model)))
    assert [str(f) for f in weight_files(model).files] == theirs()
    (model / SINGLE).unlink()
    assert [str(f) for f in weight_files(model).files] == theirs()


# --- names that a wrapper has left


WRAPPERS = ["_orig_mod.", "module.", "base_model.model.", "language_model.", "module._orig_mod.",
            "_forward_module.", "student.model."]  # fmt: skip


@pytest.mark.parametrize("prefix", WRAPPERS)
def test_wrapper(cli, model, prefix):
    found = tensors(model)
    put(model / SINGLE, {prefix + name: tensor for name, tensor in found.items()})
    assert_written(cli, model, found)


def test_wrapper_of_every_layer(cli, model):
    found = tensors(model)
    names = {name: name.replace(".self_attn.", "._fsdp_wrapped_module.self_attn._orig_mod.")
             for name in found}  # fmt: skip
    put(model / SINGLE, {names[name]: tensor for name, tensor in found.items()})
    assert_written(cli, model, found)


def test_wrapper_and_no_base_prefix(cli, model):
    """As saved from the model without its head, inside of another."""
    import torch

    found = tensors(model)
    bare = {f"module.{name.removeprefix('model.')}": t for name, t in found.items()}
    put(model / SINGLE, bare)
    assert cli("export", model, "-q", "-o", model.parent / "out").code == 0
    again = loaded(model.parent / "out")
    assert all(torch.equal(again[name], found[name]) for name in found)


def test_wrapped_model_is_planned_as_itself(cli, model, small, tmp_path):
    """The same layers and factors as with the names of the model, and the same result."""
    import torch

    results = []
    for prefix in ("", "_orig_mod."):
        found = {prefix + name.removeprefix("_orig_mod."): t for name, t in tensors(model).items()}
        put(model / SINGLE, found)
        out = tmp_path / f"out{len(results)}"
        assert cli("compress", model, "-q", "-o", out, "--layers", 2, *small).code == 0
        plan = json.loads((out / "prunecomp.json").read_text())["plan"]
        results.append((plan["rounds"], tensors(out)))
    assert results[0][0] == results[1][0]
    assert results[0][1].keys() == results[1][1].keys()
    assert all(torch.equal(t, results[1][1][name]) for name, t in results[0][1].items())


def test_part_of_a_larger_model(refused, model):
    import torch

    found = {f"language_model.{name}": t for name, t in tensors(model).items()}
    put(model / SINGLE, {**found, "vision_tower.patch.weight": torch.zeros(3, 3)})
    refused("inspect", model, says=("'language_model'", "vision_tower.patch.weight", "alone"))


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_adapter_that_is_not_merged(refused, model, prefix):
    import torch

    found = {prefix + name: t for name, t in tensors(model).items()}
    found[f"{prefix}model.layers.0.self_attn.q_proj.lora_A.default.weight"] = torch.zeros(2, 32)
    put(model / SINGLE, found)
    refused("inspect", model, says=("adapter that is not merged", "lora_A", "merge_and_unload"))


def test_two_names_of_one_tensor(refused, model):
    found = tensors(model)
    put(model / SINGLE, {**found, f"_orig_mod.{GATE}": found[GATE] + 1})
    refused("inspect", model, says=(GATE, f"_orig_mod.{GATE}", "twice"))


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
        "holds only", called, "'meta-llama/Llama-3.1-8B'", "merge_and_unload", str(model),
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

"""Which weights of a directory count, and under which names.

What both transformers and vLLM would load is written; what they disagree about is refused, with
both names. The oracle for what transformers loads is transformers.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunecomp.checkpoint.weight_files import weight_files
from tests.cli.support import INDEX, changed, halves, put, shard, tensors

SINGLE = "model.safetensors"
GATE = "model.layers.0.mlp.gate_proj.weight"


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

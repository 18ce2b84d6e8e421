"""Repairs that rewrite whole weights, from the plan and its sidecar to the written model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in directory.glob("*.safetensors"):
        found |= load_file(file)
    return found


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(
        left.view(torch.int16), right.view(torch.int16)
    )


def _scaled_by(name: str, entry: dict, fold: str) -> float:
    """By the cut of one round, after which the layers are scaled or before which."""
    (gone,), factor = entry["removed"], entry["factor"]
    layer = int(name.split(".")[2]) if name.startswith("model.layers.") else None
    writes = name.endswith(("o_proj.weight", "down_proj.weight"))
    if fold == "downstream":
        return 1 / factor if writes and layer > gone else 1.0
    return factor if (writes and layer < gone) or "embed" in name else 1.0


def expected_weights(source: Path, plan_file: Path, fold: str) -> dict[str, torch.Tensor]:
    """By the definition: new values replace old ones, then later factors; one rounding at the end.

    Of the written model, by the names that it has there.
    """
    document, original = json.loads(plan_file.read_text()), tensors(source)
    values = {name: (tensor.float(), 1.0) for name, tensor in original.items()}
    for entry in document["rounds"]:
        values = {n: (v, s * _scaled_by(n, entry, fold)) for n, (v, s) in values.items()}
        if entry["repair"] == "matrices":
            new = load_file(plan_file.parent / entry["matrices"]["file"])
            assert sorted(new) == entry["matrices"]["weights"]
            values |= {name: (tensor.float(), 1.0) for name, tensor in new.items()}
        if entry["repair"] == "halves":
            first, second = (original[name].float() for name in entry["halves"])
            values[entry["halves"][0]] = torch.cat([first[:, :24], second[:, 24:]], dim=1), 1.0
    kept, out = document["kept_layers"], {}
    for name, (value, scale) in values.items():
        parts = name.split(".")
        if parts[1] == "layers" and int(parts[2]) not in kept:
            continue
        if parts[1] == "layers":
            parts[2] = str(kept.index(int(parts[2])))
        out[".".join(parts)] = (value * scale).to(torch.bfloat16)
    return out


@pytest.mark.parametrize("fold", ["downstream", "upstream"])
@pytest.mark.parametrize("compensation", ["whole", "halves"])
def test_written_weights(compensation, fold, repaired, cli, sharded, tmp_path):
    """Bit by bit what the definition says, in shards, loaded by stock transformers."""
    from transformers import AutoModelForCausalLM

    file = repaired(compensation, "--fold", fold)
    ended = cli("apply", sharded, file, "-q", "-o", tmp_path / "out")
    assert (ended.code, ended.err) == (0, "")
    expected, found = expected_weights(sharded, file, fold), tensors(tmp_path / "out")
    assert expected.keys() == found.keys()
    assert all(same(found[name], value) for name, value in expected.items())
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    plain = cli("apply", sharded, repaired("none", name="none"), "-q", "-o", tmp_path / "plain")
    assert plain.code == 0
    others = tensors(tmp_path / "plain")
    changed = [name for name in found if not torch.equal(found[name], others[name])]
    assert any("down_proj" in name for name in changed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("compensation", ["whole", "halves"])
def test_the_model_in_memory_is_the_one_that_is_written(
    compensation, resident, dtype, repaired, cli, sharded, tmp_path
):
    """Round by round, as it happens; and backwards, as the ablation does."""
    from transformers import AutoModelForCausalLM

    from prunecomp.calibration.view import PlannedModel
    from prunecomp.checkpoint.reader import Checkpoint
    from prunecomp.plan import read_plan

    made = read_plan(repaired(compensation))
    cpu = torch.device("cpu")
    model = PlannedModel(Checkpoint(sharded), device=cpu, dtype=dtype, resident=resident)
    for rounds in (1, 2, 3, 1, 3):
        model.apply(made.prefix(rounds))
    ended = cli("apply", sharded, tmp_path / "plan" / "plan.json", "-q", "-o", tmp_path / "o")
    assert ended.code == 0
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "o", dtype=dtype).eval()
    ids = torch.randint(1, 250, (3, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        hidden = model.embed(ids)
        for position, layer in enumerate(model.live):
            with model.loaded(layer):
                ours = dict(model.layer(layer).named_parameters())
                theirs = dict(written.model.layers[position].named_parameters())
                assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
                hidden = model.run_layer(layer, hidden)
        theirs = written(input_ids=ids, use_cache=False).logits
        assert torch.equal(model.logits(hidden, ids), theirs)


def test_shorter_and_resumed_plans(repaired, cli, sharded, small, tmp_path):
    """Rounds nest; a plan that is continued elsewhere takes its sidecars along."""
    full, short = repaired("whole"), repaired("whole", layers=2, name="short")
    rounds = json.loads(full.read_text())["rounds"]
    assert rounds[:2] == json.loads(short.read_text())["rounds"]
    for file, options in ((full, ["--rounds", 2]), (short, [])):
        out = tmp_path / f"of-{file.parent.name}"
        assert cli("apply", sharded, file, *options, "-q", "-o", out).code == 0
    assert (tmp_path / "of-plan" / "model.safetensors.index.json").read_bytes() == (
        tmp_path / "of-short" / "model.safetensors.index.json"
    ).read_bytes()
    left, right = tensors(tmp_path / "of-plan"), tensors(tmp_path / "of-short")
    assert all(same(left[name], right[name]) for name in left)

    elsewhere = tmp_path / "elsewhere" / "plan.json"
    ended = cli("plan", sharded, "-q", "-o", elsewhere, "--layers", 3, *small, "--compensation",
                "whole", "--resume", short)  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(elsewhere.read_text()) == json.loads(full.read_text())
    for folder in (elsewhere.parent, short.parent, full.parent):
        files = {path.name for path in folder.iterdir()}
        assert files == {"plan.json", *(r["matrices"]["file"] for r in rounds)}
    for entry in rounds:
        data = (elsewhere.parent / entry["matrices"]["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["matrices"]["sha256"]


def test_compress_and_the_manifest(repaired, cli, refused, sharded, small, tmp_path):
    """The written directory tells the digests, and holds no matrices."""
    file, out = repaired("whole"), tmp_path / "out"
    ended = cli("compress", sharded, "-q", "-o", out, "--layers", 3, *small, "--compensation",
                "whole")  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    manifest = json.loads((out / "prunecomp.json").read_text())
    assert manifest["plan"]["rounds"] == json.loads(file.read_text())["rounds"]
    assert not list(out.glob("matrices*"))
    assert "new values of weights lie beside the plan" in (out / "README.md").read_text()
    assert cli("apply", sharded, file, "-q", "-o", tmp_path / "applied").code == 0
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / "applied" / path.name).read_bytes(), path.name
    refused("apply", sharded, out / "prunecomp.json", "-o", tmp_path / "again",
            says=("matrices of round 1", "put the file beside the plan"))  # fmt: skip


def test_export_with_a_plan(repaired, cli, sharded, tmp_path):
    file = repaired("whole")
    assert cli("apply", sharded, file, "-q", "-o", tmp_path / "applied").code == 0
    ended = cli("export", sharded, "--plan", file, "-q", "--single-file", "-o", tmp_path / "out")
    assert (ended.code, ended.err) == (0, "")
    applied, exported = tensors(tmp_path / "applied"), tensors(tmp_path / "out")
    assert all(same(exported[name], value) for name, value in applied.items())
    wide = cli("export", sharded, "--plan", file, "-q", "--dtype", "float32", "-o", tmp_path / "w")
    assert wide.code == 0
    rounded = {name: value.bfloat16() for name, value in tensors(tmp_path / "w").items()}
    assert all(same(rounded[name], value) for name, value in applied.items())


def test_frontier(added, cli, sharded, small, tmp_path):
    """The plan lies with its sidecars; what is recommended can be written."""
    out = tmp_path / "frontier"
    ended = cli("frontier", sharded, "--max-layers", 2, "-q", "-o", out, *small, "--evaluation",
                small[1], "--compensation", "whole", "--max-ppl-increase", 1000)  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    assert len(list(out.glob("matrices-*.safetensors"))) == 2
    ended = cli("apply", sharded, out / "plan.json", "--rounds", 2, "-q", "-o", tmp_path / "out")
    assert (ended.code, ended.err) == (0, "")

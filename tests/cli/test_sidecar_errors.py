"""Sidecars and plans with repairs that cannot be: one line, and nothing is written."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.support import DEPTH


def _sidecar(file: Path, number: int = 0) -> tuple[dict, Path]:
    document = json.loads(file.read_text())
    return document, file.parent / document["rounds"][number]["matrices"]["file"]


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["apply", "dry-run"])
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (Path.unlink, "are not there"), (_cut_short, "is not the file"), (_flip, "is not the file"),
        (lambda path: path.write_bytes(b""), "is not the file"),
    ],
    ids=["missing", "short", "one bit", "empty"],
)  # fmt: skip
def test_damaged_sidecar(damage, says, dry, repaired, refused, sharded, tmp_path):
    file = repaired("whole")
    damage(_sidecar(file, 1)[1])
    refused("apply", sharded, file, *dry, "-o", tmp_path / "out", says=("round 2", says))


def _other(name: str = "", **changes):
    """A sidecar with another tensor in it; its digest is right."""

    def damage(document: dict, path: Path) -> None:
        found = load_file(path)
        old, value = found.popitem()
        found[name or old] = changes.get("value", lambda v: v)(value)
        save_file(found, path)
        matrices = document["rounds"][0]["matrices"]
        matrices["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        if name:
            matrices["weights"] = [name]

    return damage


WRONG = {
    "shape": (_other(value=lambda v: v.T.contiguous()), "is F32 [48, 32], the model's is BF16"),
    "width": (_other(value=lambda v: v.half()), "is F16 [32, 48], the model's is BF16 [32, 48]"),
    "codes": (_other(value=lambda v: v.to(torch.int8)), "is I8 [32, 48]"),
    "empty": (_other(value=lambda v: v[:0]), "is F32 [0, 48]"),
    "NaN": (_other(value=lambda v: v * float("nan")), "not finite"),
    "unknown": (_other("model.layers.0.mlp.other.weight"), "is no tensor of the model"),
    "outside": (_other(f"model.layers.{DEPTH}.mlp.down_proj.weight"), "is no tensor of the model"),
}


@pytest.mark.parametrize("case", WRONG)
def test_sidecar_that_does_not_fit(case, repaired, refused, sharded, tmp_path):
    file = repaired("whole")
    document, path = _sidecar(file)
    damage, says = WRONG[case]
    damage(document, path)
    file.write_text(json.dumps(document))
    refused("apply", sharded, file, "-o", tmp_path / "out", says=says)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("file", "../x.safetensors"), ("file", "/etc/passwd"), ("file", 3), ("file", ""),
        ("file", "a\0b"), ("sha256", "00"), ("sha256", None), ("weights", []), ("weights", "x"),
        ("weights", [3]), ("weights", ["a", "a"]), ("weights", None),
    ],
)  # fmt: skip
def test_plan_that_names_no_sidecar(key, value, repaired, refused, sharded, tmp_path):
    file = repaired("whole")
    document, _ = _sidecar(file)
    document["rounds"][0]["matrices"][key] = value
    file.write_text(json.dumps(document))
    refused("apply", sharded, file, "-o", tmp_path / "out", says=("malformed plan", "again"))


@pytest.mark.parametrize("tag", ["cut", "repair"])
def test_kinds_that_are_not_known(tag, repaired, refused, sharded, tmp_path):
    file = repaired("whole")
    document, _ = _sidecar(file)
    document["rounds"][0][tag] = "magic"
    file.write_text(json.dumps(document))
    refused("apply", sharded, file, "-o", tmp_path / "out", says=("'magic'", "again"))


def test_a_weight_whose_layer_is_gone(repaired, refused, sharded, tmp_path):
    file = repaired("whole")
    document, path = _sidecar(file)
    gone = document["rounds"][0]["removed"][0]
    _other(f"model.layers.{gone}.mlp.down_proj.weight")(document, path)
    file.write_text(json.dumps(document))
    refused("apply", sharded, file, "-o", tmp_path / "out", says="its layer is removed by then")


def test_plans_of_the_first_schema(cli, model, plan_file, tmp_path):
    """Rounds without tags: what they say is written bit by bit as by a plan of today."""
    document = json.loads(plan_file.read_text())
    assert document["schema_version"] == 2
    document["schema_version"] = 1
    document["recipe"] = {
        key: document["recipe"][key]
        for key in ("metric", "strategy", "compensation", "fold", "num_removed", "protect_first",
                    "protect_last", "dtype", "device")
    } | {"options": {}}  # fmt: skip
    for entry in document["rounds"]:
        del entry["cut"], entry["repair"]
    (tmp_path / "old.json").write_text(json.dumps(document))
    for name, file in {"new": plan_file, "old": tmp_path / "old.json"}.items():
        ended = cli("apply", model, file, "-q", "-o", tmp_path / name)
        assert (ended.code, ended.err) == (0, "")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "new" / file).read_bytes() == (tmp_path / "old" / file).read_bytes()


def test_quantised_weights(added, pristine, refused, small, tmp_path):
    """A new value for a weight that is stored as codes and scales."""
    from tests.oracles import quantised

    for scheme in ("fp8", "gptq"):
        source = tmp_path / scheme
        shutil.copytree(pristine, source)
        made = quantised.fp8(block=False) if scheme == "fp8" else quantised.gptq(4)
        quantised.quantise_directory(source, made)
        refused("plan", source, "-q", "-o", tmp_path / "plan.json", "--layers", 1, *small,
                "--compensation", "whole", says=("is quantised", "give"))  # fmt: skip

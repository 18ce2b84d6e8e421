"""Repairs that rewrite whole weights, from the plan and its sidecar to the written model."""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.support import DEPTH

#: A compensator that gives the down projection in front of the cut (of the first layer, the one
#: behind it) a new value, and scales the stream as well.
WHOLE = '''
"""Another down projection in front of the cut."""
from prunecomp.calibration.needs import Need

class Whole:
    summary = "another down projection"
    needs = Need.NOTHING

    def repair(self, context):
        import torch
        live = context.runner.live
        layer = live[context.first - 1] if context.first else live[context.last]
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        now = context.runner.model.layer(layer).mlp.down_proj.weight.float()
        generator = torch.Generator().manual_seed(len(context.plan.rounds))
        change = torch.randn(now.shape, generator=generator) * 0.03
        return context.matrices({name: now + change}, factor=1.25)

COMPENSATOR = Whole()
'''
#: One that makes the down projection behind the cut of halves of two layers' own.
HALVES = '''
"""A down projection of two halves."""
from dataclasses import dataclass
from typing import ClassVar
from prunecomp.calibration.needs import Need

@dataclass(frozen=True)
class Halved:
    weight: str
    other: str
    kind: ClassVar[str] = "halves"
    factor: ClassVar[float] = 1.0

    @property
    def weights(self):
        return (self.weight,)

    def sources(self, weight):
        return self.weight, self.other

    def value(self, weight, *tensors):
        import torch
        first, second = tensors
        half = first.shape[1] // 2
        return torch.cat([first[:, :half], second[:, half:]], dim=1)

    def to_json(self):
        return {"factor": 1.0, "halves": [self.weight, self.other]}

    @classmethod
    def from_json(cls, entry, where):
        return cls(*entry["halves"])

class Halves:
    summary = "halves of two layers"
    needs = Need.NOTHING

    def repair(self, context):
        live = context.runner.live
        gone, last = live[context.first], len(live) - 1
        kept = live[context.last] if context.last <= last else live[context.first - 1]
        return Halved(*(f"model.layers.{i}.mlp.down_proj.weight" for i in (kept, gone)))

COMPENSATOR = Halves()
'''


@pytest.fixture
def added(tmp_path_factory, monkeypatch):
    """``--compensation whole`` and ``--compensation halves``, each one more file."""
    import prunecomp.compensators as package
    from prunecomp.rounds import REPAIRS

    folder = tmp_path_factory.mktemp("added")
    for name, code in {"whole": WHOLE, "halves": HALVES}.items():
        (folder / f"{name}.py").write_text(code)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    importlib.invalidate_caches()
    monkeypatch.setitem(
        REPAIRS, "halves", importlib.import_module("prunecomp.compensators.halves").Halved
    )
    yield
    for name in ("whole", "halves"):
        if sys.modules.pop(f"prunecomp.compensators.{name}", None):
            delattr(package, name)


@pytest.fixture
def sharded(pristine, tmp_path) -> Path:
    """The model in several files, so that sources lie apart."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = tmp_path / "sharded"
    model = AutoModelForCausalLM.from_pretrained(pristine, dtype=torch.bfloat16)
    model.save_pretrained(path, max_shard_size="40KB")
    AutoTokenizer.from_pretrained(pristine).save_pretrained(path)
    assert len(list(path.glob("*.safetensors"))) > 2
    return path


@pytest.fixture
def plan(cli, added, sharded, small, tmp_path):
    """``plan(compensation, *options)``: the file of a plan, beside which its sidecars lie."""

    def make(compensation: str, *options, layers: int = 3, name: str = "plan") -> Path:
        path = tmp_path / name / "plan.json"
        ended = cli("plan", sharded, "-q", "-o", path, "--layers", layers, *small,
                    "--compensation", compensation, *options)  # fmt: skip
        assert (ended.code, ended.err) == (0, "")
        return path

    return make


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
def test_written_weights(compensation, fold, plan, cli, sharded, tmp_path):
    """Bit by bit what the definition says, in shards, loaded by stock transformers."""
    from transformers import AutoModelForCausalLM

    file = plan(compensation, "--fold", fold)
    ended = cli("apply", sharded, file, "-q", "-o", tmp_path / "out")
    assert (ended.code, ended.err) == (0, "")
    expected, found = expected_weights(sharded, file, fold), tensors(tmp_path / "out")
    assert expected.keys() == found.keys()
    assert all(same(found[name], value) for name, value in expected.items())
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    plain = cli("apply", sharded, plan("none", name="none"), "-q", "-o", tmp_path / "plain")
    assert plain.code == 0
    others = tensors(tmp_path / "plain")
    changed = [name for name in found if not torch.equal(found[name], others[name])]
    assert any("down_proj" in name for name in changed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("compensation", ["whole", "halves"])
def test_the_model_in_memory_is_the_one_that_is_written(
    compensation, resident, dtype, plan, cli, sharded, tmp_path
):
    """Round by round, as it happens; and backwards, as the ablation does."""
    from transformers import AutoModelForCausalLM

    from prunecomp.calibration.view import PlannedModel
    from prunecomp.checkpoint.reader import Checkpoint
    from prunecomp.plan import read_plan

    made = read_plan(plan(compensation))
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


def test_shorter_and_resumed_plans(plan, cli, sharded, small, tmp_path):
    """Rounds nest; a plan that is continued elsewhere takes its sidecars along."""
    full, short = plan("whole"), plan("whole", layers=2, name="short")
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


def test_compress_and_the_manifest(plan, cli, refused, sharded, small, tmp_path):
    """The written directory tells the digests, and holds no matrices."""
    file, out = plan("whole"), tmp_path / "out"
    ended = cli("compress", sharded, "-q", "-o", out, "--layers", 3, *small, "--compensation",
                "whole")  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    manifest = json.loads((out / "prunecomp.json").read_text())
    assert manifest["plan"] == json.loads(file.read_text())
    assert not list(out.glob("matrices*"))
    assert cli("apply", sharded, file, "-q", "-o", tmp_path / "applied").code == 0
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / "applied" / path.name).read_bytes(), path.name
    refused("apply", sharded, out / "prunecomp.json", "-o", tmp_path / "again",
            says=("matrices of round 1", "put the file beside the plan"))  # fmt: skip


def test_export_with_a_plan(plan, cli, sharded, tmp_path):
    file = plan("whole")
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


# --- what cannot be


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
def test_damaged_sidecar(damage, says, dry, plan, refused, sharded, tmp_path):
    file = plan("whole")
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
def test_sidecar_that_does_not_fit(case, plan, refused, sharded, tmp_path):
    file = plan("whole")
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
def test_plan_that_names_no_sidecar(key, value, plan, refused, sharded, tmp_path):
    file = plan("whole")
    document, _ = _sidecar(file)
    document["rounds"][0]["matrices"][key] = value
    file.write_text(json.dumps(document))
    refused("apply", sharded, file, "-o", tmp_path / "out", says=("malformed plan", "again"))


@pytest.mark.parametrize("tag", ["cut", "repair"])
def test_kinds_that_are_not_known(tag, plan, refused, sharded, tmp_path):
    file = plan("whole")
    document, _ = _sidecar(file)
    document["rounds"][0][tag] = "magic"
    file.write_text(json.dumps(document))
    refused("apply", sharded, file, "-o", tmp_path / "out", says=("'magic'", "again"))


def test_a_weight_whose_layer_is_gone(plan, refused, sharded, tmp_path):
    file = plan("whole")
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

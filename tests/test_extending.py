"""The code in docs/extending.md does what the text around it says."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[1] / "docs" / "extending.md"


def blocks() -> dict[str, str]:
    """Code by the file that its first line names."""
    found = re.findall(r"^```python\n# (\S+)\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.M)
    return dict(found)


@pytest.fixture
def added(tmp_path, monkeypatch):
    """Every block, as a file of its package, in a place of its own."""
    for number, (name, code) in enumerate(blocks().items()):
        path = Path(name)
        package = importlib.import_module(".".join(path.parts[:-1]))
        folder = tmp_path / f"added{number}"
        folder.mkdir()
        (folder / path.name).write_text(code)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    before = set(sys.modules)
    importlib.invalidate_caches()
    yield
    for name in set(sys.modules) - before:
        if f"{name.replace('.', '/')}.py" in blocks():
            parent, _, child = name.rpartition(".")
            delattr(sys.modules[parent], child)
            del sys.modules[name]


def test_the_document_has_one_of_each():
    kinds = ["families", "metrics", "compensators", "compensators", "exporters", "engines"]
    assert [Path(name).parent.name for name in blocks()] == kinds


@pytest.mark.parametrize("name", blocks())
def test_the_example_is_no_file_of_ours(name):
    """Else it would be the file that is tested, and not the document."""
    assert not (DOCUMENT.parents[1] / name).exists()


def test_family(added, tmp_path):
    """The core of the conformance test, found by the family's name alone."""
    from prunecomp.families import FAMILIES
    from tests.families import test_conformance as conformance
    from tests.families import tiny

    (name,) = (Path(n).stem for n in blocks() if "families" in n)
    assert name in FAMILIES.names()
    assert (name, 0) in tiny.cases()
    model = tiny.build(name, 0)
    model.save_pretrained(tmp_path / "model")
    case = FAMILIES.get(name), model, tmp_path / "model"
    for where in ("middle", "scattered"):
        (tmp_path / where).mkdir()
        conformance.test_written_model_is_the_original_with_layers_skipped(
            case, where, tmp_path / where
        )
    conformance.test_folding_shows(case)
    conformance.test_config_speaks_of_the_new_depth(case, tmp_path)
    conformance.test_defaults_are_those_of_transformers(case)


def test_the_family_of_the_example_could_be_wrong(added, tmp_path):
    """With Llama's writers, which the text warns of, it is refused.

    From headers, as it says nothing of the norms; where it calls them neutral, by running it.
    """
    import dataclasses

    from prunecomp.errors import UnsupportedModelError, VerificationError
    from prunecomp.families import FAMILIES
    from prunecomp.families.base import ATTENTION_AND_MLP
    from tests.families import test_conformance as conformance
    from tests.families import tiny

    model = tiny.build("afmoe", 0)
    model.save_pretrained(tmp_path / "model")
    module = importlib.import_module("prunecomp.families.afmoe")
    wrong = dataclasses.replace(FAMILIES.get("afmoe"), writers=ATTENTION_AND_MLP)
    norms = ("post_attention_layernorm", "post_mlp_layernorm", *wrong.others)
    left = [name for name in norms if name not in {"self_attn.o_proj", "mlp.down_proj"}]
    for family, error, says in (
        (wrong, UnsupportedModelError, "post_attention_layernorm.weight"),
        (dataclasses.replace(wrong, others=tuple(left)), VerificationError, "outputs of layer"),
    ):
        module.FAMILY = family
        with pytest.raises(error, match=says):
            conformance.test_written_model_is_the_original_with_layers_skipped(
                (family, model, tmp_path / "model"), "middle", tmp_path
            )


def test_metric_and_compensator(added, text_model, tiny_tokens, tmp_path, capsys):
    """Named on the command line, they are used; the angle ranks single layers as bi does."""
    import cli

    common = ["-q", "--layers", "2", "--calibration", str(tiny_tokens)]
    plans = {}
    for metric, compensation in (("bi", "magnitude"), ("angle", "geometric")):
        file = tmp_path / f"{metric}.json"
        options = ["--metric", metric, "--compensation", compensation, "-o", str(file)]
        assert cli.main(["plan", str(text_model), *common, *options]) == 0
        plans[metric] = json.loads(file.read_text())
    file = tmp_path / "ridge.json"
    options = ["--compensation", "ridge", "-o", str(file)]
    assert cli.main(["plan", str(text_model), *common, *options]) == 0
    ridge = json.loads(file.read_text())["rounds"]
    assert any("matrices" in r for r in ridge)
    assert cli.main(["apply", str(text_model), str(file), "-q", "-o", str(tmp_path / "out")]) == 0
    first, second = plans["bi"]["rounds"][0], plans["angle"]["rounds"][0]
    assert first["removed"] == second["removed"]
    order = [sorted(r["scores"], key=r["scores"].get) for r in (first, second)]
    assert order[0] == order[1]
    assert second["factor"] != first["factor"]
    assert 0.5 < second["factor"] / first["factor"] <= 1.0  # a geometric mean is the smaller one


def test_exporter(added, text_model, tiny_tokens, tmp_path, capsys):
    """With a plan it writes what ``apply`` writes; a weight that it spoils is found."""
    import numpy as np
    from safetensors.torch import load_file, save_file

    import cli

    def run(*arguments) -> int:
        return cli.main([str(a) for a in (*arguments, "-q")])

    plan, applied, out = tmp_path / "plan.json", tmp_path / "applied", tmp_path / "out"
    options = ["--layers", "2", "--calibration", tiny_tokens]
    assert run("plan", text_model, "-o", plan, *options) == 0
    assert run("apply", text_model, plan, "-o", applied) == 0
    export = ["export", text_model, "--format", "npy", "-o"]
    assert run(*export, out, "--plan", plan) == 0
    for name, tensor in load_file(applied / "model.safetensors").items():
        assert np.array_equal(np.load(out / f"{name}.npy"), tensor.numpy())
    assert (out / "config.json").read_bytes() == (applied / "config.json").read_bytes()
    facts = json.loads((out / "prunecomp.json").read_text())["export"]
    assert (facts["format"], facts["largest_difference"]) == ("npy", 0.0)

    assert run(*export, tmp_path / "half", "--half") == 0
    facts = json.loads((tmp_path / "half" / "prunecomp.json").read_text())["export"]
    assert 0 < facts["largest_difference"] < 1e-2
    tensors = load_file(text_model / "model.safetensors")
    tensors["model.norm.weight"] *= 1e6
    shutil.copytree(text_model, tmp_path / "large")
    save_file(tensors, tmp_path / "large" / "model.safetensors")
    export[1] = tmp_path / "large"
    assert run(*export, tmp_path / "spoilt", "--half") == 4
    assert "model.norm.weight: off by inf as float16" in capsys.readouterr().err
    assert not (tmp_path / "spoilt").exists()


def test_engine(added, text_model):
    """Found by its name, it answers what the benchmark asks a worker."""
    from bench.engine_worker import Program
    from bench.engines import ENGINES

    assert "nocache" in ENGINES.names()
    program = Program("nocache", text_model)
    options = {"arguments": [], "context": 16, "batch": 2, "device": "cpu"}
    assert program.answer({"do": "load", "options": options})["seconds"] > 0
    shape = {"do": "measure", "batch": 2, "input_tokens": 5, "output_tokens": 3, "seed": 0}
    assert program.answer(shape)["seconds"] > 0
    assert program.answer({"do": "facts"})["kv_cache_tokens"] is None

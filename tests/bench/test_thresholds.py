"""Limits: what is kept, what is missed and by how much, and the exit code."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import cli
from bench import report as pages
from bench.qualities import Accuracy, MeanRetained, Perplexity
from bench.quantities import Ratio
from bench.schema import Summary
from bench.thresholds import Thresholds, check, parse_fail_under
from prunecomp.errors import UsageError
from tests.bench import reports


def measured(decode: float = 1.2, kept: float = 0.95, perplexity: float = 11.0):
    """One pruned model, 4 of 16 layers removed, with these results and a base at perplexity 10."""
    return replace(
        reports.minimal(),
        summary=(Summary("minus-4", 4, {"decode": Ratio(decode, decode - 0.1, decode + 0.1, 3)},
                         None, 0.8, None),),
        accuracy=Accuracy(
            "hf", 0, mean_retained=(MeanRetained("minus-4", "quick", kept, 0.02),),
            perplexity=(Perplexity("base", "text", 10.0, 99),
                        Perplexity("minus-4", "text", perplexity, 99)),
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (Thresholds({"decode": 1.2}), None),
        (Thresholds({"decode": 1.25}),
         "minus-4: decode speedup 1.20 (1.10–1.30) of 3 repeats, 0.05 under 1.25"),
        (Thresholds({"prefill": 1.1}),
         "minus-4: prefill speedup not measured, at least 1.1 asked for"),
        (Thresholds(max_accuracy_loss=0.05), None),
        (Thresholds(max_accuracy_loss=0.03),
         "minus-4: loses 5.0 % of accuracy on quick (keeps 95.0 ± 2.0 %), 2.0 % over 3.0 %"),
        (Thresholds(max_ppl_increase=0.1), None),
        (Thresholds(max_ppl_increase=0.04),
         "minus-4: perplexity on text rises by 10.0 %, 6.0 % over 4.0 %"),
    ],
)  # fmt: skip
def test_one_limit(limits, says):
    assert check(measured(), limits) == ([] if says is None else [says])


def test_what_was_not_measured_keeps_no_limit():
    limits = Thresholds({"decode": 0.5}, max_accuracy_loss=0.9, max_ppl_increase=9.0)
    lines = check(reports.degenerate(), limits)
    assert len(lines) == 3
    assert all("not measured" in line for line in lines)


def test_every_pruned_model_must_keep_it():
    lines = check(reports.full(), Thresholds({"decode": 1.2}))
    assert [line.partition(":")[0] for line in lines] == ["minus-2"]


def test_without_a_pruned_model_nothing_is_kept():
    report = measured()
    alone = replace(report, models=report.models[:1])
    assert check(alone, Thresholds()) == []
    assert check(alone, Thresholds({"decode": 1.0})) == ["no pruned model was measured"]


def test_names_and_numbers_are_checked():
    assert parse_fail_under("decode=1.2, throughput=1.15") == {"decode": 1.2, "throughput": 1.15}
    with pytest.raises(UsageError, match="did you mean 'decode'"):
        parse_fail_under("decod=1")
    for bad in ("decode", "decode=", "decode=nan", "decode=-1", "decode=inf"):
        with pytest.raises(UsageError, match=r"give a number, such as decode=1\.2"):
            parse_fail_under(bad)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("limits")
    pages.write(replace(measured(), serving=()), path)
    return path


def test_the_command_makes_the_pages_again_and_ends_with_4(directory, capsys):
    before = {p.name: p.read_bytes() for p in directory.iterdir()}
    (directory / "report.html").unlink()
    assert cli.main(["report", str(directory), "--fail-under", "decode=1.1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["missed"] == []
    assert {p.name: p.read_bytes() for p in directory.iterdir()} == before
    options = ["--fail-under", "decode=1.25", "--max-accuracy-loss", "0.01"]
    assert cli.main(["report", str(directory), *options]) == 4
    said = capsys.readouterr()
    assert said.err.startswith("error: minus-4: decode speedup 1.20 (1.10–1.30)")
    assert said.err.count("\n") == 1
    assert "loses 5.0 % of accuracy" in said.err
    assert "report.html" in said.out


def test_another_report_beside_it_is_left_alone(directory, tmp_path, capsys):
    (tmp_path / "old.json").write_bytes((directory / "report.json").read_bytes())
    assert cli.main(["report", str(tmp_path / "old.json")]) == 2
    assert "old.json: is not named report.json; say with --output" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]
    assert cli.main(["report", str(tmp_path / "old.json"), "-o", str(tmp_path / "new")]) == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "report.json", "report.md", "report.html"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--fail-under", "speed=1"], "unknown speedup 'speed'"),
        (["--max-accuracy-loss", "-1"], "--max-accuracy-loss -1.0: give a share"),
        (["--max-ppl-increase", "nan"], "--max-ppl-increase nan: give a share"),
    ],
)
def test_bad_limits_end_with_2(directory, capsys, options, says):
    assert cli.main(["report", str(directory), *options]) == 2
    assert says in capsys.readouterr().err

"""Two reports with known differences."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import cli
from bench.compare import compare, lines
from bench.quantities import Percentiles, Ratio, Spread
from tests.bench import reports


def change(found, what, model="minus-4"):
    (pair,) = (p for p in found.pairs if p.a == model)
    (one,) = (c for c in pair.changes if c.what == what)
    return one


def with_speedup(value, low, high):
    report = reports.full()
    return replace(
        report,
        summary=tuple(
            replace(row, speedup={**row.speedup, "decode": Ratio(value, low, high, 3)})
            for row in report.summary
        ),
    )


def test_a_report_compared_with_itself_has_no_differences():
    found = compare(reports.full(), reports.full())
    assert found.differences == found.only_a == found.only_b == ()
    assert [(p.a, p.b) for p in found.pairs] == [(m, m) for m in reports.REMOVED]
    assert not any(p.only_a or p.only_b for p in found.pairs)
    changes = [c for p in found.pairs for c in p.changes]
    assert len(changes) > 1000
    assert {c.better for c in changes} == {None}
    assert {c.ratio for c in changes} == {1.0}
    assert not any(c.beyond_noise for c in changes)


@pytest.mark.parametrize(
    ("b", "better", "beyond_noise"),
    [
        ((1.40, 1.38, 1.42), True, True),
        ((1.10, 1.08, 1.12), False, True),
        ((1.30, 1.24, 1.36), True, False),
        ((1.40, 1.40, 1.40), True, None),
    ],
)
def test_repeats_tell_noise(b, better, beyond_noise):
    found = change(compare(with_speedup(1.25, 1.2, 1.3), with_speedup(*b)), "decode speedup")
    assert (found.better, found.beyond_noise) == (better, beyond_noise)
    assert found.ratio == pytest.approx(b[0] / 1.25)


@pytest.mark.parametrize(("kept", "beyond_noise"), [(0.936 - 0.055, False), (0.936 - 0.058, True)])
def test_standard_errors_tell_noise(kept, beyond_noise):
    """Both have an error of 0.02, so twice that of the difference is 0.0566."""
    a = reports.full()
    means = tuple(replace(r, value=kept) for r in a.accuracy.mean_retained)
    b = replace(a, accuracy=replace(a.accuracy, mean_retained=means))
    found = change(compare(a, b), "retained accuracy, quick")
    assert (found.better, found.beyond_noise) == (False, beyond_noise)


def test_latency_is_better_when_it_is_less_and_a_count_has_no_noise():
    a = reports.full()
    p = Percentiles(5.0, 6.0, 7.0, 5.5, 4.9, 5.1, (4.9, 5.0, 5.1))
    rate = Spread(9e9, 8e9, 1e10)
    faster = tuple(
        replace(s, metrics=replace(s.metrics, ttft_ms=p, output_tokens_per_s=rate))
        for s in a.serving
    )
    memory = tuple(replace(m, kv_cache_tokens=m.kv_cache_tokens + 1) for m in a.memory)
    found = compare(a, replace(a, serving=faster, memory=memory))
    where = "serving balanced (128 + 128 tokens), 4 in flight: "
    for what in ("TTFT p50, ms", "output tokens/s"):
        one = change(found, where + what)
        assert (one.better, one.beyond_noise) == (True, True)
    assert change(found, where + "TPOT p50, ms").better is None
    tokens = change(found, "KV cache tokens in 1000000000 bytes (vllm)")
    assert (tokens.better, tokens.beyond_noise) == (True, True)


def test_conditions_come_first_and_unlike_loads_are_not_compared():
    a = reports.full()
    longer = (*a.settings.mixes[:2], replace(a.settings.mixes[2], output_tokens=64))
    b = replace(
        a, settings=replace(a.settings, mixes=longer, repeats=5),
        environment=replace(a.environment, gpu="NVIDIA H200"),
    )  # fmt: skip
    found = compare(a, b)
    assert {d[0]: d[1:] for d in found.differences}.keys() == {
        "environment.gpu", "settings.repeats", "settings.mixes.balanced"
    }  # fmt: skip
    assert ("settings.repeats", 3, 5) in found.differences
    text = lines(found)
    assert text[0] == "differs   environment.gpu: None -> NVIDIA H200"
    assert all(line.startswith("differs") for line in text[:3])
    for pair in found.pairs:
        assert all(what.startswith("serving balanced (128 + 128") for what in pair.only_a)
        assert all(what.startswith("serving balanced (128 + 64") for what in pair.only_b)
        assert pair.only_a


def test_models_are_matched_by_id_then_by_depth():
    a, b = reports.minimal(), reports.full()
    renamed = tuple(replace(m, id="mine") if m.id == "minus-4" else m for m in a.models)
    found = compare(replace(a, models=renamed, serving=(), summary=()), b)
    assert [(p.a, p.b) for p in found.pairs] == [("base", "base"), ("mine", "minus-4")]
    assert found.only_b == ("minus-2", "minus-6")
    twice = (*a.models, replace(a.models[1], id="other"))
    several = compare(replace(b, models=b.models[:3]), replace(a, models=twice))
    assert [(p.a, p.b) for p in several.pairs] == [("base", "base"), ("minus-4", "minus-4")]
    assert several.only_b == ("other",)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two report directories, which differ in the decode speedup only."""
    root = tmp_path_factory.mktemp("compare")
    for name, report in (("a", with_speedup(1.2, 1.1, 1.3)), ("b", with_speedup(1.5, 1.4, 1.6))):
        (root / name).mkdir()
        (root / name / "report.json").write_text(json.dumps(report.to_json()))
    return root


def test_the_command(files, capsys):
    assert cli.main(["compare", str(files / "a"), str(files / "b" / "report.json")]) == 0
    text = capsys.readouterr().out.splitlines()
    assert text[0] == "conditions are the same"
    beyond = [line for line in text if line.endswith("beyond noise")]
    expected = (
        "  decode speedup: 1.20 (1.10–1.30) -> 1.50 (1.40–1.60)  +25.0 %  better, beyond noise"
    )
    assert beyond == [expected] * 3
    assert cli.main(["compare", str(files / "a"), str(files / "b"), "--all"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 1000


def test_the_command_in_json(files, capsys):
    assert cli.main(["compare", str(files / "a"), str(files / "b"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    changed = [c for m in document["models"] for c in m["changes"] if c["beyond_noise"]]
    assert [(c["what"], c["better"]) for c in changed] == [("decode speedup", True)] * 3
    assert changed[0]["ratio"] == pytest.approx(1.25)


def test_what_cannot_be_read_ends_with_2(files, tmp_path, capsys):
    document = json.loads((files / "a" / "report.json").read_text())
    (tmp_path / "newer.json").write_text(json.dumps({**document, "schema_version": 99}))
    assert cli.main(["compare", str(files / "a"), str(tmp_path / "newer.json")]) == 2
    assert "newer.json: has schema version 99" in capsys.readouterr().err
    assert cli.main(["compare", str(tmp_path), str(files / "a")]) == 2
    assert "report.json" in capsys.readouterr().err


def test_outputs_of_one_token(tmp_path, capsys):
    """They have no time between tokens: the report is shown, and compared without it."""
    document = reports.minimal().to_json()
    for row in document["serving"]:
        row["metrics"].update(tpot_ms=None, itl_ms=None)
    (tmp_path / "report.json").write_text(json.dumps(document))
    assert cli.main(["report", str(tmp_path), "-o", str(tmp_path / "out")]) == 0
    row = next(
        x for x in (tmp_path / "out" / "report.md").read_text().splitlines() if "flight" in x
    )
    assert row.count("not measured") == 2
    capsys.readouterr()
    assert cli.main(["compare", str(tmp_path), str(tmp_path), "--all"]) == 0
    said = capsys.readouterr().out
    assert "TTFT p50" in said
    assert "TPOT" not in said

"""The pages say what the JSON says, show what is missing, and ask the net for nothing."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from bench import report as pages
from bench.report import format as written_as
from bench.schema import read_report
from tests.bench import reports
from tests.bench.pages import Page, figures, markdown_tables


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The full report: document, page, Markdown tables."""
    directory = tmp_path_factory.mktemp("full")
    pages.write(reports.full(), directory)
    return (
        json.loads((directory / "report.json").read_text()),
        Page((directory / "report.html").read_text()),
        (directory / "report.md").read_text(),
    )


def render(report, directory):
    pages.write(report, directory)
    return Page((directory / "report.html").read_text()), (directory / "report.md").read_text()


def close(cell: str, *expected: float) -> None:
    """The numbers of a cell are these, to the digits that are shown."""
    assert figures(cell) == pytest.approx(list(expected), rel=6e-3), cell


def rows(page: Page, heading: str) -> list[dict[str, str]]:
    header, *body = page.tables[heading]
    return [dict(zip(header, row, strict=True)) for row in body]


def test_the_json_is_the_report(tmp_path):
    report = reports.degenerate()
    pages.write(report, tmp_path)
    assert read_report(tmp_path) == report


def test_markdown_and_page_have_the_same_tables(full):
    _, page, markdown = full
    assert markdown_tables(markdown) == page.tables


def test_summary(full):
    document, page, _ = full
    shown = {row["model"]: row for row in rows(page, "Summary")}
    assert list(shown) == ["base", "minus-2", "minus-4", "minus-6"]
    for row in document["summary"]:
        cells = shown[row["model"]]
        for name, column in (("decode", "decode"), ("prefill", "prefill"),
                             ("throughput", "offline throughput"),
                             ("serving_output_tokens_per_s", "serving throughput")):  # fmt: skip
            ratio = row["speedup"][name]
            close(cells[f"{column} speedup"], ratio["value"], ratio["low"], ratio["high"])
        kept = row["retained"]
        close(cells["accuracy retained"], 100 * kept["value"], 100 * kept["stderr"])
        (points,) = (c["points"] for c in document["ceiling"] if c["model"] == row["model"])
        (decode,) = (p for p in points if p["measured"] == row["speedup"]["decode"])
        close(cells["share of ideal"], 100 * decode["share_of_ideal"])


def test_serving(full):
    document, page, _ = full
    for mix in document["settings"]["mixes"]:
        heading = (
            f"{mix['name']}: {mix['input_tokens']} random tokens in, "
            f"{mix['output_tokens']} tokens out"
        )
        shown = {(row["load"], row["model"]): row for row in rows(page, heading)}
        measured = [row for row in document["serving"] if row["mix"] == mix["name"]]
        assert len(shown) == len(measured) == 4 * (5 + 4)
        for row in measured:
            rate = row["request_rate"]
            load = f"{row['concurrency']} in flight" if rate is None else f"{rate:.2f} requests/s"
            cells, metrics = shown[load, row["model"]], row["metrics"]
            for name, column in (("ttft_ms", "TTFT, ms"), ("tpot_ms", "TPOT, ms"),
                                 ("itl_ms", "ITL, ms"), ("e2el_ms", "E2EL, ms")):  # fmt: skip
                close(cells[column], *(metrics[name][q] for q in ("p50", "p90", "p99")))
            for name, column in (("requests_per_s", "requests/s"),
                                 ("output_tokens_per_s", "output tokens/s"),
                                 ("goodput_requests_per_s", "goodput, requests/s")):  # fmt: skip
                close(cells[column], *(metrics[name][q] for q in ("median", "low", "high")))


def test_offline_memory_and_ceiling(full):
    document, page, _ = full
    ours = [r for r in document["offline"] if (r["engine"], r["measure"]) == ("vllm", "latency")]
    shown = [r for r in rows(page, "Offline") if (r["engine"], r["measure"]) == ("vllm", "latency")]
    assert len(ours) == len(shown) == 8
    for row in ours:
        (cells,) = (
            c for c in shown if (c["model"], c["batch"]) == (row["model"], str(row["batch"]))
        )
        close(cells["prefill, ms"], *(1e3 * row["prefill_s"][q] for q in ("median", "low", "high")))
        close(cells["seconds"], *(row["seconds"][q] for q in ("median", "low", "high")))
    for row, cells in zip(document["memory"], rows(page, "Memory"), strict=True):
        close(cells["weights"], row["weights_bytes"] / 1e6)
        close(cells["KV tokens"], row["kv_cache_tokens"])
        close(cells["peak"], row["peak_bytes"] / 1e9)
    points = [p for c in document["ceiling"] for p in c["points"]]
    for point, cells in zip(points, rows(page, "Ceiling"), strict=True):
        close(cells["ideal speedup"], point["ideal"])
        close(cells["share of ideal"], 100 * point["share_of_ideal"])


def test_accuracy_and_frontier(full):
    document, page, _ = full
    found = document["accuracy"]
    shown = {(row["task"], row["model"]): row for row in rows(page, "By task")}
    assert len(shown) == len(found["results"]) == 3 * 4
    assert [task for task, _ in shown] == [task for task in reports.TASKS for _ in range(4)]
    for row in found["results"]:
        key = (row["task"], row["model"])
        close(shown[key]["value"], 100 * row["value"], 100 * row["stderr"])
        kept = [r for r in found["retained"] if (r["task"], r["model"]) == key]
        expected = [x for r in kept for x in (100 * r["value"], 100 * r["stderr"])]
        close(shown[key]["retained"], *expected)
    for row, cells in zip(found["perplexity"], rows(page, "Perplexity"), strict=True):
        close(cells["perplexity"], row["value"])
    frontier = document["frontier"]
    for row, cells in zip(frontier["points"], rows(page, "Depth"), strict=True):
        close(cells["perplexity"], row["perplexity"])
    assert "3 layers are the deepest cut that keeps it" in page.text


def test_answers_side_by_side(full):
    document, page, _ = full
    asked = document["answers"]["questions"]
    shown = rows(page, "Answers") + rows(page, "Further prompts")
    assert list(shown[0]) == ["prompt", "base", "minus-2", "minus-4", "minus-6"]
    assert [row["prompt"] for row in shown] == [
        "What is the capital of France?",
        "system: Be short. / user: Write ↵ a list.",
        "Why is the sky blue?",
    ]
    for question, row in zip(asked, shown, strict=True):
        for answer in question["answers"]:
            cell = row[answer["model"]]
            assert cell.endswith(" …") == (not answer["finished"])
            said = cell.removesuffix(" …").replace(" ↵", "\n").replace("\n ", "\n")
            assert said == (answer["text"] or "(nothing)")


def test_a_model_that_gave_no_answer_has_its_column(tmp_path):
    page, _ = render(reports.degenerate(), tmp_path)
    assert {row["minus-4"] for row in rows(page, "Answers")} == {"not measured"}
    silent = replace(reports.minimal(), answers=None)
    assert "Answers: not measured (it failed, see above)." in render(silent, tmp_path)[0].text
    silent = replace(silent, settings=replace(silent.settings, answers=()))
    assert "Answers: not measured (not asked for)." in render(silent, tmp_path)[0].text


def test_every_plot_has_its_text_and_ids_are_unique(full):
    _, page, _ = full
    assert page.tags.count("svg") == len(page.labels) == 2 + 3 * 8 + 3 + 2
    assert all(len(figures(label)) > 3 for label in page.labels)
    assert len(set(page.ids)) == len(page.ids)
    assert any("minus-6: 1.4" in label and "at 85.6 ± 2.4 %" in label for label in page.labels)


def test_the_page_asks_for_nothing(full):
    _, page, _ = full
    assert [r for r in page.references if not r.startswith("#")] == []
    assert {r[1:] for r in page.references} <= set(page.ids)
    assert not {"script", "img", "link", "iframe", "object", "image"} & set(page.tags)


def test_what_the_user_named_is_never_markup(tmp_path):
    evil = "<script>alert('1')</script>|`a`$x$ #010101 -->"
    report = reports.minimal()
    renamed = {"minus-4": evil}

    def named(row):
        return replace(row, model=renamed.get(row.model, row.model))

    report = replace(
        report, warnings=(evil,), command=("cli.py", evil, "```"),
        models=tuple(replace(m, id=renamed.get(m.id, m.id)) for m in report.models),
        serving=tuple(map(named, report.serving)), summary=tuple(map(named, report.summary)),
    )  # fmt: skip
    page, markdown = render(report, tmp_path)
    assert "script" not in page.tags
    assert page.text.count(evil) >= 4
    assert [row["model"] for row in rows(page, "Summary")] == ["base", evil]
    assert markdown_tables(markdown) == page.tables
    assert "<script" not in re.sub(r"```.*?\n````", "", markdown, flags=re.DOTALL)
    assert re.search(r"^````\n.*```.*\n````$", markdown, re.M)


def test_what_is_missing_is_said(tmp_path):
    page, markdown = render(reports.minimal(), tmp_path)
    for words in ("Offline: not measured (not asked for).", "Memory: not measured.",
                  "Ceiling: not measured.", "Accuracy: not measured (not asked for)."):  # fmt: skip
        assert words in page.text
        assert words in re.sub(r"\\", "", markdown)
    (row,) = (r for r in rows(page, "Summary") if r["model"] == "minus-4")
    assert row["decode speedup"] == row["accuracy retained"] == row["KV tokens"] == "not measured"


def test_a_failed_model_stands_at_the_top(tmp_path):
    report = reports.degenerate()
    page, markdown = render(report, tmp_path)
    message = "minus-4, serving: vLLM ended with code 1: ValueError: head size 24 <no>"
    assert page.text.index("Failures") < page.text.index(message) < page.text.index("Summary")
    assert markdown.index("**Failures**") < markdown.index("## Summary")
    assert "minus-4 (4 of 16 layers removed): speed not measured" in page.text
    assert page.tags.count("svg") == 0
    heading = next(title for title in page.tables if title.startswith("balanced"))
    assert {row["TTFT, ms"] for row in rows(page, heading)} == {"not measured"}
    assert {row["failed"] for row in rows(page, heading)} == {"32 of 32"}


def test_the_same_report_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pages.write(reports.minimal(), tmp_path / name)
    for name in ("report.json", "report.md", "report.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.012345, "0.0123"), (1.0, "1.00"), (9.996, "10.0"), (99.96, "100"),
     (1234.5, "1,234"), (12345678, "12,345,678"), (-2.5, "-2.50"), (1e-7, "0.000000100"),
     (None, "not measured")],
)  # fmt: skip
def test_numbers_have_three_significant_digits(value, shown):
    assert written_as.number(value) == shown


def test_a_single_repeat_has_no_interval():
    assert written_as.interval(1.5, 1.5, 1.5) == "1.50"
    assert written_as.interval(1.5, 1.25, 1.75) == "1.50 (1.25–1.75)"

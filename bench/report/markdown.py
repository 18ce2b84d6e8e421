"""``report.md``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from bench.report import content
from bench.report.content import Part, Table
from bench.schema import Report


def render(report: Report) -> str:
    """The report as Markdown, without plots."""
    lines = [f"# {text(content.title(report))}", "", text(content.subtitle(report)), ""]
    for name, messages in content.alerts(report):
        lines += [f"**{name}**", "", *(f"- {text(m)}" for m in messages), ""]
    lines += ["The plots are in `report.html`, all figures in `report.json`.", ""]
    for section in content.sections(report):
        lines += [f"## {text(section.title)}", ""]
        for part in section.parts:
            lines += _part(part)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip("\n") + "\n"


def text(words: str) -> str:
    """`words` on one line, with nothing in them that Markdown or HTML would act on."""
    escaped = re.sub(r"([\\`*_\[\]|#~])", r"\\\1", " ".join(words.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _part(part: Part) -> Iterator[str]:
    if part.title:
        yield from (f"### {text(part.title)}", "")
    for paragraph in part.text:
        yield from (text(paragraph), "")
    if part.table is not None:
        yield from (*_table(part.table), "")
    if part.code:
        yield from (*_code(part.code), "")


def _table(table: Table) -> Iterator[str]:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(text(cell) for cell in cells)} |"

    yield line(table.columns)
    numbers = len(table.columns) - table.text_columns
    yield "|" + "---|" * table.text_columns + "---:|" * numbers
    yield from (line(row) for row in table.rows)


def _code(lines: Iterable[str]) -> Iterator[str]:
    """A fence longer than any in the code."""
    code = "\n".join(lines)
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    yield from (fence, code, fence)

"""Reads the pages of a report as a stranger would: tables, words, and what they ask the net for."""

from __future__ import annotations

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """What a browser would see.

    Attributes:
        tables: by heading: rows of cells, the first of which is the header.
        tags: all elements.
        references: values of all attributes that make a browser fetch something or go somewhere.
        text: all words, outside of styles.
    """

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.labels: list[str] = []
        self.text = ""
        self._heading, self._open = "", []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "xlink:href", "action", "data", "srcset", "poster"}:
                self.references.append(value)
            if name == "id":
                self.ids.append(value)
            if name == "aria-label" and tag == "svg":
                self.labels.append(value)
            assert not name.startswith("on"), (name, value)
        self._open.append(tag)
        if tag in {"h2", "h3"}:
            self._heading = ""
        elif tag == "table":
            self.tables[self._heading] = []
        elif tag == "tr":
            self.tables[self._heading].append([])
        elif tag in {"td", "th"}:
            self.tables[self._heading][-1].append("")

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" in self._open[-1:]:
            return
        self.text += data
        if "h2" in self._open or "h3" in self._open:
            self._heading += data
        elif "td" in self._open or "th" in self._open:
            self.tables[self._heading][-1][-1] += data


def markdown_tables(text: str) -> dict[str, list[list[str]]]:
    """The same of a Markdown file, with its escapes undone."""
    tables: dict[str, list[list[str]]] = {}
    heading = ""
    for line in text.splitlines():
        if line.startswith("#"):
            heading = plain(line.lstrip("# "))
        elif line.startswith("|") and not re.fullmatch(r"[|:-]+", line):
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            tables.setdefault(heading, []).append([plain(cell.strip()) for cell in cells])
    return tables


def plain(text: str) -> str:
    text = re.sub(r"\\(.)", r"\1", text)
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def figures(cell: str) -> list[float]:
    """All numbers in a cell."""
    return [float(n.replace(",", "")) for n in re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?", cell)]

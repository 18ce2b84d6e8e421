"""A report on disk: ``report.json``, and for people ``report.md`` and ``report.html``."""

from __future__ import annotations

import json
from pathlib import Path

from bench.schema import Report


def write(report: Report, directory: Path) -> list[Path]:
    """Writes the three files into `directory`, replacing older ones; returns their paths.

    The same report gives the same bytes.

    Raises:
        UsageError: the directory cannot be written.
        MissingDependencyError: matplotlib or jinja2, which the page needs, is missing; the figures
            are written nevertheless.
    """
    from bench.report import html, markdown
    from prunecomp.checkpoint.output import write_text

    renderers = {
        "report.json": lambda: json.dumps(report.to_json(), indent=1) + "\n",
        "report.md": lambda: markdown.render(report),
        "report.html": lambda: html.render(report),
    }
    for name, render in renderers.items():
        write_text(directory / name, render(), overwrite=True)
    return [directory / name for name in renderers]

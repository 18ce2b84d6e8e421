"""``report``: the pages of a benchmark made again, and its limits checked again."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench import thresholds
from prunecomp.commands.base import Command, print_document
from prunecomp.errors import ThresholdError, UsageError
from prunecomp.progress import Progress

EXAMPLES = """\
examples:
  cli.py report runs/bench
  cli.py report runs/bench --fail-under decode=1.2 --max-accuracy-loss 0.05
"""


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "report", type=Path, metavar="REPORT", help="report.json of `bench`, or its directory"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="where to write (default: beside it)"
    )  # fmt: skip
    thresholds.add_arguments(parser)


def _beside(report: Path) -> Path:
    if not report.is_dir() and report.name != "report.json":
        raise UsageError(f"{report}: is not named report.json; say with --output where to write")
    return report if report.is_dir() else report.parent


def _run(args: argparse.Namespace, progress: Progress) -> int:
    from bench.report import write
    from bench.schema import read_report

    limits = thresholds.from_arguments(args)
    report = read_report(args.report)
    written = [str(path) for path in write(report, args.output or _beside(args.report))]
    failed = thresholds.check(report, limits)
    print_document(args, {"written": written, "missed": failed}, [f"wrote {p}" for p in written])
    if failed:
        raise ThresholdError("; ".join(failed))
    return 0


COMMAND = Command(85, "make the pages of a report again, and check limits", _add, _run, EXAMPLES)

"""``report``: the pages of a benchmark made again, and its limits checked again."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench import thresholds
from prunecomp.commands.base import Command, print_document
from prunecomp.errors import ThresholdError
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


def _run(args: argparse.Namespace, progress: Progress) -> int:
    from bench.report import write
    from bench.schema import read_report

    limits = thresholds.from_arguments(args)
    report = read_report(args.report)
    beside = args.report if args.report.is_dir() else args.report.parent
    written = [str(path) for path in write(report, args.output or beside)]
    failed = thresholds.check(report, limits)
    print_document(args, {"written": written, "missed": failed}, [f"wrote {p}" for p in written])
    if failed:
        raise ThresholdError("; ".join(failed))
    return 0


COMMAND = Command(85, "make the pages of a report again, and check limits", _add, _run, EXAMPLES)

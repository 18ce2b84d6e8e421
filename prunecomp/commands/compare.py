"""``compare``: two benchmark reports side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from prunecomp.commands.base import Command, print_document
from prunecomp.progress import Progress

EXAMPLES = """\
examples:
  cli.py compare runs/monday runs/tuesday
  cli.py compare old/report.json new/report.json --json

Settings and environment that differ come first. Models are matched by their id, else by the number
of layers removed. A change is beyond noise where the repeats' ranges do not overlap, or where it is
more than two standard errors.
"""


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "a", type=Path, metavar="A", help="report.json of `bench`, or its directory"
    )
    parser.add_argument("b", type=Path, metavar="B", help="the report to compare with it")
    parser.add_argument("--all", action="store_true", help="also what did not change beyond noise")


def _run(args: argparse.Namespace, progress: Progress) -> int:
    from bench.compare import compare, lines
    from bench.schema import read_report

    found = compare(read_report(args.a), read_report(args.b))
    document = {"a": str(args.a), "b": str(args.b), **found.to_json()}
    print_document(args, document, lines(found, everything=args.all))
    return 0


COMMAND = Command(80, "compare two reports of `bench`", _add, _run, EXAMPLES)

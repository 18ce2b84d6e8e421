"""``families``: which types of models can be compressed, and what is known of each."""

from __future__ import annotations

import argparse

from prunecomp.commands.base import Command, print_document
from prunecomp.console import print_result
from prunecomp.errors import UsageError
from prunecomp.progress import Progress

EXAMPLES = """\
examples:
  cli.py families
  cli.py families gemma2
  cli.py families --json
"""


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "type", nargs="?", metavar="TYPE", help="all of this model_type, or why it is refused"
    )
    parser.add_argument(
        "--markdown", action="store_true", help="print the document docs/families.md"
    )


def _one(args: argparse.Namespace) -> None:
    from prunecomp.families import REFUSED, did_you_mean_type
    from prunecomp.families._table import detail_lines, refused_lines, table

    rows = {row["model_type"]: row for row in table()}
    if args.type in REFUSED:
        document = {"model_type": args.type, "refused": REFUSED[args.type]}
        print_document(args, document, refused_lines(args.type))
        return
    if args.type not in rows:
        raise UsageError(
            f"{args.type}: not a model type that is supported, or refused for a known reason"
            f"{did_you_mean_type(args.type, [*rows, *REFUSED])}; `families` lists those that are "
            "supported, `inspect MODEL` takes a model"
        )
    print_document(args, rows[args.type], detail_lines(rows[args.type]))


def _run(args: argparse.Namespace, progress: Progress) -> int:
    from prunecomp.families import REFUSED
    from prunecomp.families._table import markdown, table, terminal_lines

    if args.markdown and (args.json or args.type):
        raise UsageError("--markdown is the whole document; give neither --json nor TYPE with it")
    if args.type is not None:
        _one(args)
    elif args.markdown:
        print_result(markdown(table()).rstrip("\n"))
    else:
        rows = table()
        print_document(args, {"families": rows, "refused": dict(REFUSED)}, terminal_lines(rows))
    return 0


COMMAND = Command(
    50,
    "list the types of models that can be compressed, and what is known of each",
    _add,
    _run,
    EXAMPLES,
)

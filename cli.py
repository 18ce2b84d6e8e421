"""Command line of prunecomp: parse, run one command, say how it ended.

stdout carries the result and nothing else; stderr carries talk and progress. The commands are in
`prunecomp.commands`, one file each.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import NoReturn

from prunecomp.commands import COMMANDS, in_order
from prunecomp.commands.base import Command
from prunecomp.console import ERROR, explain, interruptible, silence_libraries
from prunecomp.distributed import has_the_word, is_first, joined
from prunecomp.progress import Progress

EXIT_CODES = """\
exit codes:
  0    done
  1    failed while running
  2    wrong arguments, unusable model, plan, text or output path
  4    a check of the result failed, and no model is kept; or a measurement misses a limit
  5    an optional package is missing
  130  interrupted; nothing is left behind
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prunecomp" if Path(sys.argv[0]).stem == "prunecomp" else "cli.py",
        epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Removes decoder layers from a language model and repairs the damage offline.",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in in_order().items():
        sub = commands.add_parser(
            name, help=command.summary, description=command.summary, epilog=command.examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        sub.add_argument("--json", action="store_true", help="print one JSON document on stdout")
        sub.add_argument("-q", "--quiet", action="store_true", help="no notes, no progress")
        sub.add_argument("--debug", action="store_true", help="show a traceback for errors")
        command.add(sub)
    return parser


def _run(command: Command, args: argparse.Namespace) -> int:
    """Runs it, in as many of the processes that torchrun has started as are of use."""
    if command.shared:
        with joined():
            return command.run(args, Progress(quiet=args.quiet or not is_first()))
    return command.run(args, Progress(quiet=args.quiet)) if is_first() else 0


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code listed in ``--help``."""
    args = build_parser().parse_args(argv)
    if not args.debug:
        silence_libraries(progress=args.quiet)
    try:
        with interruptible():
            return _run(COMMANDS.get(args.command), args)
    except (Exception, KeyboardInterrupt) as error:
        expected = explain(
            error, output=getattr(args, "output", None), resume=getattr(args, "resume", None)
        )
        if args.debug or expected is None:
            raise
        code, message = expected
        if sys.stderr is not None and has_the_word():
            print(f"{ERROR}{message}", file=sys.stderr)
        return code


def run() -> NoReturn:
    """`main`, and the end of the process at once: taking torch and transformers down lasts seconds.

    Whatever needs an orderly end has had it when `main` returns.
    """
    code = main()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):  # results are flushed already, see `print_result`
                stream.flush()
    os._exit(code)


if __name__ == "__main__":
    run()

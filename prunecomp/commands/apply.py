"""``apply``: the model of a plan, written without running anything."""

from __future__ import annotations

import argparse
from pathlib import Path

from prunecomp.commands._request import plan_lines, print_written
from prunecomp.commands.base import Command, add_output, open_model, print_document
from prunecomp.progress import Progress


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="the model that the plan was made for")
    parser.add_argument("plan", type=Path, help="plan, or prunecomp.json of a compressed model")
    add_output(parser, "DIR", "directory to write")
    parser.add_argument("--rounds", type=int, metavar="K", help="only the plan's first K rounds")


def _run(args: argparse.Namespace, progress: Progress) -> int:
    from prunecomp import pipeline
    from prunecomp.checkpoint.output import check_output
    from prunecomp.plan import read_plan
    from prunecomp.rewrite import check_source

    plan = read_plan(args.plan)
    if args.rounds is not None:
        plan = plan.prefix(args.rounds)
    checkpoint = open_model(args.model, progress, ahead=not args.dry_run)
    check_output(args.output, overwrite=args.overwrite, source=checkpoint.home)
    if args.dry_run:
        check_source(checkpoint, plan)
        print_document(args, {"dry_run": True, "plan": plan.to_json()}, plan_lines(plan))
        return 0
    written = pipeline.apply_plan(
        checkpoint, plan, args.output, overwrite=args.overwrite, progress=progress
    )
    print_written(args, plan, written)
    return 0


COMMAND = Command(
    30,
    "write the model of a plan, without running it",
    _add,
    _run,
    "example:\n  cli.py apply MODEL plan.json --rounds 4 -o out/minus-4",
)

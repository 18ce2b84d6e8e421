"""``apply``: the model of a plan, written and compared with its source."""

from __future__ import annotations

import argparse
from pathlib import Path

from prunecomp.commands._request import plan_lines, print_written
from prunecomp.commands.base import (
    Command,
    add_check,
    add_output,
    check_planned,
    open_model,
    planned_notes,
    print_document,
    read_prefix,
)
from prunecomp.progress import Progress


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="the model that the plan was made for")
    parser.add_argument("plan", type=Path, help="plan, or prunecomp.json of a compressed model")
    add_output(parser, "DIR", "directory to write")
    add_check(parser)
    parser.add_argument("--rounds", type=int, metavar="K", help="only the plan's first K rounds")


def _run(args: argparse.Namespace, progress: Progress) -> int:
    from prunecomp import pipeline
    from prunecomp.checkpoint.output import check_output
    from prunecomp.checkpoint.sidecar import sources_of
    from prunecomp.rewrite import check_source
    from prunecomp.verify import check_source_model

    plan = read_prefix(args.plan, args.rounds)
    checkpoint = open_model(args.model, progress, ahead=not args.dry_run)
    check_planned(plan, checkpoint, args.plan)
    check_output(args.output, overwrite=args.overwrite, source=checkpoint.home)
    if args.dry_run:
        check_source(checkpoint, plan)
        check_source_model(checkpoint)
        sources_of(checkpoint, plan)
        warnings = planned_notes(plan, checkpoint, progress)
        document = {"dry_run": True, "plan": plan.to_json(), "warnings": warnings}
        print_document(args, document, plan_lines(plan))
        return 0
    written = pipeline.apply_plan(
        checkpoint, plan, args.output, overwrite=args.overwrite, compare=args.check,
        progress=progress,
    )  # fmt: skip
    print_written(args, plan, written)
    return 0


COMMAND = Command(
    30,
    "write the model of a plan",
    _add,
    _run,
    "example:\n  cli.py apply MODEL plan.json --rounds 4 -o out/minus-4",
)

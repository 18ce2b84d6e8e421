"""``compress``: the smaller model, in one go."""

from __future__ import annotations

import argparse

from prunecomp.commands._request import (
    add_request,
    print_dry_run,
    print_written,
    request_of,
)
from prunecomp.commands.base import (
    MODEL_HELP,
    Command,
    add_check,
    add_output,
    name_of,
    open_model,
)
from prunecomp.distributed import is_first
from prunecomp.progress import Progress

EXAMPLES = """\
examples:
  cli.py compress examples/tiny-python-lm --output out/tiny-12 --layers 4
  cli.py compress ./Llama-3-8B --output out/l3-25 --ratio 0.22 --calibration wikitext-2
  cli.py compress ./Qwen3-8B -o out/q3 --layers 7 --metric ppl --calibration my.jsonl --json
"""


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=MODEL_HELP)
    add_output(parser, "DIR", "directory to write")
    add_check(parser)
    add_request(parser)


def _run(args: argparse.Namespace, progress: Progress) -> int:
    from prunecomp import pipeline
    from prunecomp.checkpoint.output import check_output

    checkpoint, name = open_model(args.model, progress), name_of(args.model)
    check_output(args.output, overwrite=args.overwrite, source=checkpoint.home)
    if args.dry_run:
        recipe = pipeline.resolve_recipe(checkpoint, request_of(args), progress)
        if is_first():
            print_dry_run(args, checkpoint, recipe)
        return 0
    if not is_first():
        pipeline.make_plan(checkpoint, request_of(args), name=name, progress=progress)
        return 0
    plan, written = pipeline.compress(
        checkpoint, request_of(args), args.output, name=name,
        overwrite=args.overwrite, compare=args.check, progress=progress,
    )  # fmt: skip
    print_written(args, plan, written)
    return 0


COMMAND = Command(
    10,
    "choose layers, compensate, and write the smaller model: plan, then apply",
    _add,
    _run,
    EXAMPLES,
    shared=True,
)

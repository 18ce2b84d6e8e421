"""``plan``: which layers go, and with which factors."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from prunecomp.commands._request import add_request, plan_lines, print_dry_run, request_of
from prunecomp.commands.base import (
    MODEL_HELP,
    Command,
    add_output,
    name_of,
    open_model,
    print_document,
)
from prunecomp.distributed import is_first
from prunecomp.errors import PlanError, UsageError
from prunecomp.progress import Progress


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=MODEL_HELP)
    add_output(parser, "FILE", "plan to write")
    parser.add_argument(
        "--resume", type=Path, metavar="FILE",
        help="continue from this plan where it exists, and save every finished round in it",
    )  # fmt: skip
    parser.add_argument("--save-tokens", type=Path, metavar="FILE.safetensors",
                        help="save the calibration tokens, to repeat the run exactly")  # fmt: skip
    add_request(parser)


def _check_files(args: argparse.Namespace, model: Path) -> bool:
    """Whether the plan may replace the file of its name: asked to, or continuing that very file."""
    from prunecomp.checkpoint.output import check_output_file

    replace = args.overwrite
    if args.resume:
        replace |= os.path.realpath(args.resume) == os.path.realpath(args.output)
        check_output_file(args.resume, overwrite=True, source=model)
    check_output_file(args.output, overwrite=replace, source=model)
    if args.save_tokens:
        if args.save_tokens.suffix.lower() != ".safetensors" or args.save_tokens == args.output:
            raise UsageError(
                f"--save-tokens {args.save_tokens}: give a file of its own, named .safetensors"
            )
        check_output_file(args.save_tokens, overwrite=args.overwrite, source=model)
    return replace


@contextlib.contextmanager
def _naming(resume: Path | None) -> Iterator[None]:
    """Puts the file that is continued in front of what is wrong with it."""
    try:
        yield
    except PlanError as error:
        raise PlanError(f"{resume}: {error}") from error


def _run(args: argparse.Namespace, progress: Progress) -> int:
    from prunecomp import pipeline
    from prunecomp.calibration.data import save_tokens
    from prunecomp.checkpoint.output import output_file
    from prunecomp.checkpoint.sidecar import write_plan
    from prunecomp.plan import read_plan

    checkpoint, name = open_model(args.model, progress), name_of(args.model)
    request = request_of(args)
    replace = _check_files(args, checkpoint.home)
    resume = read_plan(args.resume) if args.resume and args.resume.exists() else None
    if args.dry_run:
        recipe = pipeline.resolve_recipe(checkpoint, request, progress)
        if is_first():
            print_dry_run(args, checkpoint, recipe)
        return 0

    def save(current) -> None:
        if args.resume:
            write_plan(args.resume, current, overwrite=True)

    if not is_first():
        pipeline.make_plan(checkpoint, request, name=name, progress=progress, resume=resume)
        return 0
    with contextlib.ExitStack() as stack:

        def keep_tokens(calibration) -> None:
            if args.save_tokens:  # written now, but there only when the plan is
                file = output_file(args.save_tokens, overwrite=args.overwrite, note=progress.say)
                save_tokens(calibration, stack.enter_context(file))

        with _naming(args.resume):
            plan = pipeline.make_plan(
                checkpoint, request, name=name, progress=progress, resume=resume,
                on_texts=keep_tokens, on_round=save,
            )  # fmt: skip
        write_plan(args.output, plan, overwrite=replace)
    print_document(args, plan.to_json(), [*plan_lines(plan), f"wrote    {args.output}"])
    return 0


COMMAND = Command(
    20,
    "choose layers and factors, and write them as a small JSON file",
    _add,
    _run,
    "examples:\n  cli.py plan MODEL --layers 6 -o plan.json\n"
    "  torchrun --nproc-per-node 4 cli.py plan MODEL --layers 6 -o plan.json",
    shared=True,
)

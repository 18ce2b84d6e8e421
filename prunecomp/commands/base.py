"""What a command is, and what commands have in common."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunecomp.console import print_result
from prunecomp.errors import printable
from prunecomp.progress import Progress

if TYPE_CHECKING:
    from prunecomp.checkpoint.reader import Checkpoint
    from prunecomp.plan import PrunePlan

MODEL_HELP = "model directory, .gguf file, or hub repository OWNER/NAME[@REVISION]"


@dataclass(frozen=True)
class Command:
    """One command: a file in this package that ends with an object named ``COMMAND``.

    Nothing heavy is imported before `run`, so that ``--help`` stays fast.

    Attributes:
        place: where ``--help`` lists it; lower comes first.
        summary: one line for ``--help``.
        add: adds its arguments; ``--json``, ``--quiet`` and ``--debug`` are there already.
        run: does it, and returns the exit code. Errors are raised, see `prunecomp.errors`.
        examples: the end of its own ``--help``.
        shared: the processes of torchrun do it together; any other is done by the first alone.
    """

    place: int
    summary: str
    add: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Progress], int]
    examples: str
    shared: bool = False


def add_output(parser: argparse.ArgumentParser, metavar: str, what: str) -> None:
    """The options of a command that writes."""
    parser.add_argument("-o", "--output", type=Path, required=True, metavar=metavar, help=what)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, say what would be done, stop"
    )


def add_check(parser: argparse.ArgumentParser) -> None:
    """``--no-check``, of a command that applies a plan."""
    parser.add_argument(
        "--no-check", dest="check", action="store_false",
        help="do not run what was written beside the source, on a few tokens and one layer at a "
        "time, before it appears: saves reading the weights of both once more",
    )  # fmt: skip


def model_directory(model: str, progress: Progress) -> Path:
    """The model directory that a user names: fetched from the hub, or converted, if need be."""
    from prunecomp.distributed import current, is_first
    from prunecomp.gguf import source
    from prunecomp.hub import local_directory

    directory = local_directory(model)
    file = source.gguf_file(directory)
    if file is None:
        return directory
    if is_first():
        directory = source.model_directory(file, progress)
    current().wait_for_first()
    return directory if is_first() else source.model_directory(file, progress)


def open_model(model: str, progress: Progress, *, ahead: bool = False) -> Checkpoint:
    """The checkpoint that a user names.

    Args:
        ahead: its weights will be read at once, from the front.
    """
    from prunecomp.checkpoint.ahead import read_ahead

    directory = model_directory(model, progress)
    if ahead:
        read_ahead(directory)
    from prunecomp.checkpoint.reader import Checkpoint  # loads torch

    named = Path(model)
    return Checkpoint(directory, home=named if named.exists() else None)


def read_prefix(path: Path, rounds: int | None) -> PrunePlan:
    """The plan in a file; only its first rounds where a number of them is given."""
    from prunecomp.plan import read_plan

    plan = read_plan(path)
    return plan if rounds is None else plan.prefix(rounds)


def check_planned(plan: PrunePlan, checkpoint: Checkpoint, path: Path) -> None:
    """Refuses the plan in a file that could not have been made for this model."""
    from prunecomp.plan_checks import check_plan

    check_plan(
        plan, checkpoint.family, checkpoint.num_hidden_layers, tied=checkpoint.tied, where=str(path)
    )


def planned_notes(plan: PrunePlan, checkpoint: Checkpoint, progress: Progress) -> list[str]:
    """What is not as it was when the plan was made, and makes no difference to the weights."""
    from prunecomp.checkpoint.tokenizer_files import tokenizer_notes

    notes = tokenizer_notes(checkpoint.path, plan.source.tokenizer_sha256)
    for note in notes:
        progress.say(f"note: {note}")
    return notes


def name_of(model: str) -> str:
    """What a plan and a card call the model: as the user does, and `.` by its directory's name.

    A directory with a GGUF file in it is called by that file.
    """
    from prunecomp.gguf.source import gguf_file

    if Path(model).exists() and (file := gguf_file(Path(model))):
        return str(file)
    nameless = Path(model).name in {"", ".."}
    return Path(os.path.realpath(model)).name if nameless else model


def print_document(
    args: argparse.Namespace, document: Mapping[str, Any], lines: Sequence[str]
) -> None:
    """The result, as the user wants it: as JSON, or as lines to read.

    Names in the lines come from files, and may hold anything.
    """
    shown = json.dumps(document, indent=2) if args.json else "\n".join(map(printable, lines))
    print_result(shown)

"""``frontier``: what every depth of one plan costs, and the deepest cut within a limit."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from prunecomp.commands._request import add_all_but_depth, request_of
from prunecomp.commands.base import MODEL_HELP, Command, name_of, open_model, print_document
from prunecomp.errors import UsageError
from prunecomp.progress import Progress

if TYPE_CHECKING:
    from bench.accuracy.run import Request
    from bench.frontier import Criterion
    from bench.schema import Frontier

DEFAULT_MAX_PPL_INCREASE = 0.2
EXAMPLES = """\
examples:
  cli.py frontier examples/tiny-python-lm --max-layers 8 -o runs/frontier
  cli.py frontier ./Llama-3-8B --max-layers 12 -o runs/l3 --max-ppl-increase 0.5 \\
      --calibration wikitext-2
  cli.py frontier ./Qwen3-8B --max-layers 10 -o runs/q3 --min-retained 0.9 --tasks paper-qa

One plan of --max-layers is made; its first K rounds are the plan for K layers. Every depth is
measured, and the deepest one that keeps the limit itself is recommended, whatever shallower ones
do. A run that was interrupted goes on; another limit costs nothing. `bench --frontier DIR` shows
the result in a report.
"""


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("--max-layers", dest="layers", type=int, required=True, metavar="N",
                        help="the greatest depth: how many layers to remove")  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR",
                        help="directory to write, or to go on in")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true",
                        help="start afresh where the directory holds another frontier")  # fmt: skip
    limit = parser.add_argument_group("limit")
    limit.add_argument(
        "--max-ppl-increase", type=float, metavar="X",
        help="of perplexity on held-out text, as a share: 0.2 is 20 %% more "
        f"(default: {DEFAULT_MAX_PPL_INCREASE}, unless --min-retained is given)",
    )  # fmt: skip
    limit.add_argument("--min-retained", type=float, metavar="Y",
                       help="of accuracy, as a share of the base's: 0.9")  # fmt: skip
    tasks = parser.add_argument_group("accuracy")
    tasks.add_argument(
        "--tasks", metavar="NAME[,...]",
        help="measure retained accuracy, of the mean over the first set's tasks: quick, paper-qa, "
        "mmlu, any of lm-eval (default: none, or quick with --min-retained)",
    )  # fmt: skip
    tasks.add_argument("--include-path", type=Path, action="append", default=[], metavar="DIR",
                       help="more tasks for lm-eval")  # fmt: skip
    tasks.add_argument("--limit", type=float, metavar="N", help="items per task")
    add_all_but_depth(parser)


def _criterion(args: argparse.Namespace) -> Criterion:
    from bench.frontier import Criterion

    increase, least = args.max_ppl_increase, args.min_retained
    if increase is not None and not increase >= 0:
        raise UsageError(f"--max-ppl-increase {increase}: give a share of at least 0, such as 0.2")
    if least is not None and not 0 < least <= 1:
        raise UsageError(f"--min-retained {least}: give a share between 0 and 1, such as 0.9")
    if increase is None and least is None:
        increase = DEFAULT_MAX_PPL_INCREASE
    return Criterion(increase, least)


def _tasks(args: argparse.Namespace) -> Request | None:
    from bench.accuracy.run import Request

    names = args.tasks or ("quick" if args.min_retained is not None else "")
    if not names:
        return None
    return Request(
        tasks=tuple(names.split(",")), include_path=tuple(args.include_path), limit=args.limit,
        device=args.device, texts=(),
    )  # fmt: skip


def _lines(found: Frontier, criterion: Criterion, args: argparse.Namespace) -> list[str]:
    lines = ["removed  perplexity  over base  retained        within  layers removed"]
    for p in found.points:
        kept = "-" if p.retained is None else f"{p.retained.value:.3f}"
        if p.retained is not None and p.retained.stderr is not None:
            kept += f" +- {p.retained.stderr:.3f}"
        within = "yes" if criterion.keeps(p) else "no"
        removed = " ".join(map(str, p.removed)) or "-"
        lines.append(
            f"{p.layers_removed:7}  {p.perplexity:10.3f}  {p.ratio:9.3f}  {kept:14}  {within:6}  "
            f"{removed}"
        )
    limits = ", ".join(f"{k.replace('_', '-')} {v:g}" for k, v in found.criterion.items())
    if found.recommended is None:
        lines.append(f"no depth keeps the limit ({limits})")
    else:
        rounds = next(
            n for n, p in enumerate(found.points) if p.layers_removed == found.recommended
        )
        lines += [
            f"remove {found.recommended} layers: the deepest cut within the limit ({limits})",
            f"write it with: cli.py apply {args.model} {args.output / found.plan} "
            f"--rounds {rounds} -o MODEL",
        ]
    return lines


def _run(args: argparse.Namespace, progress: Progress) -> int:
    from bench.frontier import Study, draw
    from bench.records import plain
    from prunecomp.errors import MissingDependencyError

    criterion, tasks = _criterion(args), _tasks(args)
    study = Study(
        open_model(args.model, progress), request_of(args), args.output, name=name_of(args.model),
        tasks=tasks, progress=progress,
    )  # fmt: skip
    study.check()
    args.resume = args.output / "plan.json"  # what an interrupt leaves
    study.open(overwrite=args.overwrite)
    found = study.run(criterion)
    written = [str(args.output / "frontier.json")]
    try:
        written += [str(path) for path in draw(found, args.output)]
    except MissingDependencyError as error:
        progress.say(f"note: no plot: {error}")
    lines = [*_lines(found, criterion, args), *(f"wrote {path}" for path in written)]
    print_document(args, plain(found), lines)
    return 0


COMMAND = Command(
    75,
    "measure every depth of one plan, and recommend the deepest cut within a limit",
    _add,
    _run,
    EXAMPLES,
)

"""Command line of prunecomp: parse, call one library function, print.

stdout carries the result and nothing else; stderr carries talk and progress.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from prunecomp.compensators import COMPENSATORS
from prunecomp.console import explain, interruptible, print_result, silence_libraries
from prunecomp.errors import UsageError
from prunecomp.metrics import METRICS
from prunecomp.progress import Progress

EXIT_CODES = """\
exit codes:
  0    done
  1    failed while running
  2    wrong arguments, unusable model, plan, text or output path
  4    written, but a check of the result failed; nothing is kept
  5    an optional package is missing
  130  interrupted; nothing is left behind
"""

COMPRESS_EXAMPLES = """\
examples:
  cli.py compress examples/tiny-python-lm --output out/tiny-12 --layers 4
  cli.py compress ./Llama-3-8B --output out/l3-25 --ratio 0.22 --calibration wikitext-2
  cli.py compress ./Qwen3-8B -o out/q3 --layers 7 --metric ppl --calibration my.jsonl --json
"""


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value < 2**31:
        raise argparse.ArgumentTypeError(f"{value} is not a number from 1 to 2^31 - 1")
    return value


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    parser.add_argument("-q", "--quiet", action="store_true", help="no notes, no progress")
    parser.add_argument("--debug", action="store_true", help="show a traceback for errors")


def _add_output(parser: argparse.ArgumentParser, metavar: str, what: str) -> None:
    parser.add_argument("-o", "--output", type=Path, required=True, metavar=metavar, help=what)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, say what would be done, stop"
    )


def _add_request(parser: argparse.ArgumentParser) -> None:
    """The options of a plan; their defaults are those of `PlanRequest`."""
    depth = parser.add_mutually_exclusive_group(required=True)
    depth.add_argument("--layers", type=int, metavar="N", help="how many layers to remove")
    depth.add_argument("--ratio", type=float, metavar="R", help="share of the layers, 0 < R < 1")

    choice = parser.add_argument_group("choice of layers")
    choice.add_argument("--metric", default="bi", metavar="NAME", help=", ".join(METRICS.names()))
    choice.add_argument(
        "--strategy", choices=["iterative", "one-shot"],
        help="score anew after every removal (default), or rank once",
    )  # fmt: skip
    choice.add_argument(
        "--protect-first", type=int, metavar="K",
        help="first layers to spare (default: 4 for mag and taylor, else 0)",
    )  # fmt: skip
    choice.add_argument(
        "--protect-last", type=int, metavar="K",
        help="last layers to spare (default: 2 for mag and taylor, else 0)",
    )  # fmt: skip

    repair = parser.add_argument_group("compensation")
    repair.add_argument(
        "--compensation", default="magnitude", metavar="NAME", help=", ".join(COMPENSATORS.names())
    )
    repair.add_argument(
        "--fold", default="downstream", choices=["downstream", "upstream", "auto"],
        help="divide what writes after the cut (default), or multiply what writes before it",
    )  # fmt: skip

    text = parser.add_argument_group("calibration")
    text.add_argument(
        "--calibration", default="python-stdlib", metavar="SOURCE",
        help="python-stdlib, wikitext-2, c4, a .txt, a .jsonl, a .safetensors with input_ids, "
        "or a hub data set OWNER/NAME (default: python-stdlib)",
    )  # fmt: skip
    text.add_argument(
        "--calibration-field", default="text", metavar="KEY", help="field of the text"
    )
    text.add_argument("--calibration-config", metavar="NAME", help="config of a hub data set")
    text.add_argument("--calibration-split", metavar="NAME", help="split (default: train)")
    text.add_argument("--samples", type=int, metavar="N", help="samples (default: 128)")
    text.add_argument(
        "--seq-len", type=int, metavar="T",
        help="tokens per sample (default: 2048, or the model's context if that is shorter)",
    )  # fmt: skip
    text.add_argument("--seed", type=int, default=0, help="of the choice of samples (default: 0)")
    text.add_argument(
        "--evaluation", metavar="SOURCE",
        help="text to measure perplexity on, before and after; none for none (default: the "
        "held-out part of a built-in calibration source)",
    )  # fmt: skip

    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    machine.add_argument(
        "--dtype", default="auto",
        help="of the calibration passes: auto (as stored), float32, bfloat16, float16; what is "
        "written keeps the dtype of the source",
    )  # fmt: skip
    machine.add_argument("--batch-size", type=_count, metavar="N", help="samples per batch")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prunecomp" if Path(sys.argv[0]).stem == "prunecomp" else "cli.py",
        epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Removes decoder layers from a language model and repairs the damage offline.",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, help_text: str, epilog: str = "") -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=help_text, description=help_text, epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        _add_common(command)
        return command

    compress = add("compress", "choose layers, compensate, and write the smaller model: plan, "
                   "then apply", COMPRESS_EXAMPLES)  # fmt: skip
    compress.add_argument("model", help="model directory, or hub repository OWNER/NAME[@REVISION]")
    _add_output(compress, "DIR", "directory to write")
    _add_request(compress)

    plan = add("plan", "choose layers and factors, and write them as a small JSON file",
               "example:\n  cli.py plan MODEL --layers 6 -o plan.json")  # fmt: skip
    plan.add_argument("model", help="model directory, or hub repository OWNER/NAME[@REVISION]")
    _add_output(plan, "FILE", "plan to write")
    plan.add_argument(
        "--resume", type=Path, metavar="FILE",
        help="continue from this plan where it exists, and save every finished round in it",
    )  # fmt: skip
    plan.add_argument("--save-tokens", type=Path, metavar="FILE.safetensors",
                      help="save the calibration tokens, to repeat the run exactly")  # fmt: skip
    _add_request(plan)

    apply = add("apply", "write the model of a plan, without running it",
                "example:\n  cli.py apply MODEL plan.json --rounds 4 -o out/minus-4")  # fmt: skip
    apply.add_argument("model", help="the model that the plan was made for")
    apply.add_argument("plan", type=Path, help="plan, or prunecomp.json of a compressed model")
    _add_output(apply, "DIR", "directory to write")
    apply.add_argument("--rounds", type=int, metavar="K", help="only the plan's first K rounds")
    return parser


def _request(args: argparse.Namespace):
    import dataclasses

    from prunecomp.pipeline import PlanRequest

    names = [field.name for field in dataclasses.fields(PlanRequest)]
    return PlanRequest(**{name: getattr(args, name) for name in names})


def _open(model: str):
    from prunecomp.checkpoint.reader import Checkpoint
    from prunecomp.hub import local_directory

    return Checkpoint(local_directory(model))


def _print(args: argparse.Namespace, document: dict[str, Any], lines: list[str]) -> None:
    print_result(json.dumps(document, indent=2) if args.json else "\n".join(lines))


def _plan_lines(plan) -> list[str]:
    lines = [
        f"removed  {', '.join(map(str, plan.removed))}  (of {plan.source.num_hidden_layers})",
        f"kept     {', '.join(map(str, plan.kept))}",
        "round    " + "  ".join(
            f"{'+'.join(map(str, r.removed))}: x{r.factor:.4f}" for r in plan.rounds
        ),
    ]  # fmt: skip
    for text, values in plan.perplexity.items():
        pruned = f"{values['pruned']:.3f}" if "pruned" in values else "not measured at this depth"
        lines.append(f"perplexity, {text}: {values['base']:.3f} -> {pruned}")
    return lines


def _written_lines(written) -> list[str]:
    share = written.parameters / written.source_parameters
    return [
        f"parameters {written.source_parameters:,} -> {written.parameters:,} ({share:.1%})",
        f"wrote    {written.output}  ({written.nbytes:,} bytes of weights)",
    ]


def _dry_run(args: argparse.Namespace, checkpoint, recipe) -> None:
    import dataclasses

    from prunecomp.pipeline import load_texts

    calibration, _ = load_texts(checkpoint, _request(args))
    samples, seq_len = calibration.input_ids.shape
    document = {
        "dry_run": True,
        "model": str(checkpoint.path),
        "model_type": checkpoint.family.model_type,
        "num_hidden_layers": checkpoint.num_hidden_layers,
        "tied": checkpoint.tied,
        "recipe": dataclasses.asdict(recipe),
        "calibration": {"source": args.calibration, "samples": samples, "seq_len": seq_len},
        "bytes_to_read": checkpoint.index.nbytes,
        "output": str(args.output),
    }
    _print(args, document, [
        f"would remove {recipe.num_removed} of {checkpoint.num_hidden_layers} layers of "
        f"{checkpoint.path} ({checkpoint.family.model_type}, "
        f"{checkpoint.index.numel:,} parameters)",
        f"by {recipe.metric}, {recipe.strategy}, compensation {recipe.compensation}, "
        f"folded {recipe.fold}",
        f"on {samples} x {seq_len} tokens of {args.calibration}, {recipe.dtype} on {recipe.device}",
        f"and write {args.output}",
    ])  # fmt: skip


def run_compress(args: argparse.Namespace, progress: Progress) -> int:
    from prunecomp import pipeline
    from prunecomp.checkpoint.output import check_output

    checkpoint = _open(args.model)
    check_output(args.output, overwrite=args.overwrite, source=checkpoint.path)
    if args.dry_run:
        _dry_run(args, checkpoint, pipeline.resolve_recipe(checkpoint, _request(args), progress))
        return 0
    plan, written = pipeline.compress(
        checkpoint, _request(args), args.output, name=args.model,
        overwrite=args.overwrite, progress=progress,
    )  # fmt: skip
    _print(
        args,
        {"plan": plan.to_json(), "written": written.to_json()},
        _plan_lines(plan) + _written_lines(written),
    )
    return 0


def _write_json(path: Path, document: dict[str, Any], *, overwrite: bool) -> None:
    from prunecomp.checkpoint.output import write_text

    write_text(path, json.dumps(document, indent=2) + "\n", overwrite=overwrite)


def _check_plan_files(args: argparse.Namespace, model: Path) -> bool:
    """Whether the plan may replace the file of its name: asked to, or continuing that very file."""
    from prunecomp.checkpoint.output import check_output_file

    replace = args.overwrite
    if args.resume:
        replace |= os.path.realpath(args.resume) == os.path.realpath(args.output)
        check_output_file(args.resume, overwrite=True, source=model)
    check_output_file(args.output, overwrite=replace, source=model)
    if args.save_tokens:
        if args.save_tokens.suffix != ".safetensors" or args.save_tokens == args.output:
            raise UsageError(
                f"--save-tokens {args.save_tokens}: give a file of its own, named .safetensors"
            )
        check_output_file(args.save_tokens, overwrite=args.overwrite, source=model)
    return replace


def run_plan(args: argparse.Namespace, progress: Progress) -> int:
    from prunecomp import pipeline
    from prunecomp.calibration.data import save_tokens
    from prunecomp.checkpoint.output import output_file
    from prunecomp.plan import read_plan

    checkpoint, request = _open(args.model), _request(args)
    replace = _check_plan_files(args, checkpoint.path)
    resume = read_plan(args.resume) if args.resume and args.resume.exists() else None
    if args.dry_run:
        _dry_run(args, checkpoint, pipeline.resolve_recipe(checkpoint, request, progress))
        return 0

    def save(current) -> None:
        if args.resume:
            _write_json(args.resume, current.to_json(), overwrite=True)

    with contextlib.ExitStack() as stack:
        if args.save_tokens:  # written now, but there only when the plan is
            file = stack.enter_context(output_file(args.save_tokens, overwrite=args.overwrite))
            save_tokens(pipeline.load_texts(checkpoint, request)[0], file)
        plan = pipeline.make_plan(
            checkpoint, request, name=args.model, progress=progress, resume=resume,
            on_round=save,
        )  # fmt: skip
        _write_json(args.output, plan.to_json(), overwrite=replace)
    _print(args, plan.to_json(), [*_plan_lines(plan), f"wrote    {args.output}"])
    return 0


def run_apply(args: argparse.Namespace, progress: Progress) -> int:
    from prunecomp import pipeline
    from prunecomp.checkpoint.output import check_output
    from prunecomp.plan import read_plan

    plan = read_plan(args.plan)
    if args.rounds is not None:
        plan = plan.prefix(args.rounds)
    checkpoint = _open(args.model)
    check_output(args.output, overwrite=args.overwrite, source=checkpoint.path)
    if args.dry_run:
        pipeline.check_source(checkpoint, plan)
        _print(args, {"dry_run": True, "plan": plan.to_json()}, _plan_lines(plan))
        return 0
    written = pipeline.apply_plan(
        checkpoint, plan, args.output, overwrite=args.overwrite, progress=progress
    )
    _print(
        args,
        {"plan": plan.to_json(), "written": written.to_json()},
        _plan_lines(plan) + _written_lines(written),
    )
    return 0


COMMANDS = {"compress": run_compress, "plan": run_plan, "apply": run_apply}


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code listed in ``--help``."""
    args = build_parser().parse_args(argv)
    if not args.debug:
        silence_libraries(progress=args.quiet)
    try:
        with interruptible():
            return COMMANDS[args.command](args, Progress(quiet=args.quiet))
    except (Exception, KeyboardInterrupt) as error:
        expected = explain(error, output=args.output, resume=getattr(args, "resume", None))
        if args.debug or expected is None:
            raise
        code, message = expected
        if sys.stderr is not None:
            print(f"error: {message}", file=sys.stderr)
        return code


if __name__ == "__main__":
    sys.exit(main())

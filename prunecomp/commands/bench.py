"""``bench``: what pruning bought, and what it cost."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import thresholds
from bench.engines import ENGINES
from prunecomp.commands._request import count
from prunecomp.commands.base import MODEL_HELP, Command, model_directory, print_document
from prunecomp.errors import PruneCompError, ThresholdError, UsageError
from prunecomp.progress import Progress

if TYPE_CHECKING:
    from bench.context import Run
    from bench.qualities import Accuracy
    from bench.questions import Asked
    from bench.run import Request
from bench.schema import Failure, Report

EXAMPLES = """\
examples:
  cli.py bench BASE PRUNED --output DIR
  cli.py bench BASE MINUS-4 MINUS-8 -o DIR --mix balanced=512:128x64 --concurrency 1,8,64 \\
      --tensor-parallel-size 2 --engine-arg="--max-num-seqs 256" --tasks paper-qa
  cli.py bench BASE PRUNED -o DIR --answers questions.txt
  cli.py bench BASE PRUNED -o DIR --resume
  cli.py bench BASE PRUNED -o DIR --fail-under decode=1.2 --max-accuracy-loss 0.05

DIR gets report.json, report.md, report.html, every raw sample (raw/) and all logs (logs/).
Exit code 1: a model failed in a stage (the report has the rest); 4: a limit was missed.
"""
BATCHES = {"cpu": (1, 4), "cuda": (1, 64)}


def _numbers(kind: type, minimum: float):
    """A parser of ``1,2,4``."""

    def parse(text: str) -> tuple:
        try:
            values = tuple(kind(part) for part in text.split(","))
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not a list such as 1,2,4") from error
        if not all(minimum <= v < 2**31 for v in values) or len(set(values)) < len(values):
            raise argparse.ArgumentTypeError(
                f"{text!r}: every number must be there once, and at least {minimum:g}"
            )
        return values

    return parse


def _milliseconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of milliseconds")
    return value


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", help=MODEL_HELP)
    parser.add_argument("pruned", nargs="+", help="pruned versions of it")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR",
                        help="directory of the report")  # fmt: skip
    parser.add_argument("--resume", dest="goes_on", action="store_true",
                        help="go on with the run in DIR; takes the same command")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="begin anew a run in DIR")
    parser.add_argument("--skip", type=lambda text: tuple(text.split(",")), default=(),
                        metavar="STAGE[,...]", help="serving, offline, accuracy")  # fmt: skip
    parser.add_argument("--answers", metavar="FILE",
                        help="prompts that every model answers, for people to judge by: a .txt "
                        'with one a line, a .jsonl of {"prompt": text} or {"messages": [...]}; '
                        "none for none (default: a built-in handful)")  # fmt: skip
    parser.add_argument("--repeats", type=count, default=3, metavar="N", help="default: 3")
    parser.add_argument("--warmup", type=int, default=1, metavar="N",
                        help="unmeasured runs before (default: 1)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of prompts and arrivals (default: 0)")
    _add_load(parser.add_argument_group("load"))
    _add_engine(parser.add_argument_group("engine"))
    _add_accuracy(parser.add_argument_group("accuracy"))
    thresholds.add_arguments(parser)


def _add_load(load: argparse._ArgumentGroup) -> None:
    load.add_argument(
        "--mix", action="append", metavar="NAME[=IN:OUT[xPROMPTS]]",
        help="prefill-heavy, balanced, decode-heavy, or tokens of prompt and output; repeatable "
        "(default: these three)",
    )  # fmt: skip
    load.add_argument("--prompt-file", type=Path, metavar="FILE.jsonl",
                      help='one more mix: lines of {"prompt": text}')  # fmt: skip
    load.add_argument("--prompt-file-output", type=count, default=128, metavar="N",
                      help="tokens to generate for its prompts (default: 128)")  # fmt: skip
    load.add_argument("--concurrency", type=_numbers(int, 1), metavar="N,...",
                      help="requests in flight of the closed loop (default: 1, 2, 4, ... until "
                      "that adds less than 10%% to the base's requests/s)")  # fmt: skip
    load.add_argument(
        "--request-rates", default="25%,50%,75%,90%", metavar="R,...",
        help="requests/s of the open loop; with %% of what the base reaches in the closed loop; or "
        "none (default: 25%%,50%%,75%%,90%%)",
    )  # fmt: skip
    for name, usual, what in (
        ("ttft", 2000.0, "time to first token"), ("tpot", 200.0, "time per output token"),
        ("e2el", None, "end-to-end latency"),
    ):  # fmt: skip
        load.add_argument(
            f"--slo-{name}-ms", type=_milliseconds, default=usual, metavar="MS",
            help=f"largest {what} that counts towards goodput (default: {usual or 'none'})",
        )  # fmt: skip


def _add_engine(engine: argparse._ArgumentGroup) -> None:
    engine.add_argument(
        "--engines", type=lambda text: tuple(text.split(",")), default=("vllm",),
        metavar="NAME[,...]", help=f"of the offline stage: {', '.join(ENGINES.names())} "
        "(default: vllm)",
    )  # fmt: skip
    engine.add_argument("--batches", type=_numbers(int, 1), metavar="N,...",
                        help="prompts at once of offline latency")  # fmt: skip
    for name in ("tensor", "pipeline"):
        engine.add_argument(f"--{name}-parallel-size", type=count, default=1, metavar="N",
                            help="of vLLM (default: 1)")  # fmt: skip
    engine.add_argument(
        "--engine-arg", action="append", default=[], metavar="ARG",
        help='passed on to vLLM as it is, such as --engine-arg="--dtype float32"; repeatable',
    )  # fmt: skip
    engine.add_argument("--kv-cache-gib", type=count, metavar="N",
                        help="of every model's KV cache")  # fmt: skip
    engine.add_argument(
        "--one-at-a-time", action="store_true",
        help="never hold two models in memory (default: as they fit)",
    )  # fmt: skip
    engine.add_argument(
        "--port",
        type=count,
        metavar="N",
        help="of the first server; the others follow (default: free ones)",
    )
    engine.add_argument(
        "--startup-timeout",
        type=float,
        default=900.0,
        metavar="S",
        help="seconds for a server or an engine to come up (default: 900)",
    )


def _add_accuracy(accuracy: argparse._ArgumentGroup) -> None:
    accuracy.add_argument(
        "--tasks",
        default="quick",
        metavar="NAME[,...]",
        help="quick, plain, speech, paper-qa, mmlu, tasks of lm-eval (default: quick)",
    )
    accuracy.add_argument("--include-path", type=Path, action="append", default=[], metavar="DIR",
                          help="of local tasks; repeatable")  # fmt: skip
    accuracy.add_argument("--limit", type=float, metavar="N", help="items per task")
    accuracy.add_argument("--num-fewshot", type=int, metavar="N", help="examples in each prompt")
    accuracy.add_argument("--text", action="append", metavar="SOURCE",
                          help="to measure perplexity on, as --calibration of compress names it; "
                          "of a built-in one its held-out part; repeatable; none for none "
                          "(default: python-stdlib)")  # fmt: skip
    accuracy.add_argument("--text-samples", type=count, default=64, metavar="N",
                          help="windows of each text (default: 64)")  # fmt: skip
    accuracy.add_argument("--text-seq-len", type=count, metavar="T",
                          help="tokens of a window (default: half the model's context, at most "
                          "2048)")  # fmt: skip
    accuracy.add_argument("--accuracy-engine", default="hf", metavar="NAME",
                          help="hf or vllm (default: hf)")  # fmt: skip
    accuracy.add_argument(
        "--frontier",
        type=Path,
        metavar="FILE",
        help="frontier.json of `frontier`, to be shown in the report",
    )


def _settings(args: argparse.Namespace, device: str) -> Any:
    from bench.conditions import Settings, Slo
    from bench.run import STAGES
    from bench.workload import LENGTHS, parse_mix, prompt_file_mix

    for stage in args.skip:
        if stage not in STAGES:
            raise UsageError(f"--skip {stage}: choose from {', '.join(STAGES)}")
    if set(args.skip) >= set(STAGES):
        raise UsageError("--skip: leaves nothing to do")
    mixes = [parse_mix(text) for text in args.mix or ([] if args.prompt_file else LENGTHS)]
    if args.prompt_file:
        mixes.append(prompt_file_mix(args.prompt_file, output_tokens=args.prompt_file_output))
    if len({mix.name for mix in mixes}) < len(mixes):
        raise UsageError("--mix: every mix needs a name of its own")
    rates, _ = _rates(args.request_rates)
    accuracy = "accuracy" not in args.skip
    return Settings(
        seed=args.seed, repeats=args.repeats, warmup=max(0, args.warmup), mixes=tuple(mixes),
        concurrency=args.concurrency or (), request_rates=rates,
        slo=Slo(args.slo_ttft_ms, args.slo_tpot_ms, args.slo_e2el_ms), engines=args.engines,
        engine_args=tuple(part for text in args.engine_arg for part in shlex.split(text)),
        tensor_parallel_size=args.tensor_parallel_size,
        pipeline_parallel_size=args.pipeline_parallel_size,
        tasks=tuple(args.tasks.split(",")) if accuracy else (), limit=args.limit,
        batches=args.batches or BATCHES[device], skipped=args.skip,
    )  # fmt: skip


def _rates(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The rates of ``--request-rates``: absolute ones, and shares of the base's."""
    if text == "none":
        return (), ()
    parts = text.split(",")
    given = [",".join(p for p in parts if not p.endswith("%"))]
    given.append(",".join(p[:-1] for p in parts if p.endswith("%")))
    try:
        rates, percent = (_numbers(float, 1e-6)(part) if part else () for part in given)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--request-rates {error}, or none") from error
    return rates, tuple(p / 100 for p in percent)


def _accuracy(args: argparse.Namespace, device: str, engine_args: tuple[str, ...]):
    """The accuracy stage, with its options checked; None where it is left out."""
    if "accuracy" in args.skip:
        return None
    from bench.accuracy import run as accuracy

    asked = accuracy.Request(
        tasks=tuple(args.tasks.split(",")), engine=args.accuracy_engine, device=device,
        include_path=tuple(args.include_path), limit=args.limit, num_fewshot=args.num_fewshot,
        texts=_texts(args.text), text_samples=args.text_samples, text_seq_len=args.text_seq_len,
        engine_args=_of_lm_eval(args, engine_args) if args.accuracy_engine == "vllm" else {},
    )  # fmt: skip
    accuracy.check(asked)

    def measure(run: Run) -> Accuracy:
        models = {model.id: Path(model.path) for model in run.models}
        found = accuracy.run(
            models, asked, output=run.raw.directory / "accuracy", progress=run.progress
        )
        run.failures += found.failures
        run.warnings += found.warnings
        run.commands += found.commands
        return found.accuracy

    return measure


def _texts(named: list[str] | None) -> tuple[str, ...]:
    """What ``--text`` names; each once."""
    if named is None:
        return ("python-stdlib",)
    return tuple(dict.fromkeys(name for name in named if name != "none"))


def _of_lm_eval(args: argparse.Namespace, engine_args: tuple[str, ...]) -> dict[str, Any]:
    """What lm-eval's vLLM takes of the server's arguments."""
    from bench.engines.base import Options

    dtype = Options(engine_args).dtype()
    found: dict[str, Any] = {} if dtype == "auto" else {"dtype": dtype}
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        if getattr(args, name) > 1:
            found[name] = getattr(args, name)
    return found


def _asked(args: argparse.Namespace, base: Path) -> Asked | None:
    """What the models are to answer; None where there is nothing that answers."""
    from bench import questions

    if not {"serving", "offline"} <= set(args.skip):
        return questions.prepare(base, args.answers)
    if args.answers not in (None, "none"):
        raise UsageError(
            f"--answers {args.answers}: serving and offline are skipped, so that nothing answers; "
            "skip only one of them"
        )
    return None


def _frontier(path: Path | None) -> Any:
    if path is None:
        return None
    from bench.frontier import read_frontier

    return read_frontier(path)


def _request(args: argparse.Namespace) -> Request:
    import torch

    from bench.run import Request

    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings, base = _settings(args, device), Path(args.base).resolve()
    asked = _asked(args, base)
    if asked is not None:
        settings = dataclasses.replace(settings, answers=asked.prompts)
    return Request(
        base=base,
        pruned=tuple(Path(name).resolve() for name in args.pruned),
        output=args.output, settings=settings, command=tuple(sys.argv), device=device,
        port=args.port, startup_timeout_s=args.startup_timeout, one_at_a_time=args.one_at_a_time,
        kv_cache_bytes=None if args.kv_cache_gib is None else args.kv_cache_gib << 30,
        shares=_rates(args.request_rates)[1],
        accuracy=_accuracy(args, device, settings.engine_args), asked=asked,
        frontier=_frontier(args.frontier), resume=args.goes_on, overwrite=args.overwrite,
    )  # fmt: skip


def _first(failure: Failure) -> str:
    return failure.message.partition("\n")[0]


def _lines(report: Report, written: list[str]) -> list[str]:
    """The summary, to read."""
    lines = []
    for row in report.summary:
        speed = ", ".join(
            f"{name.replace('_', ' ')} x{r.value:.3f} ({r.low:.3f} to {r.high:.3f})"
            for name, r in row.speedup.items()
        )
        kept = "not measured"
        if row.retained is not None:
            error = f" +- {row.retained.stderr:.1%}" if row.retained.stderr is not None else ""
            kept = f"{row.retained.value:.1%}{error}"
        lines += [
            f"{row.model} ({row.layers_removed} layers removed)",
            f"  speedup   {speed or 'not measured'}",
            f"  retained  {kept}",
        ]
    lines += [f"warning  {text}" for text in report.warnings]
    lines += [
        f"failed   {f.stage}, {f.model}: {f.message.splitlines()[0]}" for f in report.failures
    ]
    return [*lines, *(f"wrote    {path}" for path in written)]


def _run(args: argparse.Namespace, progress: Progress) -> int:
    from bench import run
    from bench.report import write

    limits = thresholds.from_arguments(args)
    models = [str(model_directory(name, progress)) for name in (args.base, *args.pruned)]
    args.base, args.pruned = models[0], models[1:]
    request = _request(args)
    report = run.execute(request, run.prepare(request, progress))
    written = [str(path) for path in write(report, args.output)]
    missed = thresholds.check(report, limits)
    print_document(
        args, {"report": report.to_json(), "written": written, "missed": missed},
        _lines(report, written),
    )  # fmt: skip
    if report.failures:
        first = report.failures[0]
        raise PruneCompError(
            f"{len(report.failures)} failure(s), the first: {first.stage}, {first.model}: "
            f"{_first(first)}; the report has the rest"
        )
    if missed:
        raise ThresholdError("; ".join(missed))
    return 0


COMMAND = Command(70, "measure what pruned models gained and lost", _add, _run, EXAMPLES)

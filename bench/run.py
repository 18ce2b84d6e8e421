"""The whole benchmark: checks first, then stages, then one report of all that was measured."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.answers import in_context
from bench.assemble import assemble
from bench.conditions import Settings
from bench.context import Run, Tools
from bench.engines import ENGINES
from bench.models import context_of, describe
from bench.offline_stage import OfflineStage
from bench.placement import place
from bench.qualities import Accuracy
from bench.questions import Asked
from bench.raw import Raw
from bench.schema import Frontier, Model, Report
from bench.server import SMALL_ON_CPU, check_port, need_vllm
from bench.serving_stage import ServingStage
from bench.workload import check_lengths
from prunecomp.checkpoint.output import check_output
from prunecomp.errors import InterruptedRunError, PruneCompError, UsageError
from prunecomp.progress import Progress

STAGES = ("serving", "offline", "accuracy")
#: `SMALL_ON_CPU` is for models with fewer bytes of weights than this.
SMALL_BYTES = 2 << 30
#: Added to the longest request: random prompts are not of their length to the token.
_MARGIN_TOKENS = 64

#: Given the models by id, does the accuracy stage.
MeasureAccuracy = Callable[["Run"], Accuracy | None]


@dataclass(frozen=True)
class Request:
    """What a user asks for.

    Attributes:
        settings: `engine_args` as the user gave them; `complete` adds what follows.
        device: ``cpu`` or ``cuda``.
        shares: of the rate at which the base is saturated, for the open loop.
        accuracy: does that stage; None to leave it out.
        asked: what every model is to answer; None for nothing.
        frontier: of an earlier run, to be shown in the report.
        resume: go on with what `output` holds.
        overwrite: begin anew where `output` holds a run.
    """

    base: Path
    pruned: tuple[Path, ...]
    output: Path
    settings: Settings
    command: tuple[str, ...]
    device: str = "cpu"
    port: int | None = None
    startup_timeout_s: float = 900.0
    kv_cache_bytes: int | None = None
    one_at_a_time: bool = False
    shares: tuple[float, ...] = ()
    accuracy: MeasureAccuracy | None = None
    asked: Asked | None = None
    frontier: Frontier | None = None
    resume: bool = False
    overwrite: bool = False
    tools: Tools = field(default_factory=Tools)


def _has(arguments: Sequence[str], name: str) -> bool:
    return any(a == name or a.startswith(name + "=") for a in arguments)


def complete(
    settings: Settings, models: Sequence[Model], device: str, asked: Asked | None = None
) -> tuple[str, ...]:
    """The arguments of vLLM: those given, and those that the settings and the machine imply."""
    given, added = settings.engine_args, []
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        if getattr(settings, name) > 1:
            added += ["--" + name.replace("_", "-"), str(getattr(settings, name))]
    if not (_has(given, "--enable-prefix-caching") or _has(given, "--no-enable-prefix-caching")):
        added.append("--no-enable-prefix-caching")
    lengths = [m.input_tokens + m.output_tokens for m in settings.mixes if m.input_tokens]
    if not _has(given, "--max-model-len") and len(lengths) == len(settings.mixes):
        wanted = max(max(lengths) + _MARGIN_TOKENS, in_context(asked))
        added += ["--max-model-len", str(min(wanted, context_of(Path(models[0].path)) or wanted))]
    small = max(m.weights_bytes for m in models) < SMALL_BYTES
    if device == "cpu" and small and not _has(given, "--dtype"):
        added += [a for a in SMALL_ON_CPU if not _has(given, a)]
    return (*given, *added)


def _check(request: Request, models: Sequence[Model]) -> None:
    settings = request.settings
    wanted = [stage for stage in STAGES if stage not in settings.skipped]
    if {"serving", "offline"} & set(wanted):
        check_lengths(settings.mixes, context_of(request.base))
    if "serving" in wanted:
        need_vllm()
        if request.port is not None:
            for number in range(len(models)):
                check_port(request.port + number)
    if "offline" in wanted:
        for name in settings.engines:
            engine = ENGINES.get(name)
            for model in models:
                engine.check(Path(model.path))
    _check_output(request)


def _check_output(request: Request) -> None:
    output = request.output
    is_run = Raw(output).read("settings") is not None
    if request.resume and not is_run:
        raise UsageError(f"{output}: no such run; leave out --resume to begin one")
    if is_run and not (request.resume or request.overwrite):
        raise UsageError(
            f"{output}: holds a run already; --resume goes on with it, --overwrite begins anew"
        )
    if output.is_dir() and not is_run and any(output.iterdir()):
        raise UsageError(
            f"{output}: exists already and is no run of bench; choose another --output"
        )
    if not output.exists():
        check_output(output, overwrite=False, source=request.base)


def prepare(request: Request, progress: Progress) -> Run:
    """Checks everything that can be checked, and begins the run's directory.

    Raises:
        UsageError: a model, an option or the output cannot be used.
        MissingDependencyError: a package is missing.
    """
    models = describe(request.base, request.pruned)
    _check(request, models)
    settings = request.settings
    arguments = complete(settings, models, request.device, request.asked)
    placement = place(
        models, device=request.device,
        shards=settings.tensor_parallel_size * settings.pipeline_parallel_size,
        engine_args=arguments, kv_cache_bytes=request.kv_cache_bytes,
        one_at_a_time=request.one_at_a_time,
    )  # fmt: skip
    settings = dataclasses.replace(
        settings, engine_args=arguments, servers=placement.name, servers_why=placement.why,
        kv_cache_bytes=placement.kv_cache_bytes,
        prefix_caching=_has(arguments, "--enable-prefix-caching"),
    )  # fmt: skip
    raw = Raw(request.output)
    if request.overwrite:
        raw.clear()
    asked = {
        **dataclasses.asdict(request.settings), "models": [m.path for m in models],
        "shares": request.shares,
    }  # fmt: skip
    raw.open(asked)
    run = Run(
        directory=request.output, models=models, settings=settings, placement=placement, raw=raw,
        progress=progress, port=request.port, startup_timeout_s=request.startup_timeout_s,
        device=request.device, asked=request.asked, tools=request.tools,
        commands=raw.read("commands") or [],
    )  # fmt: skip
    progress.say(
        f"{len(models)} models, servers {placement.name}" +
        (f" ({placement.why})" if placement.why else "")
    )  # fmt: skip
    return run


@contextlib.contextmanager
def _timed(run: Run) -> Iterator[None]:
    """Adds to the time that the run has taken so far, whatever ends this part of it."""
    start, before = time.monotonic(), (run.raw.read("duration") or {"seconds": 0.0})["seconds"]
    try:
        yield
    except KeyboardInterrupt as error:
        raise InterruptedRunError(
            f"interrupted; what is finished is in {run.directory}, --resume goes on with it"
        ) from error
    finally:
        run.raw.write("duration", {"seconds": before + time.monotonic() - start})
        run.raw.write("commands", list(dict.fromkeys(run.commands)))


def execute(request: Request, run: Run) -> Report:
    """Does the stages that were asked for; returns the report of all that worked.

    Raises:
        InterruptedRunError: Ctrl-C or SIGTERM; finished pieces are kept.
    """
    skipped, accuracy = run.settings.skipped, None
    with _timed(run):
        if "serving" not in skipped:
            ServingStage(run, shares=request.shares).execute()
        if "offline" not in skipped:
            for engine in run.settings.engines:
                OfflineStage(run, engine).execute()
        if "accuracy" not in skipped and request.accuracy is not None:
            try:
                accuracy = request.accuracy(run)
            except PruneCompError as error:  # what was measured before is not lost
                run.fail(run.models[0].id, "accuracy", error)
    return assemble(
        run, created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), command=request.command,
        duration_s=run.raw.read("duration")["seconds"], accuracy=accuracy,
        frontier=request.frontier, shares=request.shares,
    )  # fmt: skip

"""Evaluates models one after the other, each in a process of its own, and compares them."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.accuracy.collect import collect
from bench.accuracy.tasks import open_tasks
from bench.accuracy.worker import Job
from bench.process import Child
from bench.qualities import Accuracy
from bench.raw import is_ours
from bench.schema import Failure
from prunecomp.checkpoint.foreign import remove_ours
from prunecomp.errors import UsageError
from prunecomp.progress import Progress

ENGINES = ("hf", "vllm")


@dataclass(frozen=True)
class Request:
    """What is to be measured; see `bench.accuracy.worker.Job` for what each field means."""

    tasks: tuple[str, ...] = ("quick",)
    engine: str = "hf"
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    include_path: tuple[Path, ...] = ()
    num_fewshot: int | None = None
    limit: float | None = None
    batch_size: int | None = None
    device: str = "auto"
    texts: tuple[str, ...] = ("python-stdlib",)
    text_samples: int = 64
    text_seq_len: int | None = None


@dataclass(frozen=True)
class Outcome:
    """The report's part, what went wrong, and the exact commands."""

    accuracy: Accuracy
    failures: tuple[Failure, ...]
    warnings: tuple[str, ...]
    commands: tuple[str, ...]


def check(request: Request) -> None:
    """Refuses what cannot be measured, before anything runs.

    Raises:
        UsageError: engine, task, path, limit or device is not to be had.
        MissingDependencyError: lm-eval is not installed.
    """
    from prunecomp.device import resolve_device

    if request.engine not in ENGINES:
        raise UsageError(f"unknown accuracy engine {request.engine!r} (choose from hf, vllm)")
    if request.limit is not None and request.limit <= 0:
        raise UsageError(f"--limit {request.limit:g}: give a positive number of items")
    resolve_device(request.device)
    if request.tasks:
        open_tasks(request.tasks, request.include_path)


def _engine_args(request: Request, device: str) -> dict[str, Any]:
    """Defaults for a CPU, where bfloat16 is slow or (in vLLM, see `bench.server`) deadly."""
    own: dict[str, Any] = {}
    if device == "cpu":
        own = {"dtype": "float32"}
        if request.engine == "vllm":
            own["enforce_eager"] = True
    return {**own, **request.engine_args}


def job_of(model: Path, request: Request) -> Job:
    """What one model's process is told."""
    from prunecomp.device import resolve_device

    device = str(resolve_device(request.device))
    files = sorted(model.glob("*.safetensors")) + sorted(model.glob("*.json"))
    return Job(
        model=str(model), tasks=request.tasks, engine=request.engine,
        engine_args=_engine_args(request, device),
        include_path=tuple(str(p.resolve()) for p in request.include_path),
        num_fewshot=request.num_fewshot, limit=request.limit, batch_size=request.batch_size,
        device=device, texts=request.texts, text_samples=request.text_samples,
        text_seq_len=request.text_seq_len,
        weights=tuple(f"{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files),
    )  # fmt: skip


def _is_done(job: Job, where: Path) -> bool:
    try:
        found = json.loads((where / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return found["job"] == job.to_json()


def _error_of(log: Path) -> str:
    """The last line of a log, or where there is one the line that says what was wrong."""
    lines = [x for x in log.read_text(encoding="utf-8", errors="replace").splitlines() if x.strip()]
    said = [x.removeprefix("error: ") for x in lines if x.startswith("error: ")]
    return (said or lines or ["it said nothing"])[-1].strip()


def _evaluate(job: Job, where: Path) -> tuple[list[str], str, str | None]:
    """Runs one job; returns its command, how it ended, and what went wrong."""
    if where.exists():  # what a run left that was ended
        remove_ours(where, lambda name: is_ours(f"raw/{name}"))
    where.mkdir(parents=True)
    file, log = where / "job.json", where / "log.txt"
    file.write_text(json.dumps(job.to_json(), indent=2) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "bench.accuracy.worker", str(file), str(where)]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with Child(command, log=log, environment=environment) as child:
        while (ended := child.wait(60)) is None:
            pass
    if (where / "results.json").exists():
        return command, ended, None
    return command, ended, _error_of(log)


def run(
    models: Mapping[str, Path], request: Request, *, output: Path, progress: Progress
) -> Outcome:
    """Evaluates all models; the first is the base. What `output` holds already is not done again.

    Args:
        output: gets one directory per model, with all that lm-eval gave.

    Raises:
        UsageError: a task, its data set, the text or an option cannot be used.
        PruneCompError: two models were not asked the same.
    """
    check(request)
    failures, commands, done = [], [], {}
    for number, (name, path) in enumerate(models.items(), start=1):
        job, where = job_of(path, request), output / name
        if not _is_done(job, where):
            progress.say(f"accuracy {number}/{len(models)}: {name} ({', '.join(request.tasks)})")
            command, ended, error = _evaluate(job, where)
            commands.append(shlex.join(command))
            if error is not None:
                if number == 1 and ended == f"ended with exit code {UsageError.exit_code}":
                    raise UsageError(error)  # it would be wrong for every model
                message = f"lm-eval {ended}: {error} (log: {where / 'log.txt'})"
                progress.say(f"accuracy of {name}: {message}")
                failures.append(Failure(name, "accuracy", message))
                continue
        done[name] = where
    accuracy, warnings = collect(
        done, base=next(iter(models)), engine=request.engine, num_fewshot=request.num_fewshot
    )
    return Outcome(accuracy, tuple(failures), tuple(warnings), tuple(commands))

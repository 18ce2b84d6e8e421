"""One model in one engine, asked for measurements: ``python -m bench.engine_worker ENGINE MODEL``.

Requests: ``{"do": "load", "options": ...}`` first; ``{"do": "measure", "batch", "input_tokens",
"output_tokens", "seed"}``; ``{"do": "answer", "prompt", "new_tokens", "stop"}``, whose answer is
``{"tokens": [...]}``; ``{"do": "facts"}``.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from bench.engines import ENGINES
from bench.engines.base import Options
from bench.memory import peak_of_process
from bench.models import vocabulary_of
from bench.worker import answer_requests
from bench.workload import random_prompts
from prunecomp.calibration.tokenizer import affixes, load_tokenizer
from prunecomp.errors import PruneCompError, UsageError


def prefix_in(model: Path) -> tuple[int, ...]:
    """What the model's tokenizer puts in front of a text; nothing where there is no tokenizer."""
    try:
        return affixes(load_tokenizer(model))[0]
    except UsageError:  # random tokens can do without
        return ()


class Program:
    """Answers requests about one model."""

    def __init__(self, engine: str, model: Path) -> None:
        self._engine, self._model = ENGINES.get(engine), model
        self._prefix = prefix_in(model)
        self._session: Any = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "load":
            return self._load(request["options"])
        if request["do"] == "measure":
            return self._measure(request)
        if request["do"] == "answer":
            prompt, stop = [request["prompt"]], request["stop"]
            return {"tokens": self._session.generate(prompt, request["new_tokens"], stop)[0]}
        return {"kv_cache_tokens": self._session.kv_cache_tokens(), **peak_of_process()}

    def _load(self, options: dict[str, Any]) -> dict[str, Any]:
        given = Options(**{**options, "arguments": tuple(options["arguments"])})
        start = time.perf_counter()
        self._session = self._engine.load(self._model, given)
        return {"seconds": time.perf_counter() - start}

    def _measure(self, request: dict[str, Any]) -> dict[str, Any]:
        prompts = random_prompts(
            request["batch"], request["input_tokens"],
            vocabulary=vocabulary_of(self._model), seed=request["seed"], prefix=self._prefix,
        )  # fmt: skip
        start = time.perf_counter()
        found = self._session.generate(prompts, request["output_tokens"])
        seconds = time.perf_counter() - start
        made = sum(map(len, found))
        if made != request["batch"] * request["output_tokens"]:
            raise PruneCompError(
                f"generated {made} tokens instead of {request['batch'] * request['output_tokens']}"
            )
        return {"seconds": seconds}


if __name__ == "__main__":
    answer_requests(Program(sys.argv[1], Path(sys.argv[2])).answer)

"""Runs in the environment of optimum, not in ours: greedy tokens of exported directories.

Reads ``[{"directory", "input_ids", "attention_mask", "new"}, ...]`` from stdin and writes, as the
last line of stdout, for each the tokens of each runtime, or what it raised.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any


def with_optimum(job: dict[str, Any]) -> list[list[int]]:
    """A left-padded batch through optimum's own `generate`."""
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM

    model = ORTModelForCausalLM.from_pretrained(job["directory"])
    ids, mask = torch.tensor(job["input_ids"]), torch.tensor(job["attention_mask"])
    made = model.generate(
        input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=job["new"],
        min_new_tokens=job["new"], pad_token_id=0,
    )  # fmt: skip
    return made[:, ids.shape[1] :].tolist()


def with_genai(job: dict[str, Any]) -> list[list[int]]:
    """One prompt after the other, without its padding, through onnxruntime-genai."""
    import onnxruntime_genai

    model = onnxruntime_genai.Model(job["directory"])
    found = []
    for padded, mask in zip(job["input_ids"], job["attention_mask"], strict=True):
        ids = [token for token, real in zip(padded, mask, strict=True) if real]
        parameters = onnxruntime_genai.GeneratorParams(model)
        length = len(ids) + job["new"]
        parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = onnxruntime_genai.Generator(model, parameters)
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
        found.append([int(token) for token in generator.get_sequence(0)[len(ids) :]])
    return found


def attempt(run: Callable[[dict[str, Any]], list[list[int]]], job: dict[str, Any]) -> Any:
    try:
        return run(job)
    except Exception as error:  # noqa: BLE001 - the caller compares, and shows it
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    answers = [
        {"optimum": attempt(with_optimum, job), "genai": attempt(with_genai, job)}
        for job in json.load(sys.stdin)
    ]
    sys.stdout.write("\n" + json.dumps(answers) + "\n")

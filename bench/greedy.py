"""Whether vLLM says what transformers says: greedy tokens of a served model on ten prompts.

    python -m bench.greedy DIR

Both in float32. Exit code 4 where a prompt's tokens differ; how close the two best tokens were at
the first difference is told, for a tie is decided by rounding.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.script import script
from bench.server import serve
from prunecomp.commands.base import model_directory
from prunecomp.console import silence_libraries
from prunecomp.errors import VerificationError
from prunecomp.progress import Progress

PROMPTS = (
    "The capital of France is",
    "Once upon a time, there was a small village where",
    "Water boils at",
    "The three primary colours are",
    "To make a cup of tea, first",
    "In the year 1969, astronauts",
    "def add(a, b):\n",
    "Dear Sir or Madam,\n\nI am writing to",
    "Q: What is two plus two?\nA:",
    "The most important thing about friendship is",
)
NEW_TOKENS = 48


def served(model: Path, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """What vLLM's server answers, as tokens."""
    arguments = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "256"]
    with serve(model, arguments=arguments) as server:
        found = []
        for ids in prompts:
            body = {"prompt": list(ids), "max_tokens": NEW_TOKENS, "temperature": 0,
                    "repetition_penalty": 1.0, "ignore_eos": True,
                    "return_token_ids": True}  # fmt: skip
            found.append(server.post("/v1/completions", body)["choices"][0]["token_ids"])
        return found


def compare(model: Any, prompt: Sequence[int], given: Sequence[int]) -> dict[str, Any]:
    """One prompt: transformers' tokens against `given`, and the margin where they part."""
    import torch

    ids = torch.tensor([list(prompt)])
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS, pad_token_id=0,
        )  # fmt: skip
    expected = out[0, ids.shape[1] :].tolist()
    row: dict[str, Any] = {"equal": expected == list(given), "tokens": expected}
    if not row["equal"]:
        place = next(
            (i for i, (a, b) in enumerate(zip(expected, given, strict=False)) if a != b), 0
        )
        with torch.inference_mode():
            logits = model(out[:, : ids.shape[1] + place]).logits[0, -1]
        best = logits.topk(2).values
        row |= {
            "served": list(given),
            "first_difference": place,
            "margin": float(best[0] - best[1]),
        }
    return row


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Compares; returns the exit code."""
    parser = argparse.ArgumentParser(prog="bench.greedy", description=__doc__.split("\n\n")[0])
    parser.add_argument("model", help="model directory")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    silence_libraries(progress=True)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    directory = model_directory(args.model, Progress())
    tokenizer = AutoTokenizer.from_pretrained(directory)
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    given = served(directory, prompts)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    model.generation_config = GenerationConfig()  # the directory's may sample
    rows = [
        {"prompt": text, **compare(model, prompt, tokens)}
        for text, prompt, tokens in zip(PROMPTS, prompts, given, strict=True)
    ]
    equal = sum(row["equal"] for row in rows)
    if args.json:
        print(json.dumps({"model": args.model, "equal": equal, "prompts": rows}, indent=2))
    else:
        for row in rows:
            margin = "" if row["equal"] else f", parts at {row['first_difference']}, where the two "
            margin += "" if row["equal"] else f"best are {row['margin']:.1e} apart"
            print(f"{'equal ' if row['equal'] else 'DIFFERS'} {row['prompt']!r}{margin}")
        print(f"{equal} of {len(rows)} prompts: the same {NEW_TOKENS} greedy tokens")
    if equal < len(rows):
        raise VerificationError(f"{len(rows) - equal} of {len(rows)} prompts differ; see above")
    return 0


if __name__ == "__main__":
    sys.exit(main())

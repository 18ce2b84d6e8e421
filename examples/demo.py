"""The main job on a real model: remove 6 of SmolLM2's 30 layers, compare, serve both, and ask them.

make demo
python examples/demo.py --model MODEL --layers 4 --output out/demo
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import textwrap
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench import questions
from bench.answers import of_server
from bench.models import describe
from bench.server import SMALL_ON_CPU, Server, defaults, need_vllm
from bench.smollm2 import BEST, gguf_file
from prunecomp.commands.base import model_directory
from prunecomp.errors import PruneCompError
from prunecomp.progress import Progress

LAYERS = 6
ASKED = 2
TIMED_TOKENS, TIMES = 64, 3
CONTEXT = 512
STARTUP_S = 600.0
COLUMN = 52


def compress(model: Path, output: Path, layers: int) -> dict:
    """Runs the command line as a user would; returns its JSON document."""
    command = [
        sys.executable, str(ROOT / "cli.py"), "compress", str(model), "--output", str(output),
        "--layers", str(layers), *BEST, "--overwrite", "--json",
    ]  # fmt: skip
    print("$ python", *command[1:-1], file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout)


def columns(*rows: tuple[str, str, str]) -> str:
    """Rows of a name and two figures, as text."""
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(
        f"{name:<{widths[0]}}  {before:>{widths[1]}}  {after:>{widths[2]}}"
        for name, before, after in rows
    )


def table(document: dict) -> str:
    """Before and after, as text."""
    plan, written = document["plan"], document["written"]
    texts = {
        name.removeprefix("evaluation (").removesuffix(")"): values
        for name, values in plan["perplexity"].items() if name.startswith("evaluation")
    }  # fmt: skip
    depth = plan["source"]["num_hidden_layers"]
    removed = sorted(i for cut in plan["rounds"] for i in cut["removed"])
    return columns(
        ("", "base", "pruned"),
        *((f"perplexity, {text}", f"{p['base']:.2f}", f"{p['pruned']:.2f}")
          for text, p in texts.items()),
        ("layers", str(depth), str(depth - len(removed))),
        ("layers removed", "", " ".join(map(str, removed))),
        *((what, f"{written['source_' + key]:,}", f"{written[key]:,}")
          for what, key in (("parameters", "parameters"), ("bytes of weights", "nbytes"))),
    )  # fmt: skip


def side_by_side(question: str, answers: tuple[str, str]) -> str:
    """One question, and below it both answers as they are."""
    blocks = [
        [part for line in (text.strip() or "(nothing)").split("\n")
         for part in textwrap.wrap(line, COLUMN) or [""]]
        for text in answers
    ]  # fmt: skip
    lines = [("base", "pruned"), *itertools.zip_longest(*blocks, fillvalue="")]
    return f"\n> {question}\n\n" + "\n".join(f"{a:<{COLUMN}}  {b}".rstrip() for a, b in lines)


def speed(server: Server, tokens: tuple[int, ...]) -> float:
    """Tokens per second of one request at a time, its prompt included."""
    body = {"prompt": list(tokens), "max_tokens": TIMED_TOKENS, "temperature": 0,
            "ignore_eos": True}  # fmt: skip
    found = []
    for _ in range(1 + TIMES):  # the first one warms up
        start = time.perf_counter()
        server.post("/v1/completions", body)
        found.append(TIMED_TOKENS / (time.perf_counter() - start))
    return statistics.median(found[1:])


def ask(base: Path, pruned: Path, logs: Path) -> None:
    """Serves both with vLLM, prints what each answers, and how fast it is."""
    import torch

    need_vllm()
    asked = questions.prepare(base, None)
    if asked is None:
        raise PruneCompError(f"{base}: has no tokenizer, so that it cannot be asked anything")
    asked = dataclasses.replace(asked, prompts=asked.prompts[:ASKED], tokens=asked.tokens[:ASKED])
    models = describe(base, [pruned])
    arguments = ["--max-model-len", str(CONTEXT), "--no-enable-prefix-caching"]
    arguments += [] if torch.cuda.is_available() else SMALL_ON_CPU
    answers, rates = [], []
    for model in models:  # one after the other: a server that waits still takes cores from another
        print(f"serving {model.id} with vLLM ...", file=sys.stderr, flush=True)
        with Server(
            Path(model.path), log=logs / f"{model.id}.log", arguments=arguments,
            environment=defaults(),
        ) as server:  # fmt: skip
            server.wait_until_up(STARTUP_S)
            ask_one = of_server(model)
            answers.append([ask_one(server, tokens, asked.stop)[0] for tokens in asked.tokens])
            rates.append(speed(server, asked.tokens[0]))
    for prompt, *both in zip(asked.prompts, *answers, strict=True):
        print(side_by_side(prompt[-1].content, tuple(both)), flush=True)
    before, after = rates
    print("\n" + columns(
        ("", "base", "pruned"),
        ("tokens/s, one request at a time", f"{before:.1f}", f"{after:.1f}"),
        ("speedup", "", f"x{after / before:.2f}"),
    ))  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--model", help="directory, .gguf file or hub repository (default: SmolLM2)"
    )
    parser.add_argument("--layers", type=int, default=LAYERS, help=f"to remove (default: {LAYERS})")
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "demo")
    args = parser.parse_args()
    os.chdir(ROOT)
    try:
        model = args.model or str(gguf_file())
        base = model_directory(model, Progress())
        pruned = args.output / "pruned"
        print(table(compress(model, pruned, args.layers)), flush=True)
        ask(base, pruned, args.output)
    except PruneCompError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The main job on the tiny model: prune it with and without repair, compare, serve the result.

make demo
python examples/demo.py --model MODEL --layers 4 --output out/demo
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.server import SMALL_ON_CPU, serve
from prunecomp.errors import PruneCompError

PROMPT = "def read_lines(path):\n    with open(path) as f:\n"


def compress(model: Path, output: Path, layers: int, compensation: str) -> dict:
    """Runs the command line as a user would; returns its JSON document."""
    command = [
        sys.executable, str(ROOT / "cli.py"), "compress", str(model), "--output", str(output),
        "--layers", str(layers), "--metric", "bi", "--strategy", "iterative",
        "--compensation", compensation, "--samples", "16", "--seq-len", "512",
        "--overwrite", "--json",
    ]  # fmt: skip
    print("$ python", *command[1:-1], file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout)


def _before_after(written: dict, key: str) -> tuple[str, str, str]:
    return f"{written['source_' + key]:,}", f"{written[key]:,}", f"{written[key]:,}"


def table(plain: dict, repaired: dict) -> str:
    """Before and after, as text."""
    text = next(name for name in repaired["plan"]["perplexity"] if name.startswith("evaluation"))
    written = repaired["written"]
    base = repaired["plan"]["perplexity"][text]["base"]
    rows = [
        ("", "base", "pruned", "pruned + magnitude"),
        ("perplexity, held-out text", f"{base:.3f}",
         *(f"{run['plan']['perplexity'][text]['pruned']:.3f}" for run in (plain, repaired))),
        ("layers", str(repaired["plan"]["source"]["num_hidden_layers"]),
         *(str(len(run["plan"]["kept_layers"])) for run in (plain, repaired))),
        ("removed, in order", "",
         *(" ".join(str(i) for r in run["plan"]["rounds"] for i in r["removed"])
           for run in (plain, repaired))),
        ("parameters", *_before_after(written, "parameters")),
        ("bytes of weights", *_before_after(written, "nbytes")),
    ]  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        row[0].ljust(widths[0])
        + "".join(f"  {c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", type=Path, default=ROOT / "examples" / "tiny-python-lm")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "demo")
    args = parser.parse_args()
    plain = compress(args.model, args.output / "pruned", args.layers, "none")
    repaired = compress(args.model, args.output / "pruned-magnitude", args.layers, "magnitude")
    print(table(plain, repaired), flush=True)

    import torch  # only now: the help text needs none of it

    served = args.output / "pruned-magnitude"
    on_cpu = () if torch.cuda.is_available() else SMALL_ON_CPU
    print(f"\nserving {served} with vLLM ...", file=sys.stderr, flush=True)
    try:
        with serve(served, arguments=["--max-model-len", "512", *on_cpu]) as server:
            answer = server.post(
                "/v1/completions", {"prompt": PROMPT, "max_tokens": 48, "temperature": 0}
            )
    except PruneCompError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"\nprompt:\n{PROMPT}\ncompletion from {server.url}:\n{answer['choices'][0]['text']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

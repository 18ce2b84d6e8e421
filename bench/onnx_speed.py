"""ONNX Runtime tokens per second: base against pruned, and our graphs against optimum's.

    python -m bench.onnx_speed BASE PRUNED --output bench/results/onnx_speed.json

Exports both model directories with ``cli.py export --format onnx``, and with ``optimum-cli export
onnx`` where the environment of optimum is there (``make optimum``). All graphs then run in the
same ONNX Runtime on the CPU: a prompt of random tokens in one call, then one token after the other
from the cache, whose tensors stay inside the runtime. Graphs take turns, in an order that changes
from one repeat to the next. Times of export include the start of the process and, for ours, the
check against torch.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.environment import environment
from bench.script import script
from bench.statistics import speedup, spread
from prunecomp.checkpoint.output import write_text
from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
SCHEMA_VERSION = 1
OPTIMUM = ROOT / ".venv-optimum"
PACKAGES = ("optimum", "optimum-onnx", "transformers", "torch")
OURS, THEIRS = "prunecomp", "optimum"


@dataclass(frozen=True)
class Exported:
    """One graph on disk, and what it took to make it."""

    model: str
    exporter: str
    directory: Path
    seconds: float

    @property
    def name(self) -> str:
        return f"{self.model}, {self.exporter}"


def export(model: str, source: Path, exporter: str, target: Path, precision: str) -> Exported:
    """Runs one exporter as a user would.

    Raises:
        UsageError: it fails.
    """
    if exporter == OURS:
        command = [sys.executable, "cli.py", "export", str(source), "--format", "onnx"]
        command += ["--precision", precision, "-q", "-o", str(target)]
    else:
        command = [str(OPTIMUM / "bin" / "optimum-cli"), "export", "onnx", "--model", str(source)]
        command += ["--task", "text-generation-with-past", "--dtype", precision, str(target)]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no message"]
        raise UsageError(f"{exporter} does not export {source}: {said[-1][:300]}")
    return Exported(model, exporter, target, seconds)


class Graph:
    """A graph in ONNX Runtime, run as a server would run it."""

    def __init__(self, exported: Exported, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        path = exported.directory / "model.onnx"
        started = time.perf_counter()
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self.load_s = time.perf_counter() - started
        self._inputs = {value.name for value in self._session.get_inputs()}
        self._outputs = [value.name for value in self._session.get_outputs()]
        self._value = onnxruntime.OrtValue.ortvalue_from_numpy

    def _empty_past(self, batch: int) -> dict[str, Any]:
        import numpy as np

        types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        caches = [value for value in self._session.get_outputs() if value.name != "logits"]
        return {
            v.name.replace("present", "past_key_values"): self._value(
                np.zeros((batch, int(v.shape[1]), 0, int(v.shape[3])), types[v.type])
            )
            for v in caches
        }

    def _step(self, ids: Any, seen: int, past: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Logits, and the cache behind `ids` [batch, new], of which `seen` tokens precede."""
        import numpy as np

        batch, new = ids.shape
        feed = {
            "input_ids": ids,
            "attention_mask": np.ones((batch, seen + new), np.int64),
            "position_ids": np.tile(np.arange(seen, seen + new), (batch, 1)),
        }
        values = {n: self._value(v) for n, v in feed.items() if n in self._inputs}
        made = self._session.run_with_ort_values(self._outputs, {**values, **past})
        found = dict(zip(self._outputs, made, strict=True))
        logits = found.pop("logits")
        return logits, {n.replace("present", "past_key_values"): v for n, v in found.items()}

    def times(self, prompt: Any, new: int) -> tuple[float, float]:
        """Seconds of the prompt [batch, tokens], and of `new` further tokens, greedily chosen."""
        started = time.perf_counter()
        logits, past = self._step(prompt, 0, self._empty_past(len(prompt)))
        ids = logits.numpy()[:, -1:].argmax(-1)
        prefilled = time.perf_counter()
        for done in range(new):
            logits, past = self._step(ids, prompt.shape[1] + done, past)
            ids = logits.numpy()[:, -1:].argmax(-1)
        return prefilled - started, time.perf_counter() - prefilled


def _count_nodes(directory: Path) -> int:
    import onnx

    return len(onnx.load(directory / "model.onnx", load_external_data=False).graph.node)


def measure(graphs: Mapping[str, Graph], vocabulary: int, args: argparse.Namespace) -> Any:
    """``{graph: {batch: {"prefill": tokens per second by repeat, "decode": ...}}}``."""
    import numpy as np

    random = np.random.default_rng(args.seed)
    found: dict[str, Any] = {
        name: {batch: {"prefill": [], "decode": []} for batch in args.batch} for name in graphs
    }
    order = list(graphs)
    for repeat in range(-args.warmup, args.repeats):
        for batch in args.batch:
            prompt = random.integers(1, vocabulary, (batch, args.prompt_tokens))
            for name in order:
                prefill_s, decode_s = graphs[name].times(prompt, args.new_tokens)
                if repeat >= 0:
                    figures = found[name][batch]
                    figures["prefill"].append(batch * args.prompt_tokens / prefill_s)
                    figures["decode"].append(batch * args.new_tokens / decode_s)
        order.append(order.pop(0))
    return found


def _make(args: argparse.Namespace, work: Path) -> tuple[list[Exported], dict[str, str]]:
    """All graphs, and why a peer has none."""
    made, missing = [], {}
    for model, source in (("base", args.base), ("pruned", args.pruned)):
        for exporter in (OURS, THEIRS):
            print(f"exporting {model} with {exporter}", file=sys.stderr)
            target = work / f"{model}-{exporter}"
            try:
                if exporter == THEIRS and not (OPTIMUM / ".ready").exists():
                    raise UsageError("the environment of optimum is not there; see `make optimum`")
                if exporter == THEIRS and args.precision not in ("fp32", "fp16"):
                    raise UsageError(f"optimum exports no {args.precision} here")
                made.append(export(model, source, exporter, target, args.precision))
            except UsageError as error:
                if exporter == OURS:
                    raise
                missing[f"{model}, {exporter}"] = str(error)
    return made, missing


def _optimum_versions() -> dict[str, str]:
    """Of the packages of the other environment, by the names of their folders."""
    found = {}
    for path in OPTIMUM.glob("lib/python*/site-packages/*.dist-info"):
        name, _, version = path.name.removesuffix(".dist-info").rpartition("-")
        if name.replace("_", "-") in PACKAGES:
            found[name.replace("_", "-")] = version
    return dict(sorted(found.items()))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Exports, measures, and returns the report.

    Raises:
        CheckpointError: a directory is no model.
        UsageError: a graph cannot be made.
    """
    vocabulary = Checkpoint(args.pruned).config["vocab_size"]
    Checkpoint(args.base)  # both are there, before anything is exported
    with tempfile.TemporaryDirectory(prefix="onnx-speed-") as name:
        made, missing = _make(args, Path(name))
        graphs = {exported.name: Graph(exported, args.threads) for exported in made}
        print("measuring", file=sys.stderr)
        found = measure(graphs, vocabulary, args)
        described = {
            exported.name: {
                "export_s": exported.seconds,
                "load_s": graphs[exported.name].load_s,
                "nbytes": sum(f.stat().st_size for f in exported.directory.glob("model.onnx*")),
                "nodes": _count_nodes(exported.directory),
                "tokens_per_s": {
                    batch: {phase: asdict(spread(values)) for phase, values in figures.items()}
                    for batch, figures in found[exported.name].items()
                },
            }
            for exported in made
        }
    pairs = {
        "pruned over base": (f"base, {OURS}", f"pruned, {OURS}"),
        "prunecomp over optimum, pruned": (f"pruned, {THEIRS}", f"pruned, {OURS}"),
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "settings": {
            key: str(value) if isinstance(value, Path) else value
            for key, value in vars(args).items()
            if key not in ("output", "base", "pruned")
        },
        "models": {"base": args.base.name, "pruned": args.pruned.name},
        "environment": asdict(environment()) | {"optimum": _optimum_versions()},
        "graphs": described,
        "without": missing,
        "speedup": {
            title: {
                batch: {
                    phase: asdict(
                        speedup(found[a][batch][phase], found[b][batch][phase], rate=True)
                    )
                    for phase in ("prefill", "decode")
                }
                for batch in args.batch
            }
            for title, (a, b) in pairs.items()
            if a in found and b in found
        },
    }


def table(report: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    asked = report["settings"]
    lines = [
        f"{asked['prompt_tokens']} tokens of prompt, {asked['new_tokens']} new ones, "
        f"{asked['precision']}, {asked['threads'] or 'all'} threads, median of "
        f"{asked['repeats']} (smallest to largest)",
        "",
        "| graph | batch | prefill, tokens/s | decode, tokens/s | export, s | load, s | MB "
        "| nodes |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, graph in report["graphs"].items():
        for batch, figures in graph["tokens_per_s"].items():
            cells = [
                f"{s['median']:.1f} ({s['low']:.1f} to {s['high']:.1f})"
                for s in (figures["prefill"], figures["decode"])
            ]
            lines.append(
                f"| {name} | {batch} | {cells[0]} | {cells[1]} | {graph['export_s']:.1f} "
                f"| {graph['load_s']:.2f} | {graph['nbytes'] / 1e6:.1f} | {graph['nodes']} |"
            )
    lines += [
        "",
        "| ratio, by pairs of a repeat | batch | prefill | decode |",
        "|---|---:|---:|---:|",
    ]
    for title, batches in report["speedup"].items():
        for batch, phases in batches.items():
            cells = [
                f"{r['value']:.2f} ({r['low']:.2f} to {r['high']:.2f})"
                for r in (phases["prefill"], phases["decode"])
            ]
            lines.append(f"| {title} | {batch} | {cells[0]} | {cells[1]} |")
    lines += [f"\nwithout {name}: {why}" for name, why in report["without"].items()]
    return "\n".join(lines)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.onnx_speed", description=__doc__.split("\n")[0])
    parser.add_argument("base", type=Path, help="model directory")
    parser.add_argument("pruned", type=Path, help="the same model with fewer layers")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16", "int8"), default="fp32")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=2, help="unmeasured repeats (default: 2)")
    parser.add_argument("--threads", type=int, default=0, help="of ONNX Runtime (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints the table, and writes the JSON file."""
    args = _arguments(argv)
    report = run(args)
    print(table(report))
    if args.output:
        write_text(args.output, json.dumps(report, indent=1) + "\n", overwrite=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

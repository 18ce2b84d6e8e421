"""What choosing layers costs: one plain forward, the published procedure, and ours, side by side.

    python -m bench.compress_speed --output bench/results/compress_speed.json
    python -m bench.compress_speed --model examples/tiny-python-lm --samples 16 --seq-len 512
    python -m bench.compress_speed --scaling docs/compress_scaling.svg --output ...

Every measurement is a process of its own, on the same model, tokens and threads; the kinds take
turns, and medians are compared. Times are without loading. `plain` is the faster of one sample at a
time and of our batch size. The naive taylor runs in float32, as published; all else in ``--dtype``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunecomp.errors import PruneCompError
from prunecomp.pipeline import versions
from prunecomp.progress import Progress

KINDS = ("plain", "naive", "ours")
METRICS = ("bi", "cl", "ppl", "taylor", "mag")


def _worker(kind: str, case: Mapping[str, Any]) -> tuple[str, int]:
    """What `bench.compress_worker` printed, and its peak resident memory in bytes.

    Raises:
        PruneCompError: it failed.
    """
    command = [sys.executable, "-m", "bench.compress_worker", kind, json.dumps(dict(case))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(case["threads"])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise PruneCompError(f"the measurement {kind} failed; its message is above")
    return out.decode(), usage.ru_maxrss * 1024


@contextlib.contextmanager
def _with_model(case: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The case with the directory of its model, which is made where none was named."""
    if case["model"] is not None:
        yield dict(case)
        return
    with tempfile.TemporaryDirectory(prefix="prunecomp-speed-") as folder:
        made = {**case, "model": folder}
        _worker("make", made)
        yield made


def measure(kind: str, case: Mapping[str, Any]) -> dict[str, Any]:
    """One measurement in a process of its own, with its peak resident memory."""
    out, peak_bytes = _worker(kind, case)
    return {**json.loads(out.splitlines()[-1]), "peak_bytes": peak_bytes}


def _median(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The row of median time, with all times."""
    times = sorted(row["time_s"] for row in rows)
    middle = min(rows, key=lambda row: abs(row["time_s"] - statistics.median(times)))
    return {**middle, "times_s": times}


def compare(
    case: Mapping[str, Any], metrics: Sequence[str], repeats: int, progress: Progress
) -> dict[str, Any]:
    """All kinds in turns, `repeats` times; returns the rows with their ratios."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    turns = [(r, m, k) for r in range(repeats) for m in metrics for k in KINDS]
    with _with_model(case) as made:
        for repeat, metric, kind in turns:
            row = measure(kind, {**made, "metric": metric})
            found.setdefault((metric, kind), []).append(row)
            progress.say(f"{repeat + 1}/{repeats} {metric:7} {kind:6} {row['time_s']:9.3f} s")
    rows = []
    for metric in metrics:
        plain, naive, ours = (_median(found[metric, kind]) for kind in KINDS)
        pairs = list(zip(naive["cuts"], ours["cuts"], strict=True))
        rows.append({
            "metric": metric, "plain": plain, "naive": naive, "ours": ours,
            "ours_over_plain": ours["time_s"] / plain["time_s"],
            "naive_over_ours": naive["time_s"] / ours["time_s"],
            "same_layers": all(n["removed"] == o["removed"] for n, o in pairs),
            "largest_factor_difference": max(
                abs(n["factor"] / o["factor"] - 1) for n, o in pairs
            ),
        })  # fmt: skip
    return {"case": dict(case), "rows": rows}


def _fit(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """The straight line of least squares, and the share of the variance that it explains."""
    slope, intercept = statistics.linear_regression(x, y)
    return {"slope": slope, "intercept": intercept, "r2": statistics.correlation(x, y) ** 2}


def scaling(case: Mapping[str, Any], repeats: int, progress: Progress) -> dict[str, Any]:
    """Time of five rounds of BI against depth and against tokens, each with a straight line."""
    found: dict[str, Any] = {}
    for what, cases in {
        "layers": [{**case, "layers": n} for n in (8, 16, 24, 32, 48, 64)],
        "samples": [{**case, "samples": n} for n in (2, 4, 8, 16, 32)],
    }.items():
        times: list[list[float]] = [[] for _ in cases]
        for each, row in zip(cases, times, strict=True):
            with _with_model(each) as made:
                for _ in range(repeats):
                    row.append(measure("ours", {**made, "metric": "bi", "remove": 5})["time_s"])
                    progress.say(f"{what} {each[what]:3}: {row[-1]:9.3f} s")
        x = [each[what] * (case["seq_len"] if what == "samples" else 1) for each in cases]
        middle = [statistics.median(row) for row in times]
        name = "tokens" if what == "samples" else what
        found[name] = {"x": x, "time_s": middle, "times_s": times, **_fit(x, middle)}
    return {"case": dict(case), **found}


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Writes the two curves of `scaling` as an SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3))
    for axis, name in zip(axes, ("layers", "tokens"), strict=True):
        curve = found[name]
        line = [curve["intercept"] + curve["slope"] * x for x in curve["x"]]
        axis.plot(curve["x"], line, color="0.7")
        axis.plot(curve["x"], curve["time_s"], "o", color="C0")
        axis.set(xlabel=name, ylim=(0, None), title=f"R² = {curve['r2']:.4f}")
    axes[0].set_ylabel("five rounds of BI, s")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def table(report: Mapping[str, Any]) -> str:
    """What was compared, as Markdown."""
    lines = [
        "| metric | plain forward, s | naive, s | ours, s | ours / plain | naive / ours "
        "| peak memory naive / ours, MiB | same layers | largest difference of a factor |",
        "|---|---:|---:|---:|---:|---:|---:|---|---:|",
    ]
    for row in report["rows"]:
        peaks = " / ".join(f"{row[kind]['peak_bytes'] / 2**20:.0f}" for kind in ("naive", "ours"))
        lines.append(
            f"| {row['metric']} | {row['plain']['time_s']:.2f} | {row['naive']['time_s']:.2f} "
            f"| {row['ours']['time_s']:.2f} | {row['ours_over_plain']:.2f} "
            f"| {row['naive_over_ours']:.2f} | {peaks} | {'yes' if row['same_layers'] else 'no'} "
            f"| {row['largest_factor_difference']:.1e} |"
        )
    return "\n".join(lines)


def _case(args: argparse.Namespace) -> dict[str, Any]:
    names = ("layers", "hidden_size", "vocab_size", "samples", "seq_len", "dtype", "threads",
             "device", "remove")  # fmt: skip
    model = None if args.model is None else str(args.model.resolve())
    return {"model": model, **{name: getattr(args, name) for name in names}}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench.compress_speed", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--model", type=Path, help="directory (default: a made Llama)")
    parser.add_argument("--layers", type=int, default=24, help="of the made model")
    parser.add_argument("--hidden-size", type=int, default=1024, help="of the made model")
    parser.add_argument("--vocab-size", type=int, default=32000, help="of the made model")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--remove", type=int, help="layers to remove (default: a quarter)")
    parser.add_argument("--metrics", nargs="+", default=METRICS, choices=METRICS)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scaling", type=Path, metavar="SVG", help="cost against depth and tokens")
    parser.add_argument("--output", type=Path, help="JSON file to write, or to add a part to")
    parser.add_argument("--quiet", action="store_true")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measures; returns the exit code."""
    args = _parser().parse_args(argv)
    case, progress = _case(args), Progress(quiet=args.quiet)
    try:
        if args.scaling:
            part = {"scaling": scaling(case, args.repeats, progress)}
            plot(part["scaling"], args.scaling)
            print(json.dumps(part["scaling"], indent=1))
        else:
            name = f"{args.device} {'made' if args.model is None else args.model.name}"
            comparison = compare(case, args.metrics, args.repeats, progress)
            part = {f"comparison, {name}": comparison}
            print(table(comparison))
        if args.output:
            add_part(args.output, part)
    except PruneCompError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def add_part(path: Path, part: Mapping[str, Any]) -> None:
    """Puts a part into the JSON file; what else is there stays."""
    from prunecomp.checkpoint.output import write_text

    document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    document |= {"schema_version": 1, **part, "versions": versions()}
    write_text(path, json.dumps(document, indent=1) + "\n", overwrite=True)


if __name__ == "__main__":
    sys.exit(main())

"""How long ``cli.py export`` takes, and how much memory, against ``cp`` of the same bytes.

    python -m bench.export_speed --output bench/results/export_speed.json

Makes a checkpoint of the shape of Llama 3 8B (bf16, shards of 5 GB, random weights) in a
temporary directory, and exports it as it stands and with a plan that removes 7 layers. A plan goes
with the SHA-256 of the files it was made for; planning has computed them, and they are remembered.
Where they are not, as on another machine, all of the source is hashed on the way: that is measured
as well, without a limit; so is the comparison of a planned model with its source, which all other
cases leave out (``--no-check``). For each case, ``cp -r`` of the very directory that the export
wrote and the export itself run in turns. Every run starts with nothing left to write to the disk,
with its input out of the page cache (``--warm`` leaves it there), and with Python's own packages
in it, for 16 GB drive them out. It ends when the process ends (``seconds``), and when ``sync`` has
returned after that (``synced_seconds``); neither ``cp`` nor the export syncs by itself. The model
is made shallower to fit the free space, unless ``--layers`` says how deep. All of it is removed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from bench import peak
from bench.script import script
from prunecomp.checkpoint.output import write_text
from prunecomp.errors import UsageError
from prunecomp.manifest import versions

ROOT = Path(__file__).resolve().parent.parent
SCHEMA_VERSION = 1
LAYERS, HIDDEN, INTERMEDIATE, VOCABULARY, HEADS, KEY_VALUE_HEADS = 32, 4096, 14336, 128256, 32, 8
HEAD_DIM = HIDDEN // HEADS
SHARD_BYTES = 5 * 10**9
REMOVED = 7
#: Source, the output that is copied, and the copy or the second output; the last two of a plan
#: are smaller, and 5 % are left free.
SPACE = 3.15
LIMIT_RATIO, LIMIT_BYTES = 1.3, 1.5 * 2**30
#: Brings what the export will import into the page cache.
PACKAGES = (sys.executable, "-c", "import prunecomp.rewrite, transformers.models.llama as llama; "
            "from transformers import AutoModelForCausalLM; llama.LlamaForCausalLM")  # fmt: skip
HASHED = "plan, downstream, source hashed on the way"
COMPARED = "plan, downstream, compared with the source"
CASES = ("as it stands", "plan, downstream", "plan, upstream", HASHED, COMPARED)


@dataclass(frozen=True)
class Run:
    """One process: how long it took, and what it held in memory.

    Attributes:
        peak_rss_bytes: resident, with the pages of mapped files.
        peak_anonymous_bytes: of these, what is no page of a file; sampled every 20 ms.
    """

    seconds: float
    synced_seconds: float
    peak_rss_bytes: int
    peak_anonymous_bytes: int


def shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all tensors, in the order in which transformers saves them."""
    width = KEY_VALUE_HEADS * HEAD_DIM
    yield "lm_head.weight", (VOCABULARY, HIDDEN)
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for i in range(layers):
        for name, shape in {
            "input_layernorm": (HIDDEN,), "mlp.down_proj": (HIDDEN, INTERMEDIATE),
            "mlp.gate_proj": (INTERMEDIATE, HIDDEN), "mlp.up_proj": (INTERMEDIATE, HIDDEN),
            "post_attention_layernorm": (HIDDEN,), "self_attn.k_proj": (width, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN), "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.v_proj": (width, HIDDEN),
        }.items():  # fmt: skip
            yield f"model.layers.{i}.{name}.weight", shape
    yield "model.norm.weight", (HIDDEN,)


def nbytes(shape: Sequence[int]) -> int:
    """Of a bf16 tensor."""
    size = 2
    for length in shape:
        size *= length
    return size


def weight_bytes(layers: int) -> int:
    """Of all tensors."""
    return sum(nbytes(shape) for _, shape in shapes(layers))


def layers_that_fit(free_bytes: int) -> int:
    """How deep the checkpoint may be for everything to fit.

    Raises:
        UsageError: not even the smallest fits.
    """
    fitting = [n for n in range(2, LAYERS + 1) if SPACE * weight_bytes(n) < free_bytes]
    if not fitting:
        raise UsageError(
            f"{free_bytes / 1e9:.0f} GB are free, {SPACE * weight_bytes(2) / 1e9:.0f} GB needed; "
            "name another place with --directory"
        )
    return fitting[-1]


def make_checkpoint(directory: Path, layers: int) -> None:
    """Writes random weights as a stream: one block of 64 MB, over and over."""
    import torch

    torch.manual_seed(0)
    block = (torch.randn(32 << 20) * 0.02).to(torch.bfloat16).view(torch.uint8).numpy()
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    used = 0
    for name, shape in shapes(layers):
        if used + nbytes(shape) > SHARD_BYTES:
            shards.append({})
            used = 0
        shards[-1][name] = shape
        used += nbytes(shape)
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(directory / file, dict(sorted(shard.items())), memoryview(block))
        weight_map.update(dict.fromkeys(shard, file))
    index = {"metadata": {"total_size": weight_bytes(layers)}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (directory / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
        "num_hidden_layers": layers, "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE,
        "vocab_size": VOCABULARY, "num_attention_heads": HEADS, "rms_norm_eps": 1e-5,
        "num_key_value_heads": KEY_VALUE_HEADS, "tie_word_embeddings": False,
        "max_position_embeddings": 8192, "rope_theta": 500000.0,
    }, indent=2))  # fmt: skip


def _write_shard(path: Path, shard: Mapping[str, tuple[int, ...]], block: memoryview) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shard.items():
        begin, end = end, end + nbytes(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        while end:
            end -= file.write(block[: min(end, len(block))])


def write_plan(model: Path, layers: int, fold: str, path: Path) -> None:
    """A plan that removes 7 layers (a quarter of a shallower model) one by one, from the back."""
    from prunecomp.checkpoint.reader import Checkpoint
    from prunecomp.plan import CalibrationRecord, PrunePlan, Recipe, SourceModel
    from prunecomp.rounds import PruneRound, RemoveSpan, Scale

    count = min(REMOVED, max(1, layers // 4))
    last = max(layers - 7, count)  # published for Llama 3 8B: 25 first, then its neighbours
    rounds = [
        PruneRound(RemoveSpan((last - 1 - i,)), Scale(1.1), {last - 1 - i: 0.1})
        for i in range(count)
    ]
    plan = PrunePlan(
        SourceModel("made", "llama", layers, Checkpoint(model).sha256()),
        Recipe("bi", "iterative", "magnitude", fold, count, 0, 0, "bfloat16", "cpu"),
        CalibrationRecord("made", 1, 1, 0, ""),
        tuple(rounds),
    )
    path.write_text(json.dumps(plan.to_json()))


def evict(directory: Path) -> None:
    """Takes the files of a directory out of the page cache."""
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measured(command: Sequence[str], log: Path, *, cold: Path | None) -> Run:
    """Runs a command from a quiet disk.

    Args:
        cold: directory to take out of the page cache before.

    Raises:
        UsageError: it failed.
    """
    os.sync()
    if cold is not None:  # only now, because pages that are not written yet cannot be dropped
        evict(cold)
    anonymous = [0]
    started = time.perf_counter()
    with log.open("w") as out:
        process, told = peak.start(command, cwd=ROOT, stdout=out, stderr=out)

        def watch() -> None:
            while process.returncode is None:
                with contextlib.suppress(psutil.Error):
                    for child in psutil.Process(process.pid).children():
                        memory = child.memory_info()
                        anonymous[0] = max(anonymous[0], memory.rss - memory.shared)
                time.sleep(0.02)

        watcher = threading.Thread(target=watch)
        watcher.start()
        process.wait()
        ended = time.perf_counter()
        watcher.join()
    peak_bytes = peak.read_peak(told)
    os.sync()
    if process.returncode:
        raise UsageError(f"{' '.join(command)}: failed ({log.read_text().strip()[-500:]})")
    return Run(ended - started, time.perf_counter() - started, peak_bytes, anonymous[0])


def compare(
    work: Path, model: Path, options: Sequence[str], *, repeats: int, warm: bool, forget: bool
) -> dict[str, Any]:
    """Copies and exports in turns; the order changes from one repeat to the next.

    Args:
        forget: what is known of the source's digests, before every export.
    """
    first, second, log = work / "first", work / "second", work / "log"

    def export(output: Path) -> Run:
        command = [sys.executable, "cli.py", "export", str(model), "-q", "-o", str(output)]
        command += ["--max-shard-size", "5GB", *options]
        subprocess.run(PACKAGES, check=True)
        if forget:
            shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)
        return measured(command, log, cold=None if warm else model)

    def copy() -> Run:
        command = ["cp", "-r", str(first), str(second)]
        return measured(command, log, cold=None if warm else first)

    export(first)
    runs: dict[str, list[Run]] = {"cp": [], "export": []}
    for repeat in range(repeats):
        for what in ("cp", "export") if repeat % 2 == 0 else ("export", "cp"):
            runs[what].append(copy() if what == "cp" else export(second))
            shutil.rmtree(second)
    written = sum(path.stat().st_size for path in first.iterdir())
    shutil.rmtree(first)

    def ratio(field: str) -> dict[str, Any]:
        ratios = [
            getattr(e, field) / getattr(c, field)
            for e, c in zip(runs["export"], runs["cp"], strict=True)
        ]
        medians = [statistics.median(getattr(r, field) for r in runs[w]) for w in runs]
        return {"of_medians": medians[1] / medians[0], "of_pairs": ratios}

    return {
        "bytes_written": written,
        "ratio": ratio("seconds"),
        "synced_ratio": ratio("synced_seconds"),
        "peak_rss_bytes": max(run.peak_rss_bytes for run in runs["export"]),
        "peak_anonymous_bytes": max(run.peak_anonymous_bytes for run in runs["export"]),
        "runs": {what: [asdict(run) for run in found] for what, found in runs.items()},
    }


def environment(directory: Path) -> dict[str, Any]:
    """What the figures depend on."""
    partition = max(
        (p for p in psutil.disk_partitions(all=True) if directory.is_relative_to(p.mountpoint)),
        key=lambda p: len(p.mountpoint),
    )
    cp = subprocess.run(["cp", "--version"], capture_output=True, text=True, check=False)
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "file_system": partition.fstype,
        "kernel": platform.release(),
        "cp": cp.stdout.partition("\n")[0],
        **versions(),
    }


def table(report: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        f"{report['layers']} of {LAYERS} layers, {report['weight_bytes'] / 1e9:.1f} GB, "
        f"{report['repeats']} repeats, page cache {report['page_cache']}",
        "",
        "| export | GB written | cp, s | export, s | ratio | ratio with sync | peak RSS, MiB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, case in report["cases"].items():
        cp, export = (
            statistics.median(run["seconds"] for run in case["runs"][what])
            for what in ("cp", "export")
        )
        lines.append(
            f"| {name} | {case['bytes_written'] / 1e9:.2f} | {cp:.1f} | {export:.1f} "
            f"| {case['ratio']['of_medians']:.2f} | {case['synced_ratio']['of_medians']:.2f} "
            f"| {case['peak_rss_bytes'] / 2**20:.0f} |"
        )
    within = "within" if report["within_limits"] else "NOT WITHIN"
    lines += ["", f"{within} the limits: ratio {LIMIT_RATIO}, {LIMIT_BYTES / 2**30} GiB"]
    return "\n".join(lines)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Makes the checkpoint, measures all cases, removes it; returns the report."""
    place = args.directory or Path(tempfile.gettempdir())
    with tempfile.TemporaryDirectory(dir=place, prefix="export-speed-") as name:
        work = Path(name)
        layers = args.layers or layers_that_fit(shutil.disk_usage(work).free)
        size = weight_bytes(layers)
        scaled = "" if layers == LAYERS else f", scaled down from {LAYERS} layers"
        print(f"checkpoint of {layers} layers, {size / 1e9:.1f} GB{scaled}", file=sys.stderr)
        model = work / "model"
        model.mkdir()
        os.environ["XDG_CACHE_HOME"] = str(work / "cache")  # of this script and what it starts
        make_checkpoint(model, layers)
        report: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION, "layers": layers, "weight_bytes": size,
            "repeats": args.repeats, "page_cache": "warm" if args.warm else "cold",
            "environment": environment(work), "cases": {},
        }  # fmt: skip
        for case in args.cases or CASES:
            options: list[str] = []
            if case != CASES[0]:
                write_plan(model, layers, case.split(", ")[1], work / "plan.json")
                options = ["--plan", str(work / "plan.json")]
            if case != COMPARED:
                options.append("--no-check")
            print(case, file=sys.stderr)
            found = compare(
                work, model, options, repeats=args.repeats, warm=args.warm, forget=case == HASHED
            )
            report["cases"][case] = found
    report["within_limits"] = all(
        (case["ratio"]["of_medians"] <= LIMIT_RATIO or name in (HASHED, COMPARED))
        and case["peak_rss_bytes"] < LIMIT_BYTES
        for name, case in report["cases"].items()
    )
    return report


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Measures; returns 0, 4 where a limit is not kept, else as `cli.py`."""
    parser = argparse.ArgumentParser(prog="bench.export_speed", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--directory", type=Path, help="on the disk to measure (default: $TMPDIR)")
    parser.add_argument("--layers", type=int, help=f"depth (default: {LAYERS}, or what fits)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warm", action="store_true", help="leave the input in the page cache")
    parser.add_argument("--cases", nargs="+", choices=CASES, help="some of the cases")
    args = parser.parse_args(argv)
    report = run(args)
    print(table(report))
    if args.output:
        write_text(args.output, json.dumps(report, indent=1) + "\n", overwrite=True)
    return 0 if report["within_limits"] else 4


if __name__ == "__main__":
    sys.exit(main())

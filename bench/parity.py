"""Whether the product decides as the published procedure does: the same layers, the same factors.

    python -m bench.parity MODEL --layers 8 --metrics bi,mag --samples 8

Runs `bench.naive`, the procedure of the papers on stock transformers, and `make_plan` on the same
tokens, both in float32, with iteration and magnitude compensation (with `mag` that is Mag+).
Exit code 4 where a layer differs, or a factor by more than one part in ten thousand.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.script import script
from prunecomp import pipeline
from prunecomp.calibration.data import CalibrationSet, save_tokens
from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.commands.base import model_directory
from prunecomp.console import silence_libraries
from prunecomp.errors import VerificationError
from prunecomp.progress import Progress

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Parity:
    """Both choices by one metric.

    Attributes:
        ours: per round, the removed layers and the factor.
        published: the same of `bench.naive`.
        seconds: of ours and of the published one.
    """

    metric: str
    ours: tuple[tuple[tuple[int, ...], float], ...]
    published: tuple[tuple[tuple[int, ...], float], ...]
    seconds: tuple[float, float]

    @property
    def same_layers(self) -> bool:
        return [cut[0] for cut in self.ours] == [cut[0] for cut in self.published]

    @property
    def largest_difference(self) -> float:
        """Of a factor from that of the same round, as a share of it.

        Not zero, because a product downstream and one upstream are the same but for the epsilon of
        the norms.
        """
        pairs = zip(self.ours, self.published, strict=True)
        return max(abs(a[1] / b[1] - 1) for a, b in pairs)

    @property
    def agrees(self) -> bool:
        return self.same_layers and self.largest_difference <= TOLERANCE

    def to_json(self) -> dict[str, Any]:
        def cuts(found: Any) -> list[dict[str, Any]]:
            return [{"removed": list(removed), "factor": factor} for removed, factor in found]

        return {
            "metric": self.metric, "agrees": self.agrees, "same_layers": self.same_layers,
            "largest_difference": self.largest_difference, "ours": cuts(self.ours),
            "published": cuts(self.published), "seconds": list(self.seconds),
        }  # fmt: skip


def published(path: Path, tokens: CalibrationSet, metric: str, layers: int) -> Any:
    """The naive run; embedding and head are taken apart, because only one of them is scaled."""
    import torch
    from transformers import AutoModelForCausalLM

    from bench.naive import prune

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    model.requires_grad_(False)
    return tuple((c.removed, c.factor) for c in prune(model, tokens.input_ids, metric, layers))


def compare(
    checkpoint: Checkpoint,
    request: pipeline.PlanRequest,
    tokens: CalibrationSet,
    progress: Progress,
) -> Parity:
    """Both choices; `request` says metric and depth, and names `tokens` as a file."""
    start = time.perf_counter()
    plan = pipeline.make_plan(checkpoint, request, name=checkpoint.path.name, progress=progress)
    between = time.perf_counter()
    assert request.layers is not None
    naive = published(checkpoint.path, tokens, request.metric, request.layers)
    seconds = (between - start, time.perf_counter() - between)
    ours = tuple((tuple(r.removed), float(r.factor)) for r in plan.rounds)
    return Parity(request.metric, ours, naive, seconds)


def _lines(found: Parity) -> list[str]:
    layers = " ".join("+".join(map(str, removed)) for removed, _ in found.ours)
    said = "the same layers" if found.same_layers else "OTHER LAYERS"
    return [
        f"{found.metric}: {said}: {layers}",
        f"  published: {' '.join('+'.join(map(str, r)) for r, _ in found.published)}",
        f"  factors:   {' '.join(f'{f:.6f}' for _, f in found.ours)}; largest difference "
        f"{found.largest_difference:.2e}",
        f"  seconds:   {found.seconds[0]:.0f} ours, {found.seconds[1]:.0f} published",
    ]


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Compares; returns the exit code."""
    parser = argparse.ArgumentParser(prog="bench.parity", description=__doc__.split("\n\n")[0])
    parser.add_argument("model", help="model directory, of Llama's layout")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--metrics", default="bi,mag", help="separated by commas")
    parser.add_argument("--calibration", default="python-stdlib")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args(argv)
    silence_libraries(progress=args.quiet)
    checkpoint = Checkpoint(model_directory(args.model, Progress(quiet=args.quiet)))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokens.safetensors"
        common = {"samples": args.samples, "seq_len": args.seq_len, "evaluation": "none"}
        tokens, _ = pipeline.load_texts(
            checkpoint, pipeline.PlanRequest(layers=1, calibration=args.calibration, **common)
        )
        save_tokens(tokens, file)
        for metric in args.metrics.split(","):
            request = pipeline.PlanRequest(
                layers=args.layers, metric=metric, calibration=str(file), dtype="float32", **common
            )
            found.append(compare(checkpoint, request, tokens, Progress(quiet=args.quiet)))
            if not args.json:
                print("\n".join(_lines(found[-1])), flush=True)
    if args.json:
        print(json.dumps({"model": args.model, "tolerance": TOLERANCE,
                          "metrics": [one.to_json() for one in found]}, indent=2))  # fmt: skip
    if wrong := [one.metric for one in found if not one.agrees]:
        raise VerificationError(f"{', '.join(wrong)}: not as published; see above")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The options of a plan, which `compress` and `plan` share, and what both print of it."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from prunecomp.commands.base import print_document
from prunecomp.compensators import COMPENSATORS
from prunecomp.metrics import METRICS

if TYPE_CHECKING:
    from prunecomp.checkpoint.reader import Checkpoint
    from prunecomp.pipeline import PlanRequest
    from prunecomp.plan import PrunePlan, Recipe


def count(text: str) -> int:
    value = int(text)
    if not 1 <= value < 2**31:
        raise argparse.ArgumentTypeError(f"{value} is not a number from 1 to 2^31 - 1")
    return value


def add_request(parser: argparse.ArgumentParser) -> None:
    """The options of a plan; their defaults are those of `PlanRequest`."""
    depth = parser.add_mutually_exclusive_group(required=True)
    depth.add_argument("--layers", type=int, metavar="N", help="how many layers to remove")
    depth.add_argument("--ratio", type=float, metavar="R", help="share of the layers, 0 < R < 1")
    add_all_but_depth(parser)


def add_all_but_depth(parser: argparse.ArgumentParser) -> None:
    """Which layers go, how the gap is repaired, on which text, on which machine."""
    choice = parser.add_argument_group("choice of layers")
    add_metric(choice)
    choice.add_argument(
        "--strategy", choices=["iterative", "one-shot"],
        help="score anew after every removal (default), or rank once",
    )  # fmt: skip
    add_protection(choice)

    repair = parser.add_argument_group("compensation")
    repair.add_argument(
        "--compensation", default="magnitude", metavar="NAME", help=", ".join(COMPENSATORS.names())
    )
    repair.add_argument(
        "--fold", default="downstream", choices=["downstream", "upstream", "auto"],
        help="divide what writes after the cut (default), or multiply what writes before it",
    )  # fmt: skip
    add_text(parser.add_argument_group("calibration"))
    add_machine(parser.add_argument_group("machine"))


def add_metric(group: argparse._ArgumentGroup) -> None:
    """``--metric``."""
    group.add_argument("--metric", default="bi", metavar="NAME", help=", ".join(METRICS.names()))


def add_protection(group: argparse._ArgumentGroup) -> None:
    """Which layers are spared."""
    group.add_argument(
        "--protect-first", type=int, metavar="K",
        help="first layers to spare (default: 4 for mag and taylor, else 0)",
    )  # fmt: skip
    group.add_argument(
        "--protect-last", type=int, metavar="K",
        help="last layers to spare (default: 2 for mag and taylor, else 0)",
    )  # fmt: skip


def add_text(text: argparse._ArgumentGroup) -> None:
    """What the model reads."""
    text.add_argument(
        "--calibration", default="python-stdlib", metavar="SOURCE",
        help="python-stdlib, prose, wikitext-2, c4, a .txt, a .jsonl, a .safetensors with "
        "input_ids, or a hub data set OWNER/NAME (default: python-stdlib)",
    )  # fmt: skip
    text.add_argument(
        "--calibration-field", default="text", metavar="KEY", help="field of the text"
    )
    text.add_argument(
        "--chat-field", default="auto", metavar="KEY",
        help="field of the messages of a conversation, which go through the chat template; none "
        "to read text (default: messages or conversations, where they are)",
    )  # fmt: skip
    text.add_argument(
        "--bos", default="auto", choices=["auto", "each", "none"],
        help="what every window begins with: what the tokenizer itself puts in front of a text "
        "(auto, the default), its BOS token in any case (each), or nothing, as in published code "
        "(none); it counts in no mean and no loss; input_ids are taken as they are",
    )  # fmt: skip
    text.add_argument("--calibration-config", metavar="NAME", help="config of a hub data set")
    text.add_argument("--calibration-split", metavar="NAME", help="split (default: train)")
    text.add_argument("--samples", type=int, metavar="N", help="samples (default: 128)")
    text.add_argument(
        "--seq-len", type=int, metavar="T",
        help="tokens per sample (default: 2048, or the model's context if that is shorter)",
    )  # fmt: skip
    text.add_argument("--seed", type=int, default=0, help="of the choice of samples (default: 0)")
    text.add_argument(
        "--evaluation", metavar="SOURCE",
        help="text to measure perplexity on, before and after; none for none (default: the "
        "held-out part of a built-in calibration source)",
    )  # fmt: skip


def add_machine(machine: argparse._ArgumentGroup) -> None:
    """Where the model runs."""
    machine.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    machine.add_argument(
        "--dtype", default="auto",
        help="of the calibration passes: auto (as stored), float32, bfloat16, float16; what is "
        "written keeps the dtype of the source",
    )  # fmt: skip
    machine.add_argument("--batch-size", type=count, metavar="N", help="samples per batch")
    machine.add_argument(
        "--max-memory", metavar="SIZE",
        help="such as 4GiB: of the process, or of the GPU; what does not fit is read from the "
        "files layer by layer (default: what is free)",
    )  # fmt: skip
    machine.add_argument(
        "--device-map", choices=["auto"], help="spread the layers over all GPUs that are there"
    )
    machine.add_argument(
        "--exact-prefix", action="store_true",
        help="with --fold upstream: run the layers before a cut again, instead of scaling what "
        "they gave",
    )  # fmt: skip


def request_of(args: argparse.Namespace) -> PlanRequest:
    """What the user asks of a plan; a command may offer fewer options than `PlanRequest` has."""
    from prunecomp.pipeline import PlanRequest

    names = [field.name for field in dataclasses.fields(PlanRequest) if hasattr(args, field.name)]
    return PlanRequest(**{name: getattr(args, name) for name in names})


def plan_lines(plan: PrunePlan) -> list[str]:
    """A plan, to read."""
    lines = [
        f"removed  {', '.join(map(str, plan.removed))}  (of {plan.source.num_hidden_layers})",
        f"kept     {', '.join(map(str, plan.kept))}",
        "round    " + "  ".join(
            f"{'+'.join(map(str, r.removed))}: x{r.factor:.4f}" for r in plan.rounds
        ),
    ]  # fmt: skip
    for text, values in plan.perplexity.items():
        pruned = f"{values['pruned']:.3f}" if "pruned" in values else "not measured at this depth"
        lines.append(f"perplexity, {text}: {values['base']:.3f} -> {pruned}")
    return lines


def _written_lines(written) -> list[str]:
    """What was written, to read."""
    share = written.parameters / written.source_parameters
    return [
        f"parameters {written.source_parameters:,} -> {written.parameters:,} ({share:.1%})",
        f"wrote    {written.output}  ({written.nbytes:,} bytes of weights)",
    ]


def print_written(args: argparse.Namespace, plan, written) -> None:
    """The result of a command that wrote a model."""
    print_document(
        args,
        {"plan": plan.to_json(), "written": written.to_json()},
        plan_lines(plan) + _written_lines(written),
    )


def print_dry_run(args: argparse.Namespace, checkpoint: Checkpoint, recipe: Recipe) -> None:
    """What would be done; the text is read, the model is not."""
    from prunecomp.pipeline import load_texts

    calibration, _ = load_texts(checkpoint, request_of(args))
    samples, seq_len = calibration.input_ids.shape
    document = {
        "dry_run": True,
        "model": str(checkpoint.home),
        "model_type": checkpoint.family.model_type,
        "num_hidden_layers": checkpoint.num_hidden_layers,
        "tied": checkpoint.tied,
        "recipe": dataclasses.asdict(recipe),
        "calibration": {
            "source": args.calibration,
            "samples": samples,
            "seq_len": seq_len,
            "bos": calibration.bos,
            "prefix": list(calibration.prefix),
            "chat": calibration.chat,
        },
        "bytes_to_read": checkpoint.index.nbytes,
        "output": str(args.output),
    }
    print_document(args, document, [
        f"would remove {recipe.num_removed} of {checkpoint.num_hidden_layers} layers of "
        f"{checkpoint.home} ({checkpoint.family.model_type}, "
        f"{checkpoint.dense.parameters(checkpoint.index):,} parameters)",
        f"by {recipe.metric}, {recipe.strategy}, compensation {recipe.compensation}, "
        f"folded {recipe.fold}",
        f"on {samples} x {seq_len} tokens of {args.calibration}, {recipe.dtype} on {recipe.device}",
        f"and write {args.output}",
    ])  # fmt: skip

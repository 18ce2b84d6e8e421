"""``inspect``: what a compression would do to this very model, and need."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from prunecomp.commands._request import (
    add_machine,
    add_metric,
    add_protection,
    add_text,
    request_of,
)
from prunecomp.commands.base import MODEL_HELP, Command, name_of, open_model, print_document
from prunecomp.progress import Progress

EXAMPLES = """\
examples:
  cli.py inspect examples/tiny-python-lm
  cli.py inspect ./Llama-3-8B --metric taylor --samples 10 --json

The options are those of compress: what it reads and where it runs decides what memory it needs.
The text is read, the weights are not.
"""
_INDENT = " " * 14


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=MODEL_HELP)
    choice = parser.add_argument_group("choice of layers")
    add_metric(choice)
    add_protection(choice)
    add_text(parser.add_argument_group("calibration"))
    add_machine(parser.add_argument_group("machine"))


def _size(nbytes: int) -> str:
    unit, name = (1e9, "GB") if nbytes >= 1e9 else (1e6, "MB")
    return f"{nbytes / unit:.2f} {name}"


def _ranges(numbers: Iterable[int]) -> str:
    """``0-3, 6``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _said(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        f"{label:<14}{text}", 100, subsequent_indent=_INDENT, break_on_hyphens=False
    )


def _layer_lines(found: Mapping[str, Any]) -> list[str]:
    removable = found["removable"]
    how = f"{_ranges(removable['layers']) or 'none'} may go, at most {removable['at_most']}"
    if removable["at_once"] > 1:
        how += f", in runs of {removable['at_once']} ({removable['at_once_reason']})"
    lines = _said("layers", how)
    first, last = removable["protected_first"], removable["protected_last"]
    if first or last:
        why = f" ({removable['protected_reason']})" if removable["protected_reason"] else ""
        lines += _said("", f"the first {first} and the last {last} are protected{why}")
    if removable["dropped_always"]:
        gone = _ranges(removable["dropped_always"])
        lines += _said("", f"{gone} only predict ahead, and are dropped in any case")
    return lines


def _fold_lines(found: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, fold in found["folds"].items():
        if not fold["possible"]:
            lines += _said(name, fold["reason"])
            continue
        lines += _said(name, fold["what"] + ":")
        for pattern, count in {**fold["layers"], **fold["outside"]}.items():
            lines.append(f"{_INDENT}{count:>6} x {pattern}")
    return lines


def _memory_lines(memory: Mapping[str, Any]) -> list[str]:
    text = memory["text"]
    run = (
        f"{text['samples']} x {text['seq_len']} tokens of {text['source']}, metric "
        f"{memory['metric']}, {memory['dtype']} on {memory['device']}"
    )
    how = "the whole model" if memory["mode"] == "resident" else "a layer at a time"
    fits = "" if memory["bytes"] <= memory["available_bytes"] else " IT DOES NOT FIT:"
    lines = _said(
        "memory",
        f"about {_size(memory['bytes'])} ({how}; most for {memory['moment']}) for {run};{fits} "
        f"{_size(memory['available_bytes'])} are available now",
    )
    lines += [f"{_INDENT}{_size(size):>10}  {part}" for part, size in memory["parts"].items()]
    if memory["host_bytes"]:
        lines += _said("", f"and about {_size(memory['host_bytes'])} of main memory")
    if "unreadable" in text:
        lines += _said("", f"for a text of that size: {text['unreadable']}")
    return lines


def _converted_lines(found: Mapping[str, Any]) -> list[str]:
    source = found["converted_from"]
    if source is None:
        return []
    types = ", ".join(f"{count} x {name}" for name, count in source["types"].items())
    lossy = ", lossy" if source["lossy"] else ""
    return _said(
        "converted",
        f"from {source['file']}: {source['format'].upper()}, {source['quantization']}{lossy} "
        f"({types}), SHA-256 {source['sha256']}",
    )


def _lines(found: Mapping[str, Any]) -> list[str]:
    dtypes = ", ".join(f"{name} {_size(n)}" for name, n in found["bytes_by_dtype"].items())
    head = "shares the embedding's weight" if found["tied_head"] else "has a weight of its own"
    if found["tied_head"] and found["head_in_files"]:
        head += ", which the files hold a second time"
    verified = found["verified"]
    vllm = ": ".join(x for x in (verified["vllm_status"], verified["vllm_detail"]) if x)
    version = f" {verified['vllm']}" if verified["vllm"] else ""
    return [
        *_said("model", f"{found['path']}: {found['model_type']} ({found['architecture']})"),
        *_said("", f"{found['num_hidden_layers']} layers, width {found['hidden_size']}, "
                   f"vocabulary {found['vocab_size']}"),
        *_said("weights", f"{found['parameters']:,} parameters in {found['tensors']} tensors, "
                          f"{found['weight_files']} file(s): {dtypes}"),
        *_said("quantised", found["quantised"] or "no"),
        *_converted_lines(found),
        *_said("head", head),
        *_layer_lines(found),
        *_fold_lines(found),
        *_said("config", f"rewritten: {', '.join(found['config_fields'])}"),
        *_said("restrictions", "; ".join(found["restrictions"]) or "none"),
        *_said("transformers", f"{verified['transformers']}: conformance tests pass"),
        *_said(f"vLLM{version}", vllm),
        *_memory_lines(found["memory"]),
    ]  # fmt: skip


def _run(args: argparse.Namespace, progress: Progress) -> int:
    from prunecomp.inspection import inspect_model

    checkpoint = open_model(args.model, progress)
    found = inspect_model(checkpoint, request_of(args), name=name_of(args.model), progress=progress)
    print_document(args, found, _lines(found))
    return 0


COMMAND = Command(
    40,
    "tell what a compression would do to a model, and the memory that it would need",
    _add,
    _run,
    EXAMPLES,
)

"""A decoder with key-value cache as ONNX, in the layout that the ecosystem loads.

Inputs ``input_ids, attention_mask, position_ids, past_key_values.N.key, past_key_values.N.value``,
outputs ``logits, present.N.key, present.N.value``; batch and lengths are free, and the past may be
empty. ``docs/onnx.md`` says what is written, at which precision, and how it is checked.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from exporters.base import Exporter, Facts, Source
from prunecomp.errors import UnsupportedModelError, UsageError
from prunecomp.progress import Progress

if TYPE_CHECKING:
    from torch import nn

MODEL_FILE = "model.onnx"
#: What config.json calls the type of each precision's activations and cache.
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "float32", "int8": "float32"}


def _load(source: Path, dtype: str) -> nn.Module:
    """The stock model in memory.

    Raises:
        CheckpointError: transformers cannot load it, or finds weights missing.
    """
    import torch

    from prunecomp.calibration.view import PlannedModel
    from prunecomp.checkpoint.reader import Checkpoint

    device = torch.device("cpu")
    model = PlannedModel(Checkpoint(source), device=device, dtype=getattr(torch, dtype)).model
    if getattr(model.config, "attn_logit_softcapping", None) is not None:
        model.set_attn_implementation("eager")  # PyTorch's fused attention leaves the caps out
    return model


def _write_config(source: Path, target: Path, dtype: str) -> None:
    """The config as it stands, with the type of what is computed, and without remote code."""
    from prunecomp.checkpoint.files import IMPLEMENTATION_KEYS

    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    for key in ("auto_map", *IMPLEMENTATION_KEYS):
        config.pop(key, None)
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _refuse(source: Source, options: argparse.Namespace) -> None:
    """Raises for what can be known before anything is read.

    Raises:
        UsageError: an opset that is not translated to.
        UnsupportedModelError: weights that torch does not multiply as they are.
    """
    from exporters._onnx_graph import OPSETS

    if options.opset not in OPSETS:
        raise UsageError(
            f"--opset {options.opset}: the exporter knows {OPSETS[0]} to {OPSETS[-1]}; "
            "leave it out for the usual one"
        )
    if source.checkpoint.quantized is not None:
        raise UnsupportedModelError(
            f"{source.checkpoint.path}: ONNX export takes unquantised weights; export the "
            "unquantised model, with --precision int8 for weights of eight bits"
        )


def _export(source: Source, target: Path, options: argparse.Namespace, progress: Progress) -> Facts:
    from exporters._genai import ends, write_genai_config
    from exporters._onnx_check import TOLERANCE, check
    from exporters._onnx_graph import quantise, write_graph
    from prunecomp.checkpoint.files import carry_over

    _refuse(source, options)
    precision, path = options.precision, target / MODEL_FILE
    with source.directory(target, progress) as directory:
        progress.say(f"tracing {source.checkpoint.path} in {precision}")
        model = _load(directory, DTYPES[precision])
        tokens = ends(directory, model)
        # one tensor cannot be read both as eight bits and as it is
        share = source.checkpoint.tied and precision != "int8"
        narrow = precision == "bf16"
        write_graph(model, path, opset=options.opset, share=share, narrow=narrow)
        if precision == "int8":
            progress.say("quantising weights to 8 bits")
            quantise(path)
        if precision == "fp16":
            del model  # before the other one is loaded
            model = _load(directory, "float32")
        progress.say("checking against torch")
        difference = check(path, model, precision)
        carry_over(directory, target)
        _write_config(directory, target, DTYPES[precision])
        write_genai_config(target, path, model, tokens)
    return {
        "precision": precision,
        "opset": options.opset,
        "files": sorted(file.name for file in target.iterdir()),
        "nbytes": sum(file.stat().st_size for file in target.glob(MODEL_FILE + "*")),
        "difference": {
            "prefill": difference.prefill,
            "decode": difference.decode,
            "relative": difference.relative,
            "tolerance": TOLERANCE[precision],
        },
    }


def _add(group: argparse._ArgumentGroup) -> None:
    from exporters._onnx_graph import DEFAULT_OPSET

    group.add_argument(
        "--precision", choices=list(DTYPES), default="fp32",
        help="of the weights; fp16 also computes in it (default: fp32)",
    )  # fmt: skip
    group.add_argument(
        "--opset", type=int, default=DEFAULT_OPSET, metavar="N",
        help=f"version of ONNX's operators (default: {DEFAULT_OPSET})",
    )  # fmt: skip


EXPORTER = Exporter("decoder with key-value cache, for ONNX Runtime", _add, _export, "onnx")

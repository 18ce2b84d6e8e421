"""How much memory a compression will need, from counted things; see docs/memory.md.

Letters: n samples per batch, t tokens per sample, d width of the stream, b bytes per element of
the compute dtype. All sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import nn

from prunecomp.calibration.cache import ActivationCache
from prunecomp.calibration.losses import positions_at_once
from prunecomp.calibration.runner import BATCH_TOKENS, default_cache_bytes

#: Live tensors of the stream's width in one layer: residual, norm in fp32, q, k, v, output.
STREAMS = 8
#: Live tensors of the inner width: gate, up, activation, product.
INNER = 4
#: Freed blocks below this stay with the C allocator (the largest M_MMAP_THRESHOLD of glibc).
KEPT_BLOCK = 32 << 20
#: Config keys of the inner width, and of how many experts a token meets.
_WIDTHS = ("intermediate_size", "moe_intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")
_EXPERTS = ("num_experts_per_tok", "moe_k", "moe_topk")


@dataclass(frozen=True)
class Workload:
    """What runs, besides the model itself.

    Attributes:
        samples: of the calibration text.
        seq_len: tokens per sample.
        evaluation_samples: of the evaluation text; 0 where there is none.
        batch_size: samples per batch; None for the default.
        block: whether the metric compares boundaries that are a block of layers apart.
        gradients: whether the metric asks for gradients.
    """

    samples: int
    seq_len: int
    evaluation_samples: int = 0
    batch_size: int | None = None
    block: bool = False
    gradients: bool = False

    @property
    def batch(self) -> int:
        """Samples per batch, as `Runner` cuts them."""
        return min(self.samples, self.batch_size or max(1, BATCH_TOKENS // self.seq_len))


@dataclass(frozen=True)
class Files:
    """How loading uses the weight files.

    Attributes:
        mapped: bytes of the tensors that are mapped into memory and used as they are.
        converted: of those from which weights are computed: of another dtype, or put together.
        held: of the latter, in files that stay open because others of their tensors are mapped.
    """

    mapped: int = 0
    converted: int = 0
    held: int = 0


@dataclass(frozen=True)
class Estimate:
    """The largest moment of a compression.

    Attributes:
        device: where the model runs.
        moment: ``loading``, ``layers``, ``logits`` or ``gradients``.
        parts: what is there then, by name.
        moments: the total at each moment.
        host: main memory, where the device has memory of its own.
        available: memory of the device that is available now.
    """

    device: str
    moment: str
    parts: dict[str, int]
    moments: dict[str, int]
    host: int | None
    available: int

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def resident() -> int:
    """What this process holds now: interpreter, torch, transformers and the text."""
    return psutil.Process().memory_info().rss


def _numbers(config: Any, keys: Iterable[str]) -> list[int]:
    found = (getattr(config, key, None) for key in keys)
    flat = (v for value in found for v in (value if isinstance(value, list) else [value]))
    return [v for v in flat if isinstance(v, int)]


def _layer_blocks(model: nn.Module, load: Workload, b: int) -> list[int]:
    """Sizes of the tensors that live while a batch goes through one layer."""
    config, n, t = model.config, load.batch, load.seq_len
    heads = max(_numbers(config, ["num_attention_heads"]), default=1)
    head = max(_numbers(config, ["head_dim"]), default=0)
    stream = n * t * b * max(config.hidden_size, heads * head)
    width = max(_numbers(config, _WIDTHS), default=4 * config.hidden_size)
    if experts := _numbers(config, _EXPERTS):
        routed = max(_numbers(config, ["moe_intermediate_size"]), default=width)
        width = max(width, routed * max(experts))
    blocks = [stream] * STREAMS + [n * t * b * width] * INNER
    if getattr(config, "_attn_implementation", "") == "eager":
        scores = n * heads * t * t
        blocks += [scores * b] * 3 + [scores * 4]  # product, masked, cast back; softmax in fp32
    if states := _numbers(config, ["state_size"]):
        blocks += [n * t * width * max(states) * 4] * 3  # a state per token, in fp32
    return blocks


def _logits(vocabulary: int, load: Workload, b: int, device: str) -> int:
    """Logits that exist at once as computed."""
    step = positions_at_once(vocabulary, load.batch, device)
    return vocabulary * load.batch * min(step, load.seq_len - 1) * b


def _cache(depth: int, boundary: int, load: Workload, budget: int) -> int:
    """Boundaries that are kept, and those that move where not all are."""
    stride = ActivationCache(
        boundaries=depth + 1, bytes_per_boundary=boundary, budget=budget
    ).stride
    apart = depth // 4 if load.block else 1
    moving = 0 if stride == 1 else 2 + apart
    return boundary * min(depth + 1, depth // stride + 1 + moving)


def estimate(
    model: nn.Module,
    load: Workload,
    *,
    files: Files,
    device: torch.device,
    dtype: torch.dtype,
    depth: int,
    layer_numel: int,
) -> Estimate:
    """The memory of a compression of `model`, which is on the meta device.

    To be called when everything is imported and the text is read, for the base is measured.

    Args:
        model: of transformers' class.
        load: what runs.
        files: how the weights come into memory.
        device: where the model will run.
        dtype: the compute dtype.
        depth: number of layers.
        layer_numel: parameters of the largest layer.
    """
    base, b, host = resident(), dtype.itemsize, device.type == "cpu"
    libraries = {"interpreter, libraries, text": base} if host else {}
    weights = sum(p.numel() for p in model.parameters()) * b
    per_sample = load.seq_len * model.config.hidden_size * b
    boundary = load.samples * per_sample
    # Weights that are mapped from files do not lessen what is available; others will.
    budget = default_cache_bytes(device) - (weights - files.mapped * host) // 3
    blocks = _layer_blocks(model, load, b)
    # CUDA's allocator keeps all blocks that are freed, the C library the smaller ones.
    kept = sum(block for block in blocks if not host or block < KEPT_BLOCK)
    always = {
        **libraries,
        "weights": weights,
        "files that stay open": files.held * host,
        "activation cache": _cache(depth, boundary, load, max(0, budget)),
    }
    evaluation = load.evaluation_samples * per_sample
    logits = _logits(model.config.vocab_size, load, b, device.type)
    moments = {
        "loading": {
            **libraries, "weights": weights, "files, while converted": files.converted * host,
        },
        "layers": {**always, "evaluation": 3 * evaluation, "a layer's temporaries": sum(blocks)},
        "logits": {
            **always, "evaluation": 2 * evaluation, "logits": logits,
            "freed temporaries that the allocator keeps": kept,
        },
    }  # fmt: skip
    if load.gradients:
        moments["gradients"] = {
            **always, "logits and their gradients": logits + logits // 5 * 2,
            "gradients of the stream": boundary, "gradients of a layer": layer_numel * (4 + b),
            "freed temporaries that the allocator keeps": kept,
        }  # fmt: skip
    totals = {moment: sum(parts.values()) for moment, parts in moments.items()}
    largest = max(totals, key=lambda moment: totals[moment])
    return Estimate(
        device=str(device),
        moment=largest,
        parts={name: size for name, size in moments[largest].items() if size},
        moments=totals,
        host=None if host else base + weights + files.converted,
        available=psutil.virtual_memory().available if host else torch.cuda.mem_get_info(device)[0],
    )

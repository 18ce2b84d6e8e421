"""How much memory a compression will need, and how it is to run; see docs/memory.md.

Letters: n samples per batch, t tokens per sample, d width of the stream, b bytes per element of
the compute dtype. All sizes are bytes.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
from torch import nn

from prunecomp.calibration.allocation import HELD, KEPT_BLOCK, KERNEL, KERNELS, prepare
from prunecomp.calibration.cache import ActivationCache, CacheBudget, free_disk
from prunecomp.calibration.detours import bytes_on_device
from prunecomp.calibration.losses import positions_at_once
from prunecomp.calibration.streams import candidates_at_once
from prunecomp.calibration.weights import OUTSIDE, part_of
from prunecomp.checkpoint.parameters import ParameterMap
from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.errors import UsageError

#: Live tensors of the stream's width in one layer: residual, norm in fp32, q, k, v, output.
STREAMS = 8
#: Live tensors of the inner width: gate, up, activation, product.
INNER = 4
#: What allocators hold beyond what is asked of them, and code that is used later.
SLACK = 40 << 20
#: The kernel maps the pages around one that is touched.
READ_AROUND = 64 << 10
#: What the part is called that is outside of the layers.
OUTSIDE_PART = "embeddings and head"
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
        batch_size: samples per batch.
        block: whether the metric compares boundaries that are a block of layers apart.
        gradients: whether the metric asks for gradients.
        logits: whether anything asks for losses.
        candidates: layers in each candidate that is left out to get its loss; 0 where none is.
        again: whether that is done in more than one round.
        reading: bytes that reading and tokenising the text take at once.
    """

    samples: int
    seq_len: int
    evaluation_samples: int = 0
    batch_size: int = 1
    block: bool = False
    gradients: bool = False
    logits: bool = True
    candidates: int = 0
    again: bool = False
    reading: int = 0

    @property
    def batch(self) -> int:
        """Samples per batch, as `Runner` cuts them."""
        return min(self.samples, self.batch_size)


@dataclass(frozen=True)
class PartUse:
    """What one layer, or all that is outside of the layers, takes when it is in memory.

    Attributes:
        weights: bytes of its parameters; of those that are mapped from files, pages of the files.
        converted: bytes of the files that are there while parameters are computed from them.
        held: of the latter, in files that stay mapped because other tensors of them are.
        numel: number of parameters.
        largest: parameters in its largest tensor.
    """

    weights: int = 0
    converted: int = 0
    held: int = 0
    numel: int = 0
    largest: int = 0


@dataclass(frozen=True)
class Estimate:
    """The largest moment of a compression.

    Attributes:
        device: where the model runs.
        mode: ``resident``, the whole model in memory, or ``streamed``, a layer at a time.
        moment: ``reading``, ``loading``, ``layers``, ``embeddings``, ``logits`` or ``gradients``.
        parts: what is there then, by name.
        moments: the total at each moment.
        host: main memory, where the device has memory of its own.
        available: memory of the device that may be used: what was asked for, or what is free now.
        cache: for activations.
        batch_size: samples per batch.
    """

    device: str
    mode: str
    moment: str
    parts: dict[str, int]
    moments: dict[str, int]
    host: int | None
    available: int
    cache: CacheBudget
    batch_size: int

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def resident(dtype: torch.dtype) -> int:
    """What this process holds now: interpreter, torch, transformers and the text.

    Some tiny operations come first, for the code that they bring into memory is big.
    """
    prepare()
    x = torch.ones(1, 1, 16, 16, dtype=dtype)
    torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)
    torch.nn.functional.linear(x[0], x[0, 0]).float().square().mean(-1)
    torch.nn.functional.cross_entropy(x[0, 0].float(), torch.zeros(16, dtype=torch.long))
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


def part_uses(model: nn.Module, checkpoint: Checkpoint, dtype: torch.dtype) -> dict[int, PartUse]:
    """How each part of `model` comes into memory, from headers alone; see `Weights`."""
    same = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    dense, index = checkpoint.dense, checkpoint.index
    expected = model.state_dict()
    found: dict[int, PartUse] = {}
    in_files: dict[tuple[int, bool], Counter[Any]] = {}
    for group in ParameterMap(model, dense):
        part = part_of(group.target, checkpoint.layers_path)
        specs = [index[name] for n in group.sources for name in dense.sources(n)]
        numels = [math.prod(dense.shape(n)) for n in group.sources]
        as_is = group.converter is None and {spec.dtype for spec in specs} == {same}
        for spec in specs:
            in_files.setdefault((part, as_is), Counter())[spec.file] += spec.nbytes
        old, numel = found.get(part, PartUse()), sum(numels)
        found[part] = replace(
            old, numel=old.numel + numel, largest=max(old.largest, *numels),
            weights=old.weights + numel * expected[group.target].dtype.itemsize,
        )  # fmt: skip
    for part, use in found.items():
        mapped, converted = (in_files.get((part, as_is), Counter()) for as_is in (True, False))
        held = sum(size for file, size in converted.items() if file in mapped)
        found[part] = replace(use, converted=converted.total(), held=held)
    return found


def _touched(
    model: nn.Module, uses: Mapping[int, PartUse], load: Workload, host: bool
) -> dict[int, PartUse]:
    """The uses without pages of the files that nobody reads: most rows of an embedding, a head."""
    outside = uses[OUTSIDE]
    if not host or outside.converted:
        return dict(uses)
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    tied = outside.numel < embedding.numel() + head.numel()  # of the parameters, one counts
    rows = (load.samples + load.evaluation_samples) * load.seq_len * READ_AROUND
    looked_up = min(embedding.nbytes, rows)
    multiplied = head.nbytes * load.logits
    mapped = embedding.nbytes + head.nbytes * (not tied)
    read = max(looked_up, multiplied) if tied else looked_up + multiplied
    return {**uses, OUTSIDE: replace(outside, weights=outside.weights - mapped + read)}


def _always(
    mode: str, uses: Mapping[int, PartUse], b: int, host: bool
) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Weights while layers run, while embeddings and head do, and while they are loaded."""
    layers = [use for part, use in uses.items() if part != OUTSIDE]
    layer, outside = max(use.weights for use in layers), uses[OUTSIDE].weights
    converted = max(use.converted for use in uses.values()) * host
    # Of a tensor that is multiplied, the source and the product: two of fp32, or of what it is in.
    edited = max(use.largest for use in layers) * (8 if converted else 2 * b)
    if mode == "resident":
        weights = {"weights": sum(use.weights for use in uses.values())}
        held = {"files that stay open": sum(use.held for use in uses.values()) * host}
        running = {**weights, **held}
        return running, running, {**weights, "files, while converted": converted}
    held = max(use.held for use in uses.values()) * host
    computed = {"weights that are computed": max(converted, edited) * host}
    # What is fetched ahead counts once it is computed; of files, pages count when they are used.
    at_once = 1 if host and not converted else 2
    running = {"weights of layers at once": at_once * layer + held, **computed}
    return running, {"weights of a layer": layer, OUTSIDE_PART: outside}, running


def _moments(
    model: nn.Module, load: Workload, uses: Mapping[int, PartUse], b: int, device: str, mode: str
) -> dict[str, dict[str, int]]:
    """What is there at each moment, without libraries and cache."""
    host = device == "cpu"
    per_sample = load.seq_len * model.config.hidden_size * b
    boundary, evaluation = load.samples * per_sample, load.evaluation_samples * per_sample
    blocks = _layer_blocks(model, load, b)
    # CUDA's allocator keeps all blocks that are freed, the C library the smaller ones.
    kept = sum(block for block in blocks if not host or block < KEPT_BLOCK)
    logits = _logits(model.config.vocab_size, load, b, device)
    running, ends, loading = _always(mode, uses, b, host)
    # Experts see another number of tokens every time, and what candidates leave behind lives on.
    experts = host and bool(_numbers(model.config, _EXPERTS))
    holes = {
        "holes between temporaries": HELD if experts or (host and load.candidates) else 0,
        "kernels of experts": KERNELS * KERNEL if experts else 0,
    }
    freed = {"freed temporaries that the allocator keeps": kept, **holes}
    layer = {"a layer's temporaries": sum(blocks), **holes}
    reading = max(0, load.reading - SLACK) * host  # code that is used later is not there yet
    moments = {
        "reading": {"text that is read and tokenised": reading},
        "loading": loading,
        "layers": {**running, "evaluation": 3 * evaluation, **layer},
        "embeddings": {**ends, **freed},
    }
    if load.logits:
        moments["logits"] = {**ends, "evaluation": 2 * evaluation, "logits": logits, **freed}
    if load.gradients:
        numel = max(use.numel for part, use in uses.items() if part != OUTSIDE)
        moments["gradients"] = {
            **running, OUTSIDE_PART: ends.get(OUTSIDE_PART, 0),
            "logits and their gradients": logits * 3 + logits // b * 8,
            "gradients of the stream": boundary, "gradients of a layer": numel * (4 + b), **freed,
        }  # fmt: skip
    return moments


def _moving(depth: int, load: Workload) -> int:
    """Boundaries that exist besides those that are kept, where not all are kept."""
    return 2 + (depth // 4 if load.block else 1)


def _cached(depth: int, boundary: int, load: Workload, budget: CacheBudget) -> int:
    """Bytes of boundaries that are kept in the device's memory, and of those that move."""
    kept = budget.device // max(1, boundary)
    return boundary * min(depth + 1, max(1, kept) + (kept <= depth) * _moving(depth, load))


def _candidates(depth: int, boundary: int, load: Workload, budget: CacheBudget, mode: str) -> int:
    """Bytes of the streams of candidates in the device's memory."""
    if not load.candidates:
        return 0
    sizes = {"boundaries": depth + 1, "bytes_per_boundary": max(1, boundary)}
    spare = ActivationCache(**sizes, budget=budget).spare
    moving, left = candidates_at_once(spare, resident=mode == "resident", **sizes)
    kept = bytes_on_device(**sizes, budget=left, width=load.candidates) if load.again else 0
    return kept + (moving - 1) * boundary  # one of them is counted with the boundaries that move


def estimate(
    model: nn.Module,
    load: Workload,
    *,
    uses: Mapping[int, PartUse],
    device: torch.device,
    dtype: torch.dtype,
    depth: int,
    limit: int | None = None,
) -> Estimate:
    """The memory of a compression of `model`, and how it is to be run.

    The whole model is held if it fits; else its layers are read one after the other. To be called
    when everything is imported and the text is read, for the base is measured.

    Args:
        model: of transformers' class; no weights are needed.
        load: what runs.
        uses: of `part_uses`.
        device: where the model will run.
        dtype: the compute dtype.
        depth: number of layers.
        limit: bytes that may be used, on a CPU by the whole process; None for what is free.

    Raises:
        UsageError: a limit was set, and even one layer at a time does not fit.
    """
    uses = _touched(model, uses, load, device.type == "cpu")
    base, b, host = resident(dtype) + SLACK, dtype.itemsize, device.type == "cpu"
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes that torchrun started
    main = psutil.virtual_memory().available // sharing
    free = main if host else torch.cuda.mem_get_info(device)[0]
    room = (free if limit is None else limit) - base * (host and limit is not None)
    boundary = load.samples * load.seq_len * model.config.hidden_size * b
    fewest = _cached(depth, boundary, load, CacheBudget(device=0))

    def needed(mode: str, each: Workload) -> int:
        moments = _moments(model, each, uses, b, device.type, mode)
        return max(sum(parts.values()) for parts in moments.values())

    mode = "resident" if needed("resident", load) + fewest <= room else "streamed"
    while limit is not None and needed(mode, load) + fewest > room and load.batch > 1:
        load = replace(load, batch_size=load.batch // 2)
    need = needed(mode, load)
    if limit is not None and need + fewest > room:
        raise UsageError(
            f"--max-memory {limit / 2**30:.2f}GiB: even with one layer at a time, about "
            f"{(need + fewest + base * host) / 2**30:.2f}GiB are needed; give more, or smaller "
            "--samples or --seq-len"
        )
    share = 1 if limit is not None else 3
    left = max(0, room - need) // share
    if left < boundary * (depth + 1):
        left = max(0, left - boundary * _moving(depth, load))
    cache = CacheBudget(
        device=left,
        host=0 if host else main // 3,
        disk=free_disk(),
    )
    libraries = {"interpreter, libraries, text": base} if host else {}
    kept = {
        "activation cache": _cached(depth, boundary, load, cache),
        "streams of candidates": _candidates(depth, boundary, load, cache, mode),
    }
    moments = _moments(model, load, uses, b, device.type, mode)
    moments = {
        m: {**libraries, **parts, **({} if m in {"reading", "loading"} else kept)}
        for m, parts in moments.items()
    }
    totals = {moment: sum(parts.values()) for moment, parts in moments.items()}
    largest = max(totals, key=lambda moment: totals[moment])
    return Estimate(
        device=str(device), mode=mode, moment=largest,
        parts={name: size for name, size in moments[largest].items() if size}, moments=totals,
        host=None if host else base + max(use.converted for use in uses.values()),
        available=free if limit is None else limit, cache=cache, batch_size=load.batch,
    )  # fmt: skip

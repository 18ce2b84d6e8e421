"""Tiny quantised checkpoints, and what their files stand for, without the package.

compressed-tensors is written and decoded by its own library. GPTQ, AWQ and ``fp8`` are written and
decoded here, number by number, from their specifications.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

GROUP, BLOCK = 8, 16
Parts = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Scheme:
    """One way to store weights.

    `quantise` takes a weight [out, in] to its parts by last name, `decode` takes them back.
    """

    settings: Mapping[str, Any]
    quantise: Callable[[torch.Tensor], Parts]
    decode: Callable[[Parts], torch.Tensor]
    scale: str
    activations: Mapping[str, float] = field(default_factory=dict)


def is_quantised(name: str, tensor: torch.Tensor, skipped: tuple[str, ...]) -> bool:
    """The linear layers inside decoder layers, but for routers."""
    linear = name.endswith("_proj.weight") and ".layers." in name and tensor.ndim == 2
    return linear and name.removesuffix(".weight") not in skipped


def quantise_directory(
    directory: Path, scheme: Scheme, *, skipped: tuple[str, ...] = (), **settings: Any
) -> None:
    """Replaces the weights of a saved model by quantised ones; `settings` are added."""
    file = directory / "model.safetensors"
    out: Parts = {}
    for name, tensor in load_file(file).items():
        if not is_quantised(name, tensor, skipped):
            out[name] = tensor
            continue
        module = name.removesuffix(".weight")
        parts = scheme.quantise(tensor) | {
            last: torch.tensor([value]) for last, value in scheme.activations.items()
        }
        out |= {f"{module}.{last}": part.contiguous() for last, part in parts.items()}
    save_file(out, file, metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {**scheme.settings, **settings}
    (directory / "config.json").write_text(json.dumps(config, indent=2))


def decode_directory(directory: Path, scheme: Scheme, target: Path) -> None:
    """Writes the ordinary model that a quantised directory stands for, in float32."""
    modules: dict[str, Parts] = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        module, _, last = name.rpartition(".")
        modules.setdefault(module, {})[last] = tensor
    dense: Parts = {}
    for module, parts in modules.items():
        if scheme.scale in parts:
            dense[f"{module}.weight"] = scheme.decode(parts)
            parts = {last: t for last, t in parts.items() if last == "bias"}
        dense |= {f"{module}.{last}": t for last, t in parts.items()}
    target.mkdir()
    save_file({n: t.contiguous() for n, t in dense.items()}, target / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    config = json.loads((directory / "config.json").read_text())
    del config["quantization_config"]
    (target / "config.json").write_text(json.dumps(config))


# compressed-tensors, by its own library


def compressed_tensors(
    stored: str, weights: Mapping[str, Any], *, inputs: Mapping[str, Any] | None = None,
    order: bool = False, scale_dtype: torch.dtype = torch.float32,
    activations: Mapping[str, float] | None = None,
) -> Scheme:  # fmt: skip
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.lifecycle.forward import dequantize
    from compressed_tensors.quantization.utils import calculate_qparams

    arguments = QuantizationArgs(**weights)
    library = QuantizationScheme(targets=["Linear"], weights=arguments)
    compressor = BaseCompressor.get_value_from_registry(stored)

    def quantise(weight: torch.Tensor) -> Parts:
        order_of = torch.arange(weight.shape[1]).flip(0) // GROUP if order else None
        pieces = _pieces(weight, arguments, flipped=order)
        scale, zero = calculate_qparams(pieces.amin(-1), pieces.amax(-1), arguments)
        if arguments.strategy == "tensor":
            scale, zero = scale.reshape(1), zero.reshape(1)
        parts = {"weight": weight, "weight_scale": scale.to(scale_dtype),
                 "weight_zero_point": zero}  # fmt: skip
        if order_of is not None:
            parts["weight_g_idx"] = order_of.to(torch.int32)
        return compressor.compress(parts, library)

    def decode(parts: Parts) -> torch.Tensor:
        parts = {**parts, "weight_scale": parts["weight_scale"].float()}
        if arguments.strategy != "block":
            return compressor.decompress(parts, library)["weight"]
        # Its compressor guesses the blocks from the shapes, which fails where they are cut off.
        return dequantize(parts["weight"], parts["weight_scale"], args=arguments)

    group = {
        "targets": ["Linear"],
        "weights": dict(weights),
        "input_activations": None if inputs is None else dict(inputs),
    }
    settings = {
        "quant_method": "compressed-tensors", "format": stored,
        "quantization_status": "compressed", "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }  # fmt: skip
    return Scheme(settings, quantise, decode, "weight_scale", activations or {})


def _pieces(weight: torch.Tensor, arguments: Any, *, flipped: bool) -> torch.Tensor:
    """The values that share a scale, along the last axis."""
    rows, columns = weight.shape
    if arguments.strategy == "tensor":
        return weight.reshape(1, 1, -1)
    if arguments.strategy == "channel":
        return weight.reshape(rows, 1, columns)
    if arguments.strategy == "group":
        ordered = weight.flip(1) if flipped else weight
        return ordered.reshape(rows, columns // GROUP, GROUP)
    padded = torch.zeros(-(-rows // BLOCK) * BLOCK, -(-columns // BLOCK) * BLOCK)
    padded[:rows, :columns] = weight
    blocks = padded.unfold(0, BLOCK, BLOCK).unfold(1, BLOCK, BLOCK)
    return blocks.flatten(2)


# fp8


def fp8(*, block: bool, static: bool = False) -> Scheme:
    """One scale per block of 16 x 16, cut off at the borders, or one per tensor."""
    scale_name = "weight_scale_inv" if block else "weight_scale"
    step = BLOCK if block else 1 << 20

    def each(weight: torch.Tensor):
        rows, columns = weight.shape
        for i in range(0, rows, step):
            for j in range(0, columns, step):
                yield (i // step, j // step), (slice(i, i + step), slice(j, j + step))

    def quantise(weight: torch.Tensor) -> Parts:
        places = dict(each(weight))
        last = max(places)
        scale, codes = torch.zeros(last[0] + 1, last[1] + 1), torch.zeros_like(weight)
        for place, area in places.items():
            scale[place] = weight[area].abs().max() / 448
            codes[area] = weight[area] / scale[place]
        parts = {"weight": codes.to(torch.float8_e4m3fn)}
        return parts | {scale_name: scale if block else scale.reshape(())}

    def decode(parts: Parts) -> torch.Tensor:
        value, scale = parts["weight"].float(), parts[scale_name]
        for place, area in each(value):
            value[area] *= scale[place] if block else scale
        return value

    settings: dict[str, Any] = {
        "quant_method": "fp8", "activation_scheme": "static" if static else "dynamic",
        "modules_to_not_convert": ["lm_head"],
    }  # fmt: skip
    if block:
        settings |= {"fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]}
    return Scheme(settings, quantise, decode, scale_name, {"input_scale": 0.03} if static else {})


# GPTQ and AWQ: both hold the transpose, [in, out], in int32 words


def _words(codes: torch.Tensor, bits: int, order: tuple[int, ...]) -> torch.Tensor:
    """Packs [n, m] along m: the code of place ``order[k]`` goes to the bits from ``k * bits``."""
    rows, columns = codes.shape
    out = torch.zeros(rows, columns // len(order), dtype=torch.int64)
    for k, place in enumerate(order):
        out |= codes[:, place :: len(order)].long() << (bits * k)
    return torch.where(out >= 1 << 31, out - (1 << 32), out).to(torch.int32)


def _codes(words: torch.Tensor, bits: int, order: tuple[int, ...]) -> torch.Tensor:
    rows, columns = words.shape
    out = torch.zeros(rows, columns * len(order), dtype=torch.int64)
    for k, place in enumerate(order):
        out[:, place :: len(order)] = (words.long() & 0xFFFFFFFF) // 2 ** (bits * k) % 2**bits
    return out


def _integers(weight: torch.Tensor, groups: torch.Tensor, bits: int, *, symmetric: bool):
    """Codes, zero points and scales of a transposed weight [in, out], whose rows have `groups`."""
    top, count = (1 << bits) - 1, int(groups.max()) + 1
    scales, zeros = torch.zeros(count, weight.shape[1]), torch.zeros(count, weight.shape[1])
    for g in range(count):
        part = weight[groups == g]
        if symmetric:
            scales[g], zeros[g] = part.abs().amax(0) / (top // 2), (top + 1) // 2
        else:
            scales[g] = (part.amax(0) - part.amin(0)) / top
            zeros[g] = (-part.amin(0) / scales[g]).round().clamp(1, top)
    scales = scales.to(torch.float16)
    codes = (weight / scales.float()[groups] + zeros[groups]).round().clamp(0, top)
    return codes.long(), zeros.long(), scales


def gptq(bits: int, *, version: int = 1, symmetric: bool = True, ordered: bool = False) -> Scheme:
    straight = tuple(range(32 // bits))

    def quantise(weight: torch.Tensor) -> Parts:
        groups = torch.arange(weight.shape[1]) // GROUP
        if ordered:
            groups = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(4))]
        codes, zeros, scales = _integers(weight.T, groups, bits, symmetric=symmetric)
        return {
            "qweight": _words(codes.T, bits, straight).T,
            "qzeros": _words(zeros - int(version == 1), bits, straight),
            "scales": scales, "g_idx": groups.to(torch.int32),
        }  # fmt: skip

    def decode(parts: Parts) -> torch.Tensor:
        codes = _codes(parts["qweight"].T, bits, straight).T
        zeros = _codes(parts["qzeros"], bits, straight) + int(version == 1)
        groups = parts["g_idx"].long()
        return ((codes - zeros[groups]).float() * parts["scales"].float()[groups]).T

    settings = {
        "quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": ordered,
        "sym": symmetric, "lm_head": False,
        "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
    }  # fmt: skip
    return Scheme(settings, quantise, decode, "scales")


AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def awq() -> Scheme:
    def quantise(weight: torch.Tensor) -> Parts:
        groups = torch.arange(weight.shape[1]) // GROUP
        codes, zeros, scales = _integers(weight.T, groups, 4, symmetric=False)
        return {
            "qweight": _words(codes, 4, AWQ_ORDER), "qzeros": _words(zeros, 4, AWQ_ORDER),
            "scales": scales,
        }  # fmt: skip

    def decode(parts: Parts) -> torch.Tensor:
        codes, zeros = _codes(parts["qweight"], 4, AWQ_ORDER), _codes(parts["qzeros"], 4, AWQ_ORDER)
        groups = torch.arange(len(codes)) // GROUP
        return ((codes - zeros[groups]).float() * parts["scales"].float()[groups]).T

    settings = {
        "quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True,
        "version": "gemm", "modules_to_not_convert": None,
    }  # fmt: skip
    return Scheme(settings, quantise, decode, "scales")


INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
FP8 = {**INT8, "type": "float"}
INT4 = {**INT8, "num_bits": 4, "strategy": "group", "group_size": GROUP}
TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
STATIC = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}


def schemes() -> dict[str, Callable[[], Scheme]]:
    """Every scheme by name, made when asked for."""
    ct = compressed_tensors
    return {
        "ct-int8-w8a8": lambda: ct("int-quantized", INT8, inputs=TOKEN),
        "ct-int8-bf16-scales": lambda: ct(
            "int-quantized", INT8, inputs=TOKEN, scale_dtype=torch.bfloat16
        ),
        "ct-fp8-channel": lambda: ct("float-quantized", FP8, inputs={**TOKEN, "type": "float"}),
        "ct-fp8-tensor-static": lambda: ct(
            "float-quantized", {**FP8, "strategy": "tensor"}, inputs=STATIC,
            activations={"input_scale": 0.03},
        ),
        "ct-fp8-block": lambda: ct(
            "float-quantized",
            {**FP8, "strategy": "block", "block_structure": [BLOCK, BLOCK]},
            inputs={**TOKEN, "type": "float"},
        ),
        "ct-fp8-w8a16": lambda: ct("naive-quantized", FP8),
        "ct-w8a16": lambda: ct("pack-quantized", INT8),
        "ct-w4a16": lambda: ct("pack-quantized", INT4),
        "ct-w4a16-asymmetric": lambda: ct("pack-quantized", {**INT4, "symmetric": False}),
        "ct-w4a16-ordered": lambda: ct("pack-quantized", {**INT4, "actorder": "group"}, order=True),
        "fp8-block": lambda: fp8(block=True),
        "fp8-tensor-static": lambda: fp8(block=False, static=True),
        "gptq-4": lambda: gptq(4),
        "gptq-8-ordered": lambda: gptq(8, ordered=True),
        "gptq-4-asymmetric": lambda: gptq(4, symmetric=False),
        "gptq-v2-asymmetric": lambda: gptq(4, version=2, symmetric=False),
        "awq": awq,
    }  # fmt: skip

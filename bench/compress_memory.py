"""Peak memory of `compress` on made checkpoints, against the limit and what `inspect` said.

    python -m bench.compress_memory --shape 8b --output bench/results/compress_memory.json
    python -m bench.compress_memory --shape small medium --max-memory 1GiB
    python -m bench.compress_memory --shape gpt2 mixtral --metric ppl

A checkpoint of the shape is written to a temporary directory, random, of Llama's layout in bfloat16
with one layer per file, of other families as transformers saves it. `compress` runs on it as a user
would start it, plans and writes; all is deleted afterwards. A Llama that does not fit on the disk
together with its result gets fewer layers, and says so.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.compress_speed import add_part, printed_and_peak
from bench.script import script
from prunecomp.errors import PruneCompError
from prunecomp.progress import Progress

ROOT = Path(__file__).parent.parent
#: Llama's config, by size; ``8b`` is Llama-3-8B.
SHAPES: Mapping[str, Mapping[str, int]] = {
    "small": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 12,
              "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 32000},
    "medium": {"hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 16,
               "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 32000},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
           "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip
#: Configs of other families, by name; of the sizes of small models of these.
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "qwen2": {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
              "num_hidden_layers": 12, "num_attention_heads": 14, "num_key_value_heads": 2,
              "vocab_size": 151936, "tie_word_embeddings": True},
    "gemma3": {"model_type": "gemma3_text", "hidden_size": 640, "intermediate_size": 2048,
               "num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1,
               "head_dim": 256, "vocab_size": 262144},
    "gpt2": {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12,
             "vocab_size": 50257, "dtype": "float32"},
    "gpt-neox": {"model_type": "gpt_neox", "hidden_size": 1024, "intermediate_size": 4096,
                 "num_hidden_layers": 16, "num_attention_heads": 16, "vocab_size": 50304},
    "mixtral": {"model_type": "mixtral", "hidden_size": 512, "intermediate_size": 1792,
                "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 2,
                "num_local_experts": 8, "vocab_size": 32000},
    "qwen3-moe": {"model_type": "qwen3_moe", "hidden_size": 512, "intermediate_size": 1536,
                  "moe_intermediate_size": 384, "num_hidden_layers": 8, "num_attention_heads": 8,
                  "num_key_value_heads": 2, "head_dim": 64, "num_experts": 32,
                  "num_experts_per_tok": 4, "vocab_size": 151936},
}  # fmt: skip


def _tensors(shape: Mapping[str, int]) -> tuple[dict[str, tuple[int, ...]], ...]:
    """Names and shapes of one layer's tensors, and of those outside of the layers."""
    d, f, v = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    kv = d // shape["num_attention_heads"] * shape["num_key_value_heads"]
    layer = {
        "input_layernorm": (d,), "post_attention_layernorm": (d,), "self_attn.q_proj": (d, d),
        "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d), "self_attn.o_proj": (d, d),
        "mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f),
    }  # fmt: skip
    return layer, {"model.embed_tokens": (v, d), "model.norm": (d,), "lm_head": (v, d)}


def _nbytes(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return 2 * sum(s[0] * (s[1] if len(s) > 1 else 1) for s in shapes.values())


def make_checkpoint(shape: Mapping[str, int], directory: Path) -> int:
    """Writes it; returns the bytes of its weights."""
    import torch
    from safetensors.torch import save_file

    block = torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)).bfloat16() * 0.02

    def values(name: str, size: tuple[int, ...]) -> torch.Tensor:
        if len(size) == 1:
            return torch.ones(size, dtype=torch.bfloat16)
        numel = size[0] * size[1]
        start = sum(name.encode()) * 4099 % (len(block) // 2)  # so that no two layers are alike
        return block[start:].repeat(-(-numel // (len(block) - start)))[:numel].view(size)

    layer, outside = _tensors(shape)
    parts = [outside] + [
        {f"model.layers.{i}.{name}": size for name, size in layer.items()}
        for i in range(shape["num_hidden_layers"])
    ]
    weight_map = {}
    for number, part in enumerate(parts):
        file = f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"
        tensors = {f"{name}.weight": values(name, size) for name, size in part.items()}
        save_file(tensors, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    size = sum(map(_nbytes, parts))
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", **shape,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, "tie_word_embeddings": False,
        "hidden_act": "silu", "dtype": "bfloat16",
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    return size


def make_of_family(config: Mapping[str, Any], directory: Path) -> int:
    """The same of any family, by transformers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    settings = AutoConfig.for_model(**{"dtype": "bfloat16", **config})
    AutoModelForCausalLM.from_config(settings, dtype=settings.dtype).save_pretrained(directory)
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def _run(arguments: Sequence[str], threads: int) -> tuple[str, int]:
    """What a command of ours printed, and its peak resident memory in bytes.

    Raises:
        PruneCompError: it failed.
    """
    return printed_and_peak([str(ROOT / "cli.py"), *arguments], threads=threads, what=arguments[0])


def _fitted(shape: Mapping[str, int], folder: Path) -> dict[str, int]:
    """The shape with as many layers as fit on the disk twice."""
    layer, outside = _tensors(shape)
    free = shutil.disk_usage(folder).free * 0.9 / 2 - _nbytes(outside)
    layers = min(shape["num_hidden_layers"], int(free // _nbytes(layer)))
    if layers < 4:
        raise PruneCompError(f"{folder}: too little space for this shape; name a smaller one")
    return {**shape, "num_hidden_layers": layers}


def measure(name: str, args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """One shape: what was said, and what was used."""
    import torch
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory(prefix="prunecomp-memory-", dir=args.folder) as folder:
        path = Path(folder)
        (path / "model").mkdir()
        if name in FAMILIES:
            shape = FAMILIES[name]
            size = make_of_family(shape, path / "model")
        else:
            shape = _fitted(SHAPES[name], path)
            size = make_checkpoint(shape, path / "model")
        ids = torch.randint(shape["vocab_size"], (args.samples, args.seq_len),
                            generator=torch.Generator().manual_seed(1))  # fmt: skip
        save_file({"input_ids": ids}, path / "tokens.safetensors")
        layers = shape.get("num_hidden_layers", shape.get("n_layer"))
        progress.say(f"{name}: {layers} layers, {size / 1e9:.2f} GB of weights")
        options = [str(path / "model"), "--calibration", str(path / "tokens.safetensors"),
                   "--metric", args.metric, "--device", "cpu", "--dtype", args.dtype]  # fmt: skip
        if args.no_evaluation:
            options += ["--evaluation", "none"]
        if args.max_memory:
            options += ["--max-memory", args.max_memory]
        told = json.loads(_run(["inspect", *options, "--json"], args.threads)[0])["memory"]
        removal = ["--layers", str(args.remove), "-o", str(path / "out"), "--json"]
        out, used = _run(["compress", *options, *removal], args.threads)
    row = {
        "name": name, "shape": shape, "weight_bytes": size, "samples": args.samples,
        "seq_len": args.seq_len, "metric": args.metric, "dtype": args.dtype,
        "max_memory": args.max_memory, "mode": told["mode"], "told_bytes": told["bytes"],
        "moment": told["moment"], "used_bytes": used, "off": told["bytes"] / used - 1,
        "removed": json.loads(out)["plan"]["removed_layers"],
    }  # fmt: skip
    progress.say(
        f"{name}: {told['mode']}, estimate {told['bytes'] / 2**20:.0f} MiB, "
        f"used {used / 2**20:.0f} MiB ({row['off']:+.1%})"
    )
    return row


def _alike(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether the same was asked of both measurements, so that one replaces the other."""
    asked = ("name", "samples", "seq_len", "metric", "dtype", "max_memory")
    return all(first[key] == second[key] for key in asked)


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Measures; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="bench.compress_memory", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--shape", nargs="+", default=["8b"], choices=[*SHAPES, *FAMILIES])
    parser.add_argument("--max-memory", metavar="SIZE")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--metric", default="bi")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--remove", type=int, default=2, help="layers to remove")
    parser.add_argument("--no-evaluation", action="store_true", help="measure no perplexity")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, help="where checkpoints are made")
    parser.add_argument("--output", type=Path, help="JSON file to write, or to add rows to")
    args = parser.parse_args(argv)
    rows = [measure(name, args, Progress()) for name in args.shape]
    print(json.dumps(rows, indent=1))
    if args.output:
        old = json.loads(args.output.read_text()) if args.output.exists() else {}
        kept = [r for r in old.get("memory", []) if not any(_alike(r, row) for row in rows)]
        add_part(args.output, {"memory": [*kept, *rows]})
    return 0


if __name__ == "__main__":
    sys.exit(main())

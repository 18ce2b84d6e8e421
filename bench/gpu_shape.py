"""Directories of a model's shape, without weights: ``python -m bench.gpu_shape DIR``.

Speed does not depend on the values of weights, so vLLM may make its own (``--load-format dummy``).
Each directory has a config of the reduced depth, and a tokenizer, which the load generator needs to
write its prompts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.script import script
from prunecomp.checkpoint.output import output_directory
from prunecomp.manifest import write_manifest

#: config.json of Llama-3-8B.
LLAMA_3_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "rope_theta": 500000.0, "attention_bias": False, "mlp_bias": False,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 128000,
    "eos_token_id": 128001,
}  # fmt: skip
REMOVED = (0, 5, 7, 9)


def write_tokenizer(directory: Path, size: int) -> None:
    """One word per token id, so that text and tokens turn into each other without loss."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{number}": number for number in range(size)}
    tokenizer = Tokenizer(models.WordLevel(vocab=words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def write_shape(directory: Path, config: dict[str, Any], *, removed: int, overwrite: bool) -> None:
    """A directory of `config` with fewer layers."""
    depth = config["num_hidden_layers"] - removed
    with output_directory(directory, overwrite=overwrite) as partial:
        write_tokenizer(partial, config["vocab_size"])
        (partial / "config.json").write_text(
            json.dumps({**config, "num_hidden_layers": depth}, indent=2) + "\n", encoding="utf-8"
        )
        write_manifest(partial, None)


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Writes ``DIR/base`` and ``DIR/minus-N``; returns the exit code."""
    parser = argparse.ArgumentParser(prog="bench.gpu_shape", description=__doc__.split("\n\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--config", type=Path, help="another config.json (default: Llama-3-8B's)")
    parser.add_argument("--removed", type=int, nargs="+", default=list(REMOVED))
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args(argv)
    config = json.loads(args.config.read_text(encoding="utf-8")) if args.config else LLAMA_3_8B
    for removed in args.removed:
        name = f"minus-{removed}" if removed else "base"
        write_shape(args.directory / name, config, removed=removed, overwrite=args.overwrite)
        print(args.directory / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The files beside the weights: what is carried over, and what is rewritten."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch

from prunecomp.checkpoint.carried import CONFIG_FILE, carried_files
from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

#: How attention and experts are computed is for whoever loads a model to choose, and may need a
#: package or a GPU that is not here.
IMPLEMENTATION_KEYS = (
    "attn_implementation", "_attn_implementation", "_attn_implementation_autoset",
    "experts_implementation", "_experts_implementation",
)  # fmt: skip
#: Of what is carried over, the files that can point at Python code.
_POINTING = ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json")


def carry_over(source: Path, target: Path) -> list[str]:
    """Copies the files of `carried_files`; returns their names, sorted.

    Raises:
        CheckpointError: see `carried_files`.
    """
    names = carried_files(source)
    for name in names:
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, target / name)
    for name in _POINTING:
        _drop_auto_map(target / name)
    return names


def _drop_auto_map(path: Path) -> None:
    """Removes the pointer to Python code, which is not carried over."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return  # absent, or damaged: nothing reads a pointer from it, and weights need none
    if isinstance(config, dict) and config.pop("auto_map", None):
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def stock_config(directory: Path) -> PreTrainedConfig:
    """The config as transformers reads it, less its wishes for how things are computed.

    Raises:
        Exception: transformers does not accept it; of any kind.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    config._attn_implementation = config._experts_implementation = None
    return config


def why_not_built(error: Exception, config: Mapping[str, Any]) -> str:
    """Why transformers could not build a model of a config, in a few words that name the key."""
    if "Padding_idx must be within" in str(error):
        return (
            f"pad_token_id is {config.get('pad_token_id')}, outside the vocabulary: vocab_size is "
            f"{config.get('vocab_size')}"
        )
    return shorten(str(error) or repr(error), width=300, placeholder=" ...")


def resolved_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The config as transformers resolves it: defaults and generated per-layer lists filled in.

    Raises:
        UnsupportedModelError: transformers does not accept the config.
    """
    try:
        config = stock_config(checkpoint.path)
    except Exception as error:  # a config with values of a wrong kind can raise anything in there
        # The reason stands on any of the message's lines; a report takes one.
        reason = shorten(str(error) or repr(error), width=300, placeholder=" ...")
        raise UnsupportedModelError(
            f"{checkpoint.path / CONFIG_FILE}: transformers rejects it ({reason}); correct it"
        ) from error
    return config.to_dict()


def write_config(
    target: Path,
    checkpoint: Checkpoint,
    kept: tuple[int, ...] | None,
    *,
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """Writes the config of the reduced depth and returns it.

    ``auto_map`` is dropped: it points at Python files of the source repository, which are never
    run and not carried over; the stock class is the one that was compressed. So are
    `IMPLEMENTATION_KEYS`, and ``transformers_weights``, as the files have other names now.

    Args:
        kept: layers; None keeps all, and the config as it stands.
        dtype: that the weights were converted to.
    """
    config = dict(checkpoint.config)
    if kept is not None:
        config = checkpoint.family.rewrite_config(config, resolved_config(checkpoint), kept)
        config.update(checkpoint.quantization_settings(kept))
    for key in ("auto_map", "transformers_weights", *IMPLEMENTATION_KEYS):
        config.pop(key, None)
    if dtype is not None:
        keys = [key for key in ("torch_dtype", "dtype") if key in config] or ["dtype"]
        config.update(dict.fromkeys(keys, str(dtype).removeprefix("torch.")))
    (target / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return config

"""The files beside the weights: what is carried over, and what is rewritten."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from prunecomp.checkpoint.reader import CONFIG_FILE, Checkpoint
from prunecomp.errors import UnsupportedModelError

#: Tokenizer, generation defaults, chat templates and licences do not depend on depth. Anything
#: else (other weight formats, training state, Python code) is left behind.
CARRIED = (
    "tokenizer*", "*.tiktoken", "tekken.json", "vocab*", "merges.txt", "*.model",
    "special_tokens_map.json", "added_tokens.json", "generation_config.json",
    "chat_template*", "additional_chat_templates", "LICENSE*", "LICENCE*", "NOTICE*",
    "USE_POLICY*",
)  # fmt: skip


def carry_over(source: Path, target: Path) -> list[str]:
    """Copies what `CARRIED` names; returns the names, sorted. Links are resolved."""
    found = {path.name for pattern in CARRIED for path in source.glob(pattern)}
    names = sorted(name for name in found if not name.endswith(".py"))
    for name in names:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name)
        else:
            shutil.copyfile(source / name, target / name)
    _drop_auto_map(target / "tokenizer_config.json")
    return names


def _drop_auto_map(path: Path) -> None:
    """Removes the pointer to a tokenizer's Python code, which is not carried over."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return  # absent, or damaged: nothing reads a pointer from it, and weights need none
    if isinstance(config, dict) and config.pop("auto_map", None):
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def resolved_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The config as transformers resolves it: defaults and generated per-layer lists filled in.

    Raises:
        UnsupportedModelError: transformers does not accept the config.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=False)
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
    run and not carried over; the stock class is the one that was compressed.

    Args:
        kept: layers; None keeps all, and the config as it stands.
        dtype: that the weights were converted to.
    """
    config = dict(checkpoint.config)
    if kept is not None:
        config = checkpoint.family.rewrite_config(config, resolved_config(checkpoint), kept)
        config.update(checkpoint.quantization_settings(kept))
    config.pop("auto_map", None)
    if dtype is not None:
        keys = [key for key in ("torch_dtype", "dtype") if key in config] or ["dtype"]
        config.update(dict.fromkeys(keys, str(dtype).removeprefix("torch.")))
    (target / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return config

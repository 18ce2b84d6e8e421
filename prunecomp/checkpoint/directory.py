"""What kind of directory was named: a model, or something else that people have.

Only names are looked at, and files of a few bytes, so that all of it is told before anything runs.
"""

from __future__ import annotations

import os
from pathlib import Path

from prunecomp.checkpoint.carried import CONFIG_FILE, carried_files, check_tokenizer
from prunecomp.checkpoint.index import INDEX_FILE, refuse_pointer
from prunecomp.errors import CheckpointError
from prunecomp.json_files import read_settings

ADAPTER_FILE = "adapter_config.json"


def check_directory(path: Path) -> None:
    """Refuses what is not a model directory, or lacks what belongs to the model's use.

    Raises:
        CheckpointError: with what it is instead, and what to do.
        UnsupportedModelError: a part of it needs Python code.
    """
    if not path.is_dir():
        kind = "is not a directory" if path.exists() else "no such directory"
        raise CheckpointError(f"{path}: {kind}; name a model directory with a {CONFIG_FILE}")
    if not os.access(path, os.R_OK | os.X_OK):
        raise CheckpointError(f"{path}: cannot read the directory; check its permissions")
    if not (path / CONFIG_FILE).is_file():
        raise _no_config(path)
    refuse_pointer(path / CONFIG_FILE)
    if (path / ADAPTER_FILE).exists() and not _has_weights(path):
        raise _adapter_alone(path)
    if (path / ADAPTER_FILE).exists():
        raise CheckpointError(
            f"{path}: {_adapter(path)} ({ADAPTER_FILE}) lies beside the model; transformers "
            "applies it, and the result would lose it: delete adapter_*, or move it to DIR and "
            "merge it with PeftModel.from_pretrained(model, DIR).merge_and_unload()"
            ".save_pretrained(NEW)"
        )
    carried_files(path)
    check_tokenizer(path)


def _adapter(path: Path) -> str:
    """What PEFT calls it, such as ``a LORA adapter``."""
    kind = read_settings(path / ADAPTER_FILE).get("peft_type")
    if isinstance(kind, str) and kind != "LORA" and kind.isidentifier():
        return f"a PEFT adapter of type {kind[:40]}"
    return "a LoRA adapter"


def _has_weights(path: Path) -> bool:
    """Whether there are weights of a model; some trainers put its config beside an adapter."""
    patterns = ("*.safetensors", INDEX_FILE, "pytorch_model*.bin")
    found = (file for pattern in patterns for file in path.glob(pattern))
    return any(not file.name.startswith("adapter_") for file in found)


def _adapter_alone(path: Path) -> CheckpointError:
    base = read_settings(path / ADAPTER_FILE).get("base_model_name_or_path")
    of = f" for {base[-60:]!r}" if isinstance(base, str) else ""
    return CheckpointError(
        f"{path}: holds only {_adapter(path)}{of}; merge it with PEFT, AutoPeftModelForCausalLM"
        ".from_pretrained(DIR).merge_and_unload().save_pretrained(NEW), and name NEW"
    )


def _no_config(path: Path) -> CheckpointError:
    """What to say of a directory without config.json."""
    if (path / CONFIG_FILE).is_symlink():
        return CheckpointError(
            f"{path / CONFIG_FILE}: is a dead link; complete the download of what it leads to"
        )
    if (path / ADAPTER_FILE).exists():
        return _adapter_alone(path)
    if (path / "params.json").exists():
        return CheckpointError(
            f"{path}: has no {CONFIG_FILE}, but params.json, as the model's makers publish it; "
            "take the repository of the same model for transformers"
        )
    inside = [*path.glob(f"*/{CONFIG_FILE}"), *path.glob(f"snapshots/*/{CONFIG_FILE}")]
    folders = sorted(str(found.parent.relative_to(path)) for found in inside)
    if folders:
        more = f" (or {len(folders) - 1} other)" if len(folders) > 1 else ""
        return CheckpointError(
            f"{path}: has no {CONFIG_FILE}, its folder {folders[0]} has one{more}; name "
            f"{path / folders[0]}"
        )
    return CheckpointError(f"{path}: has no {CONFIG_FILE}; name a model directory")

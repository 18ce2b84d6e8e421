"""Which files of a model directory go with its weights, whatever layers are left.

Known names only, and only what lies in the directory itself: a link can lead to a private file,
and the result may be pushed to the hub.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from prunecomp.checkpoint.converted import RECORD_FILE
from prunecomp.checkpoint.index import INDEX_FILE, SINGLE_FILE, read_json, refuse_pointer
from prunecomp.errors import CheckpointError, UnsupportedModelError
from prunecomp.json_files import read_settings

CONFIG_FILE = "config.json"
#: Tokenizer, generation defaults, chat templates and what sentence-transformers reads do not
#: depend on depth.
_NAMES = (
    "tokenizer*.json", "tokenizer*.txt", "*.model", "tokenizer.model.v*", "*.tiktoken",
    "tekken.json", "vocab*.json", "vocab*.txt", "vocab*.bpe", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "generation_config.json",
    "chat_template*.json", "chat_template*.jinja", "preprocessor_config.json",
    "processor_config.json", "modules.json", "config_sentence_transformers.json",
    "sentence_*_config.json",
)  # fmt: skip
_LEGAL = re.compile(r"(licen[sc]e|notice|use_policy)[\w.-]*", re.IGNORECASE)
_LEGAL_SUFFIXES = {"", ".txt", ".md", ".rst", ".pdf", ".html"}
TEMPLATES, MODULES_FILE = "additional_chat_templates", "modules.json"
#: What a module of sentence-transformers keeps in its folder: pooling, dense layers.
_MODULE_FILES = (CONFIG_FILE, SINGLE_FILE)
#: Files that are rewritten, or that nobody misses.
_EXPECTED = (
    CONFIG_FILE, "*.safetensors", INDEX_FILE, "README.md", "prunecomp.json", RECORD_FILE, ".*",
    "modeling_*.py", "configuration_*.py",
)  # fmt: skip


def is_carried(name: str) -> bool:
    """Whether a file of this name, at the top of the directory, is carried over."""
    if _LEGAL.fullmatch(name):
        return Path(name).suffix.lower() in _LEGAL_SUFFIXES or name[-1].isdigit()
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _NAMES)


def carried_files(directory: Path) -> list[str]:
    """The files that are carried over, relative to the directory; sorted.

    Raises:
        CheckpointError: one is a dead link, leads out of the directory, or is not what it seems.
        UnsupportedModelError: one needs Python code, which is never carried.
    """
    top = [p.name for p in directory.iterdir() if is_carried(p.name) and not p.is_dir()]
    for name in sorted(top):
        _check(directory, name)
    nested = _inside(directory, TEMPLATES, "*.jinja")
    if MODULES_FILE in top:
        nested += _module_files(directory)
    for name in sorted(nested):
        _check(directory, name)
    return sorted(top + nested)


def left_behind(directory: Path, carried: Iterable[str]) -> list[str]:
    """What else lies in the directory and may be of use; folders end in a slash."""
    known = {name.partition("/")[0] for name in carried}
    return sorted(
        path.name + "/" * path.is_dir()
        for path in directory.iterdir()
        if path.name not in known and not any(fnmatch.fnmatchcase(path.name, p) for p in _EXPECTED)
    )


def _inside(directory: Path, folder: str, *patterns: str) -> list[str]:
    """Files of a folder, as carried names."""
    path = directory / folder
    if path.is_symlink():
        _check_link(directory, folder)
    if not path.is_dir():
        return []
    return [
        f"{folder}/{file.name}" for file in path.iterdir()
        if any(fnmatch.fnmatchcase(file.name, pattern) for pattern in patterns)
    ]  # fmt: skip


def _module_files(directory: Path) -> list[str]:
    """What modules.json of sentence-transformers names: pooling, normalisation, dense layers."""
    where, modules = directory / MODULES_FILE, read_json(directory / MODULES_FILE)
    if not isinstance(modules, list) or not all(isinstance(m, dict) for m in modules):
        raise CheckpointError(f"{where}: is not a list of modules; restore or delete the file")
    found = []
    for module in modules:
        kind, folder = module.get("type"), module.get("path")
        if not isinstance(kind, str) or not kind.startswith("sentence_transformers."):
            raise UnsupportedModelError(
                f"{where}: its module {str(kind)[:60]!r} is Python code of its own, which is not "
                "carried over; delete the file to compress the language model alone"
            )
        if folder in ("", "."):
            continue
        if not isinstance(folder, str) or Path(folder).name != folder or folder == "..":
            raise CheckpointError(
                f"{where}: names {str(folder)[:60]!r}, which is not a folder of this directory; "
                "restore or delete the file"
            )
        files = _inside(directory, folder, *_MODULE_FILES)
        pickles = _inside(directory, folder, "*.bin", "*.pt")
        if pickles and f"{folder}/{SINGLE_FILE}" not in files:
            raise UnsupportedModelError(
                f"{directory / pickles[0]}: is a pickle, which is not carried over; save the "
                "model with sentence-transformers, which writes safetensors"
            )
        found += files
    return found


def _check(directory: Path, name: str) -> None:
    path = directory / name
    _check_link(directory, name)
    if not stat.S_ISREG(path.stat().st_mode):
        raise CheckpointError(f"{path}: is not an ordinary file; replace it, or remove it")
    refuse_pointer(path)


def _check_link(directory: Path, name: str) -> None:
    """Refuses a link that is dead, or leads out of the directory and the hub cache's blobs.

    A snapshot of the cache, ``models--OWNER--NAME/snapshots/REVISION``, holds links to
    ``models--OWNER--NAME/blobs/HASH``.
    """
    path, home = directory / name, Path(os.path.realpath(directory))
    if not path.exists():
        raise CheckpointError(
            f"{path}: is a dead link; complete the download, or remove it if it is not needed"
        )
    target = Path(os.path.realpath(path))
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else None
    if home not in target.parents and (blobs is None or target.parent != blobs):
        raise CheckpointError(
            f"{path}: leads out of the model directory, and its target would become part of the "
            "result; put the file itself there, or remove the link"
        )


def check_tokenizer(directory: Path) -> None:
    """Refuses a tokenizer that only Python code of the directory can make.

    With a tokenizer.json, or for a class of its own, transformers needs no such code.

    Raises:
        UnsupportedModelError: it is one.
    """
    for file in ("tokenizer_config.json", CONFIG_FILE):
        settings = read_settings(directory / file)
        auto_map = settings.get("auto_map")
        named = auto_map.get("AutoTokenizer") if isinstance(auto_map, dict) else None
        classes = named if isinstance(named, list) else [named]
        code = next((name for name in classes if isinstance(name, str)), None)
        if code is None or (directory / "tokenizer.json").exists():
            continue
        if not _is_stock(read_settings(directory / "tokenizer_config.json").get("tokenizer_class")):
            raise UnsupportedModelError(
                f"{directory / file}: the tokenizer needs Python code ({code[:60]}), which is "
                "neither run nor carried over; convert it to a tokenizer.json, or delete auto_map "
                "there, calibrate on tokens, and get a result without a tokenizer"
            )


def _is_stock(name: object) -> bool:
    """Whether transformers has a tokenizer of this class."""
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    return isinstance(name, str) and tokenizer_class_from_name(name) is not None

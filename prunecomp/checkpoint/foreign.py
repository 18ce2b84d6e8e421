"""What in an output directory is not ours, and so never goes, whatever is to be overwritten."""

from __future__ import annotations

import contextlib
import fnmatch
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prunecomp.checkpoint.carried import CONFIG_FILE, TEMPLATES, is_carried
from prunecomp.checkpoint.index import INDEX_FILE, SINGLE_FILE
from prunecomp.errors import UsageError
from prunecomp.json_files import read_settings
from prunecomp.manifest import MANIFEST_FILE

#: What versions wrote, besides what they carried over, whose manifest does not list it.
_WRITTEN = (
    CONFIG_FILE, SINGLE_FILE, "model-*-of-*.safetensors", INDEX_FILE, "README.md", MANIFEST_FILE,
    "model.onnx", "model.onnx.data", "model.onnx_data", "genai_config.json", f"{TEMPLATES}/*.jinja",
)  # fmt: skip
_SHOWN = 3


def refuse_foreign(directory: Path) -> None:
    """Refuses to replace a model directory that holds more than prunecomp wrote into it.

    Raises:
        UsageError: with the names of what is not ours.
    """
    there = [path.name for path in directory.iterdir()]
    if not there:
        return
    manifest = _manifest(directory)
    if manifest is None:
        raise UsageError(
            f"{directory}: --overwrite replaces only what prunecomp wrote, and this directory has "
            f"no {MANIFEST_FILE} of it ({_shown(there)}); choose another --output, "
            "or remove it yourself"
        )
    refuse_others(directory, _ours(manifest))


def remove_ours(
    directory: Path, is_ours: Callable[[str], bool], *, among: Sequence[str] | None = None
) -> None:
    """Removes our files and the folders that are empty then; or nothing, where others have some.

    Args:
        is_ours: of a path relative to the directory.
        among: folders in which there must be none of others; None is the whole directory.

    Raises:
        UsageError: with the names of what is not ours.
    """
    for folder in ("",) if among is None else among:
        inside = directory / folder
        refuse_others(inside, lambda name, folder=folder: is_ours(f"{folder}/{name}".lstrip("/")))
    for root, _, files in os.walk(directory, topdown=False):
        where = Path(root)
        for name in files:
            if is_ours((where / name).relative_to(directory).as_posix()):
                (where / name).unlink()
        with contextlib.suppress(OSError):  # not empty
            where.rmdir()


def refuse_others(directory: Path, is_ours: Callable[[str], bool]) -> None:
    """Refuses to replace a directory that holds files, links or empty folders of others.

    Args:
        is_ours: of a path relative to the directory.

    Raises:
        UsageError: with the names of what is not ours.
    """
    found = _others(directory, is_ours)
    if found:
        raise UsageError(
            f"{directory}: --overwrite replaces only what prunecomp wrote, and this directory also "
            f"holds {_shown(found)}; move that away, or choose another --output"
        )


def _others(directory: Path, is_ours: Callable[[str], bool]) -> list[str]:
    """Entries of a directory, at its top, in which anything is not ours; sorted."""
    found = set()
    for root, folders, files in os.walk(directory):
        inside = Path(root).relative_to(directory)
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        for name in (*files, *links):
            if not is_ours((inside / name).as_posix()):
                found.add((inside / name).parts[0])
        if not folders and not files and inside.parts:
            found.add(inside.parts[0])  # an empty folder, which we never leave
    return sorted(found)


def _manifest(directory: Path) -> dict[str, Any] | None:
    found = read_settings(directory / MANIFEST_FILE)
    return found if "prunecomp" in found else None


def _ours(manifest: dict[str, Any]) -> Callable[[str], bool]:
    listed = manifest.get("files")
    if isinstance(listed, list):
        return {name for name in listed if isinstance(name, str)}.__contains__
    return lambda name: (
        ("/" not in name and is_carried(name))
        or any(
            fnmatch.fnmatchcase(name, pattern) and name.count("/") == pattern.count("/")
            for pattern in _WRITTEN
        )
    )


def _shown(names: Sequence[str]) -> str:
    names = sorted(names)
    short = [name if len(name) <= 40 else name[:37] + "..." for name in names[:_SHOWN]]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(short) + more

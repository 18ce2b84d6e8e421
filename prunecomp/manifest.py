"""``prunecomp.json``: what a written directory says of its own making."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunecomp.errors import PlanError
from prunecomp.plan import PrunePlan, read_plan
from prunecomp.published import published

if TYPE_CHECKING:
    from prunecomp.checkpoint.reader import Checkpoint

MANIFEST_FILE = "prunecomp.json"
MANIFEST_VERSION = 1


def versions() -> dict[str, str]:
    """Versions of what can change a result."""
    found = {"python": platform.python_version()}
    for package in ("prunecomp", "torch", "transformers", "safetensors"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def write_manifest(directory: Path, plan: PrunePlan | None, **facts: Any) -> None:
    """Writes the manifest of `directory`, which is complete but for it.

    It lists all files, so that only these are ever replaced.

    Args:
        plan: what the layers went through, if anything; as `published`, for so is the directory.
        facts: what else there is to say; a plan among them is made public as well.
    """
    shown = {k: published(v).to_json() if isinstance(v, PrunePlan) else v for k, v in facts.items()}
    files = {path.relative_to(directory).as_posix() for path in directory.rglob("*")
             if not path.is_dir()}  # fmt: skip
    document = {
        "schema_version": MANIFEST_VERSION,
        "prunecomp": versions()["prunecomp"],
        "files": sorted(files | {MANIFEST_FILE}),
        **shown,
        **({} if plan is None else {"plan": published(plan).to_json()}),
    }
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    (directory / MANIFEST_FILE).write_text(text, encoding="utf-8")


def converted_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a manifest says of a source that was converted from another format."""
    found = checkpoint.converted
    return {} if found is None else {"converted_from": found.facts()}


def plan_of(directory: Path) -> PrunePlan | None:
    """The plan that a directory was made by; None where it has none, or one that is damaged."""
    try:
        return read_plan(directory / MANIFEST_FILE)
    except PlanError:
        return None

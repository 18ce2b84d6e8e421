"""What a published directory says of where it was made: names, but no folders of a machine."""

from __future__ import annotations

import dataclasses
import re

from prunecomp.hub import cached_repository
from prunecomp.plan import PrunePlan

#: How a plan calls the texts that perplexities belong to, see `prunecomp.pipeline`.
_TEXT = re.compile(r"((?:calibration|evaluation) \()(.*?)((?:, held-out part)?\))", re.DOTALL)


def public_name(name: str) -> str:
    """A path's last part, or the hub repository that it is a snapshot of; other names as they are.

    A name is a path if it is absolute, is said to be relative to some folder, or has more folders
    than ``OWNER/NAME``; or if it ends like a file.
    """
    cached = cached_repository(name)
    if cached is not None:
        return cached
    parts = [part for part in re.split(r"[/\\]", name) if part]
    folders = "\\" in name or len(parts) > 2 or name.startswith(("/", ".", "~"))
    if not parts or not (folders or re.search(r"\.(txt|jsonl|safetensors|gguf)$", name)):
        return name
    return parts[-1]


def model_name(plan: PrunePlan) -> str:
    """What a plan's model is called: ``OWNER/NAME`` on the hub, else its directory's name."""
    name = plan.source.name
    if plan.source.on_hub:
        return name
    found = cached_repository(name) or public_name(name)
    return found if found != name else re.split(r"[/\\]", name.rstrip("/\\"))[-1] or name


def published(plan: PrunePlan) -> PrunePlan:
    """The plan as a published directory has it. Digests say which files were meant."""
    return dataclasses.replace(
        plan,
        source=dataclasses.replace(plan.source, name=model_name(plan)),
        calibration=dataclasses.replace(
            plan.calibration, source=public_name(plan.calibration.source)
        ),
        perplexity={_public_text(text): values for text, values in plan.perplexity.items()},
    )


def _public_text(text: str) -> str:
    found = _TEXT.fullmatch(text)
    return f"{found[1]}{public_name(found[2])}{found[3]}" if found else public_name(text)

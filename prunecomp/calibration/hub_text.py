"""Data sets on the hub, and local ones that the package ``datasets`` reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prunecomp.calibration.tokenizer import reason
from prunecomp.errors import MissingDependencyError, UsageError

#: Built-in names that stand for a data set on the hub: what to calibrate on, and what to evaluate
#: on. WikiText-2's training split is what the pruning literature calibrates on; its rows are
#: lines, joined by blank lines.
HUB_PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "wikitext-2": {
        split: {"path": "Salesforce/wikitext", "name": "wikitext-2-raw-v1", "split": part}
        for split, part in (("train", "train"), ("held-out", "test"))
    },
    "c4": {
        "train": {
            "path": "allenai/c4", "split": "train",
            "data_files": {"train": "en/c4-train.00000-of-01024.json.gz"},
        },
        "held-out": {
            "path": "allenai/c4", "split": "validation",
            "data_files": {"validation": "en/c4-validation.00000-of-00008.json.gz"},
        },
    },
}  # fmt: skip


def hub_rows(
    name: str, *, config: str | None, split: str | None, held_out: bool
) -> Iterator[dict[str, Any]]:
    """The rows of a data set, as far as they are asked for.

    Args:
        name: of `HUB_PRESETS`, a repository, or a local directory.
        held_out: take the evaluation split of a preset.

    Raises:
        MissingDependencyError: the package ``datasets`` is not installed.
        UsageError: the data set cannot be had.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingDependencyError(
            f"{name}: reading a hub data set needs the package datasets; install prunecomp[data]"
        ) from error
    request = {"path": name, "split": "train"}
    if name in HUB_PRESETS:
        request = dict(HUB_PRESETS[name]["held-out" if held_out else "train"])
    if config:
        request["name"] = config
    if split:
        request["split"] = split
    try:
        yield from load_dataset(**request, streaming=True)
    except Exception as error:  # four packages and the network are behind this
        raise UsageError(
            f"{name}: cannot load the data set ({reason(error)}); check its name and the "
            "network, or use a local file"
        ) from error

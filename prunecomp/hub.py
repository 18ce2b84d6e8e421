"""A model's name on the command line -> a local directory."""

from __future__ import annotations

import re
from pathlib import Path

from prunecomp.errors import CheckpointError

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def is_repository(name: str) -> bool:
    """Whether `name` means a repository on the hub: ``OWNER/NAME``, and no such path exists."""
    return (
        not Path(name).exists() and not name.startswith(".") and bool(_REPOSITORY.fullmatch(name))
    )


def local_directory(name: str) -> Path:
    """The directory `name`, or a snapshot of the hub repository ``OWNER/NAME[@REVISION]``.

    Only configs, tokenizers, licences and safetensors are fetched; never Python code.

    Raises:
        CheckpointError: neither a directory nor a repository that can be fetched.
    """
    try:
        if not is_repository(name):
            return Path(name)  # if it is missing, `Checkpoint` says so
    except OSError as error:
        raise CheckpointError(
            f"{name}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from error
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=[
                    "*.json", "*.safetensors", "*.model", "*.tiktoken", "*.jinja", "*.txt",
                    "LICENSE*", "NOTICE*", "USE_POLICY*",
                ],
                # Mistral's repositories hold their weights a second time in these.
                ignore_patterns=["consolidated*.safetensors"],
            )
        )  # fmt: skip
    except Exception as error:  # several packages and the network are behind this
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(
            f"{name}: no such directory, and the hub did not give it ({reason}); check the name "
            "and the network"
        ) from error

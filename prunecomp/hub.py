"""The hub: a model's name on the command line -> a local directory, and a directory -> the hub."""

from __future__ import annotations

import re
from pathlib import Path

from prunecomp.errors import CheckpointError, InterruptedUploadError, PruneCompError, UsageError

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)
#: Where huggingface_hub keeps what it has fetched.
_SNAPSHOT = re.compile(r"models--([\w.-]+)[/\\]snapshots[/\\][0-9a-f]{40}[/\\]?", re.ASCII)


def is_repository_name(name: str) -> bool:
    """Whether `name` has the form ``OWNER/NAME``, with or without ``@REVISION``."""
    return bool(_REPOSITORY.fullmatch(name)) and len(name) <= 200


def cached_repository(path: str) -> str | None:
    """``OWNER/NAME`` of a snapshot in the hub's cache; None for all other paths."""
    folders = re.split(r"[/\\](?=models--)", path)
    found = _SNAPSHOT.fullmatch(folders[-1])
    return found[1].replace("--", "/", 1) if found else None


def is_repository(name: str) -> bool:
    """Whether `name` means a repository on the hub: ``OWNER/NAME``, and no such path exists."""
    return not Path(name).exists() and not name.startswith(".") and is_repository_name(name)


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


def check_upload(repository: str) -> None:
    """Fails before any long work where an upload could not begin.

    Raises:
        UsageError: `repository` is no name of one, or there is no token.
    """
    from huggingface_hub import get_token

    if not is_repository_name(repository) or "@" in repository:
        raise UsageError(f"--push-to-hub {repository}: give the repository as OWNER/NAME")
    if not get_token():
        raise UsageError(
            f"--push-to-hub {repository}: there is no token; run `hf auth login` or set HF_TOKEN"
        )


def upload(directory: Path, repository: str, *, private: bool) -> str:
    """Puts a directory into a hub repository; returns the address of the (last) commit.

    The repository is made if there is none. Where the hub is, and the token, are those that
    huggingface_hub finds (``HF_ENDPOINT``, ``HF_TOKEN``, ``hf auth login``).

    Raises:
        PruneCompError: the hub did not take it; `directory` stays as it is.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=directory, commit_message="Upload by prunecomp"
        )
    except Exception as error:  # several packages and the network are behind this
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise PruneCompError(
            f"{repository}: the hub did not take it ({reason}); {directory} is complete, upload "
            f"it with `hf upload {repository} {directory}`"
        ) from error
    except KeyboardInterrupt as error:
        raise InterruptedUploadError(
            f"interrupted while uploading to {repository}; {directory} is complete"
        ) from error
    return commit.commit_url

"""Tiny GGUF files, and a cache of this very test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import cli, refused, small, text  # noqa: F401
from tests.oracles import gguf_files


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """Where conversions are kept; `refused` sees what is left in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prunecomp" / "gguf"


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory):
    """``tiny_gguf(architecture)``: path and model of one file, shared; not to be changed."""
    made = {}

    def get(architecture: str = "llama", vocabulary=gguf_files.sentencepiece, **options):
        key = (architecture, vocabulary, *sorted(options.items()))
        if key not in made:
            words = vocabulary()
            model = gguf_files.model_of(architecture, words)
            path = tmp_path_factory.mktemp("gguf") / f"tiny-{architecture}.gguf"
            made[key] = gguf_files.write(path, model, architecture, words, **options), model
        return made[key]

    return get

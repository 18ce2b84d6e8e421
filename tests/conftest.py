"""Fixtures for all tests: tiny models of the real classes, written once per session.

Nothing heavy is imported before a fixture is asked for.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run, and no time limit per example on a busy machine.
settings.register_profile("house", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("house")


def pytest_collection_modifyitems(items) -> None:
    """vLLM first: its few modules take longest, and a worker must not be left with them alone."""
    items.sort(key=lambda item: item.get_closest_marker("vllm") is None)


@pytest.fixture(scope="session")
def tiny_model():
    """``tiny_model(name)``: the HF model in memory, shared; work on copies."""
    from tests.oracles import tiny_models

    built = {}

    def get(name: str):
        if name not in built:
            built[name] = tiny_models.build(name)
        return built[name]

    return get


@pytest.fixture(scope="session")
def tiny_directory(tiny_model, tmp_path_factory):
    """``tiny_directory(name)``: the same model as a directory that transformers wrote."""
    from tests.oracles import tiny_models

    root = tmp_path_factory.mktemp("models")

    def get(name: str) -> Path:
        path = root / name
        if not path.exists():
            tiny_models.write(tiny_model(name), path)
        return path

    return get


@pytest.fixture(scope="session")
def tiny_ids():
    """Calibration tokens [samples, tokens] for every tiny model."""
    from tests.oracles import tiny_models

    return tiny_models.tokens()


@pytest.fixture(scope="session")
def tiny_tokens(tiny_ids, tmp_path_factory) -> Path:
    """The same tokens as a ``.safetensors`` file with ``input_ids``."""
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("tokens") / "tokens.safetensors"
    save_file({"input_ids": tiny_ids}, path)
    return path


@pytest.fixture(scope="session")
def text_model(tmp_path_factory) -> Path:
    """A tiny tied Llama with a byte-level tokenizer: one token per byte, and an end-of-text."""
    from tests.oracles import tiny_models

    path = tmp_path_factory.mktemp("text") / "model"
    model = tiny_models.build("llama-tied", vocab_size=257, max_position_embeddings=32)
    tiny_models.write(model, path)
    tiny_models.byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def optimum_python() -> Path:
    """The interpreter of the environment of optimum, which `make test` makes."""
    environment = Path(__file__).parents[1] / ".venv-optimum"
    if not (environment / ".ready").exists():
        pytest.skip("needs the environment of optimum; make it with `make optimum`")
    return environment / "bin" / "python"


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    """Each device that the machine has."""
    import torch

    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return request.param

"""What an engine is: something that generates a given number of tokens for given prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Options:
    """How an engine is to load a model.

    Attributes:
        arguments: of vLLM's server; the other engines look for ``--dtype`` among them.
        context: longest sequence that will be asked for.
        batch: most sequences at once.
        device: ``cpu`` or ``cuda``.
    """

    arguments: tuple[str, ...] = ()
    context: int = 1024
    batch: int = 1
    device: str = "cpu"

    def dtype(self) -> str:
        """The value of ``--dtype``; ``auto`` where it is not given."""
        arguments = [part for a in self.arguments for part in a.split("=", 1)]
        if "--dtype" not in arguments[:-1]:
            return "auto"
        return arguments[arguments.index("--dtype") + 1]


class Session(Protocol):
    """One loaded model."""

    def generate(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, stop: Sequence[int] = ()
    ) -> list[list[int]]:
        """Generates greedily; returns the new tokens of every prompt.

        Args:
            prompts: token ids, all prompts of the same length; one where there is a `stop`.
            new_tokens: of every prompt, end-of-text or not.
            stop: tokens after any of which no more are generated.
        """
        ...

    def kv_cache_tokens(self) -> int | None:
        """How many tokens the KV cache holds; None where it grows as needed."""
        ...


class Engine(Protocol):
    """One engine: a file in this package that ends with an object named ``ENGINE``.

    It runs in a process of its own, one per model. Heavy packages are imported in its functions.

    Attributes:
        summary: one line for people.
    """

    summary: str

    def check(self, model: Path) -> None:
        """Raises `MissingDependencyError` or `UsageError` where it cannot run `model`; is cheap."""
        ...

    def load(self, model: Path, options: Options) -> Session:
        """Loads a model directory."""
        ...


def need(package: str, what: str) -> None:
    """Raises `MissingDependencyError` where a package is not installed.

    Args:
        what: to install instead.
    """
    from importlib.util import find_spec

    from prunecomp.errors import MissingDependencyError

    if find_spec(package) is None:
        raise MissingDependencyError(f"this engine needs {package}; install {what}")

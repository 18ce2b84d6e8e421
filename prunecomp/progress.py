"""Progress on stderr: a bar with the time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Progress:
    """Talks to stderr, or to nobody when `quiet`; stdout is for data."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet

    def say(self, message: str) -> None:
        if not self.quiet:
            print(message, file=sys.stderr, flush=True)

    def bar(self, total: int, description: str, *, unit: str = "it"):
        """A bar with ``update(n)`` and ``close()``, also a context manager.

        Args:
            unit: what is counted; ``"B"`` shows bytes with SI prefixes.
        """
        from tqdm import tqdm

        return tqdm(
            total=total, desc=description, unit=unit, unit_scale=unit == "B", leave=False,
            disable=self.quiet, file=sys.stderr,
            mininterval=0.2 if sys.stderr.isatty() else 10.0,
        )  # fmt: skip

    def track(self, items: Iterable[T], description: str, *, total: int, unit: str) -> Iterator[T]:
        """Iterates with a bar."""
        with self.bar(total, description, unit=unit) as bar:
            for item in items:
                yield item
                bar.update()

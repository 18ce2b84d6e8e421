"""Progress on stderr: a bar with the time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

from prunecomp.errors import printable

T = TypeVar("T")

_LINE_SECONDS = 10.0


class _Lines:
    """What a bar redraws in place, as lines of a log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if text.strip():
            self._stream.write(text.strip() + "\n")

    def flush(self) -> None:
        self._stream.flush()


@functools.cache
def _bar_class() -> type:
    """The bar of tqdm, less its complaint when an interrupt hits its making."""
    from tqdm import tqdm

    class Bar(tqdm):
        def __del__(self) -> None:
            with contextlib.suppress(AttributeError):  # of a bar that was never finished
                super().__del__()

    return Bar


class Progress:
    """Talks to stderr, or to nobody when `quiet` or when stderr is closed; stdout is for data."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet or sys.stderr is None

    def say(self, message: str) -> None:
        if not self.quiet:
            sys.stderr.write(printable(message) + "\n")
            sys.stderr.flush()

    def bar(self, total: int, description: str, *, unit: str = "it"):
        """A bar with ``update(n)`` and ``close()``, also a context manager.

        Args:
            unit: what is counted; ``"B"`` shows bytes with SI prefixes.
        """
        terminal = not self.quiet and sys.stderr.isatty()
        pace = {"mininterval": 0.2} if terminal else {
            "mininterval": _LINE_SECONDS, "maxinterval": _LINE_SECONDS, "delay": _LINE_SECONDS,
        }  # fmt: skip
        return _bar_class()(
            total=total, desc=printable(description), unit=unit, unit_scale=unit == "B",
            leave=False, disable=self.quiet,
            file=sys.stderr if terminal else _Lines(sys.stderr), **pace,
        )  # fmt: skip

    def track(self, items: Iterable[T], description: str, *, total: int, unit: str) -> Iterator[T]:
        """Iterates with a bar."""
        with self.bar(total, description, unit=unit) as bar:
            for item in items:
                yield item
                bar.update()

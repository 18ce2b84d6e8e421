"""Finds implementations by the name of their module, so that adding one takes one new file.

A package such as `prunecomp.metrics` holds one module per metric, and each module ends with one
object under an agreed name, such as ``METRIC``. The module's file name is the name users type,
in some packages with hyphens for its underscores.
Listing the names imports nothing, which keeps ``cli.py --help`` fast.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunecomp.errors import UsageError


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """``; did you mean X?`` for a near miss, else the empty string."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


class Registry:
    """The implementations in one package; modules named ``base`` or ``_...`` are not among them."""

    def __init__(self, package: str, attribute: str, kind: str, *, joint: str = "_") -> None:
        """`joint` stands in names for the underscores of modules."""
        self.package, self.attribute, self.kind = package, attribute, kind
        self._joint = joint

    def names(self) -> list[str]:
        """All names, sorted; nothing is imported beyond the package itself."""
        path = importlib.import_module(self.package).__path__
        found = [info.name for info in pkgutil.iter_modules([str(Path(p)) for p in path])]
        public = (n for n in found if n != "base" and not n.startswith("_"))
        return sorted(n.replace("_", self._joint) for n in public)

    def get(self, name: str) -> Any:
        """The implementation called `name`.

        Raises:
            UsageError: there is none; the message lists those that exist.
        """
        names = self.names()
        if name not in names:
            raise UsageError(
                f"unknown {self.kind} {name!r}{did_you_mean(name, names)} "
                f"(choose from {', '.join(names)})"
            )
        module = importlib.import_module(f"{self.package}.{name.replace(self._joint, '_')}")
        return getattr(module, self.attribute)

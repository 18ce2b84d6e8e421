"""The built-in text source ``python-stdlib``: the running interpreter's own library.

Every machine that runs this project has it, so a real, tokenised corpus is at hand with nothing
to download. It has two disjoint splits, cut along whole modules:

* ``train``: what the tiny models of ``examples/`` were trained on, and calibration text;
* ``held-out``: the modules of `HELD_OUT` and their tests, never trained on; evaluation text.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

Split = Literal["train", "held-out"]

#: Modules kept out of training, whole, with their test modules. Public, ordinary Python code of
#: many styles, present in every supported interpreter; about 7 % of the library's source.
HELD_OUT = frozenset(
    {
        "argparse", "calendar", "configparser", "csv", "dataclasses", "difflib", "fractions",
        "heapq", "json", "pathlib", "queue", "random", "sched", "shutil", "statistics", "string",
        "tempfile", "textwrap", "tomllib", "zipfile",
    }
)  # fmt: skip

#: Not prose or ordinary code: third-party packages, binary modules, character-set tables, and
#: directories of deliberately broken or generated inputs.
_EXCLUDED_DIRECTORIES = frozenset(
    {"site-packages", "dist-packages", "lib-dynload", "__pycache__", "encodings", "data", "_pyrepl"}
)


def _module_of(relative: Path) -> str:
    """The top-level module that a file belongs to; ``test/test_csv.py`` belongs to ``csv``."""
    parts = [part.removesuffix(".py") for part in relative.parts]
    if parts[0] == "test" and len(parts) > 1:
        return parts[1].removeprefix("test_")
    return parts[0]


def _files(root: Path) -> list[Path]:
    found = []
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        if not _EXCLUDED_DIRECTORIES.intersection(relative.parts[:-1]):
            found.append(relative)
    return sorted(found, key=lambda p: p.as_posix())


def documents(
    split: Split, *, with_tests: bool = False, root: Path | None = None
) -> Iterator[tuple[str, str]]:
    """Yields ``(path relative to the library, text)`` in path order.

    `with_tests` adds the interpreter's own test suite, which some distributions leave out; it is
    used for training only, so that calibration and evaluation text does not depend on it. Files
    that are not UTF-8 are skipped: the library keeps a few on purpose, as test inputs.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    for relative in _files(root):
        is_test = any(part in {"test", "tests", "idle_test"} for part in relative.parts[:-1])
        if is_test and not with_tests:
            continue
        if (_module_of(relative) in HELD_OUT) != (split == "held-out"):
            continue
        try:
            text = (root / relative).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if text.strip():
            yield relative.as_posix(), text

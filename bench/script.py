"""How a measuring script ends: as `cli.py` does, with one line for what went wrong."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence

from prunecomp.console import ERROR, shortened
from prunecomp.errors import PruneCompError


def script(
    main: Callable[[Sequence[str] | None], int],
) -> Callable[[Sequence[str] | None], int]:
    """Makes an error of ours a line on stderr and its exit code; ``argv`` may be left out."""

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv)
        except PruneCompError as error:
            print(f"{ERROR}{shortened(str(error))}", file=sys.stderr)
            return error.exit_code

    return run

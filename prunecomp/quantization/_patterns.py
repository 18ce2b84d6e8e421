r"""Patterns from a checkpoint's settings, matched within bounds.

A pattern such as ``(([a-z]+)\\.?)+!`` takes time that doubles with every character of a name, and
nothing stops the standard library once it has begun. Whoever loads the written model uses the same
library, so a pattern that takes too long is refused. One that might is tried in a process of its
own, which the system ends when its time is used up.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable

from prunecomp.errors import UnsupportedModelError, brief
from prunecomp.limits import MAX_PATTERN, PATTERN_SECONDS

#: What can make a pattern match in more than one way: time grows with the length of a name to the
#: power of their number.
_WAYS = re.compile(r"[*+?{(]")
_FEW = 3
#: A group that is repeated: time may grow exponentially.
_REPEATED_GROUP = re.compile(r"\)[*+?{]")

_CHILD = f"""
import json, re, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, ({PATTERN_SECONDS}, {PATTERN_SECONDS}))
pattern, names = json.load(sys.stdin)
match = re.compile(pattern).match
json.dump([name for name in names if match(name)], sys.stdout)
"""


def matching(pattern: str, names: Iterable[str]) -> set[str]:
    """Those of `names` that `pattern` matches from their start; none if it is no pattern.

    Raises:
        UnsupportedModelError: it is too long, too large, or takes too long.
    """
    if len(pattern) > MAX_PATTERN:
        raise UnsupportedModelError(f"the pattern {brief(pattern)} is too long")
    try:
        compiled = re.compile(pattern)
    except re.error:
        return set()
    except (RecursionError, OverflowError, MemoryError) as error:
        raise UnsupportedModelError(f"the pattern {brief(pattern)} is too large") from error
    if len(_WAYS.findall(pattern)) <= _FEW and not _REPEATED_GROUP.search(pattern):
        return {name for name in names if compiled.match(name)}
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _CHILD], input=json.dumps([pattern, list(names)]),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise UnsupportedModelError(
            f"the pattern {brief(pattern)} takes more than {PATTERN_SECONDS} seconds to be matched"
        )
    return set(json.loads(done.stdout))

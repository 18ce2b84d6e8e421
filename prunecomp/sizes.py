"""Sizes in bytes as people write them: one meaning of a unit for all options."""

from __future__ import annotations

import re

from prunecomp.errors import UsageError

_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_bytes(text: str, *, option: str) -> int:
    """A size as a number of bytes: ``4GiB`` and ``4G`` are 4 x 2^30, ``4GB`` is 4 x 10^9.

    Args:
        option: that it was given for, for the message.

    Raises:
        UsageError: it is something else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?)(i?B)?", text.strip(), re.IGNORECASE)
    if found and (found[2] or (found[3] or "B").upper() == "B"):
        base = 1000 if (found[3] or "").upper() == "B" else 1024
        size = float(found[1]) * base ** _POWERS[found[2].upper()]
        if 1 <= size < 2**63:
            return int(size)
    raise UsageError(
        f"{option} {text[:40]}: give a size such as 4GiB (4 x 2^30) or 500MB (500 x 10^6)"
    )

"""What can go wrong, and the exit code that says so.

Every message is one line: what is wrong, where, and what to do about it.
"""

from __future__ import annotations

import reprlib

#: What a signal has ended: 128 + SIGINT, as shells have it.
INTERRUPTED = 130


class PruneCompError(Exception):
    """Base of all expected failures; anything else that escapes is a bug."""

    exit_code = 1


class UsageError(PruneCompError):
    """The request cannot be carried out as it stands: arguments, files, model or text."""

    exit_code = 2


class CheckpointError(UsageError):
    """A model directory is missing, unreadable, damaged or inconsistent."""


class UnsupportedModelError(UsageError):
    """The model is intact, but its architecture or format is not one that can be compressed."""


class PlanError(UsageError):
    """A plan file is malformed, or does not belong to the model that it is applied to."""


class NumericError(PruneCompError):
    """A value became NaN or infinite where that makes the result meaningless."""


class VerificationError(PruneCompError):
    """Something was written, and a check of it failed; nothing of it is kept."""

    exit_code = 4


class ThresholdError(PruneCompError):
    """A measured result misses a limit that was asked for; the report of it is kept."""

    exit_code = 4


class MissingDependencyError(PruneCompError):
    """An optional package is needed for what was asked."""

    exit_code = 5


class InterruptedUploadError(PruneCompError):
    """Interrupted when all that is local was done already."""

    exit_code = INTERRUPTED


class InterruptedRunError(PruneCompError):
    """Ctrl-C or SIGTERM, in a command that keeps what it has finished."""

    exit_code = INTERRUPTED


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_SHORT.maxlevel = 2


def brief(value: object) -> str:
    """`value`, which a file holds, as a message shows it: like `repr`, but never long.

    Control characters are escaped, as `repr` does it.
    """
    text = _SHORT.repr(value)
    return text if len(text) <= 80 else f"{text[:50]}...{text[-20:]}"


def printable(text: str) -> str:
    """`text` on one line, with whatever a terminal or a reader would not show as it is escaped.

    Control characters (of a terminal as well), line separators, marks that turn the direction of
    writing and halves of surrogate pairs become what `repr` shows for them; a tab becomes a space.
    """
    text = text.replace("\t", " ")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)

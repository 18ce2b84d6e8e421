"""How a command talks and ends: one result on stdout, one line per error, signals that clean up."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prunecomp.errors import INTERRUPTED, PruneCompError, printable
from prunecomp.limits import MAX_LINE

#: What other packages would say on stderr; who sets one of these hears it.
SILENCE = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}
#: What an error's line begins with.
ERROR = "error: "
_MOST = MAX_LINE - len(ERROR)
_LONG_WORD, _SHORT_PATH = 80, 60
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_MEMORY = ("out of memory", "can't allocate memory")  # what torch says, of CUDA and of the CPU


def silence_libraries(*, progress: bool) -> None:
    """Keeps warnings of other packages off stderr; to be called before they are imported.

    Args:
        progress: silence also the progress of downloads.
    """
    for variable, value in SILENCE.items():
        os.environ.setdefault(variable, value)
    if progress:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.simplefilter("ignore", append=True)  # behind all filters that are set


def print_result(text: str) -> None:
    """Prints on stdout, now, so that a failure to do so is known.

    Raises:
        PruneCompError: stdout cannot be written. A reader that has gone away is no error.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)  # noqa: T201
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what it still holds
        if not isinstance(error, BrokenPipeError):
            raise PruneCompError(
                f"stdout: cannot be written ({error.strerror}); all else is done"
            ) from error


@contextlib.contextmanager
def interruptible(seconds: float = 5.0) -> Iterator[None]:
    """SIGTERM and SIGHUP, too, raise KeyboardInterrupt, so that every end cleans up.

    For some `seconds` the next signal is dropped, because it would interrupt the cleaning up:
    Ctrl-C comes twice from impatient users, and from some tools that start this one. What the
    caller has set to be ignored (``nohup``, background jobs) stays so.

    Raises:
        KeyboardInterrupt: also in place of an error that follows a signal: compiled code may
            lose the interrupt and make an error of its own of it, as torch does where it asks a
            Python object for its length.
    """
    last = -math.inf

    def interrupt(signum: int, frame: Any) -> None:
        nonlocal last
        if time.monotonic() - last > seconds:
            last = time.monotonic()
            raise KeyboardInterrupt

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {s: h for s in signals if (h := signal.getsignal(s)) not in {signal.SIG_IGN, None}}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    except Exception as error:
        if last == -math.inf or getattr(error, "exit_code", 0) == INTERRUPTED:
            raise
        raise KeyboardInterrupt from error
    finally:
        if last == -math.inf:  # else the process is ending, and is not to be disturbed at that
            for number, handler in before.items():
                signal.signal(number, handler)


def explain(
    error: BaseException, *, output: Path | None = None, resume: Path | None = None
) -> tuple[int, str] | None:
    """Exit code and message, one line, of what can be expected to go wrong; None for a bug.

    Args:
        output: what was to be written, if anything.
        resume: where finished rounds were kept.
    """
    code, message = 1, ""
    if isinstance(error, PruneCompError):
        code, message = error.exit_code, str(error)
    elif isinstance(error, KeyboardInterrupt):
        kept = f"finished rounds are in {resume}" if resume and resume.exists() else ""
        code, message = INTERRUPTED, f"interrupted; {kept or 'nothing is left behind'}"
    elif isinstance(error, OSError) and error.errno in _NO_SPACE:
        message = f"{output or 'a file'}: cannot be written ({error.strerror}); free some space"
    elif isinstance(error, OSError):
        # numpy, when less was written than it wanted, says neither which file nor why
        where = error.filename or (output if error.errno is None else None)
        message = f"{where}: " if where else ""
        message += f"{error.strerror or error}; check space and permissions"
    elif isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY):
        message = "out of memory; use smaller --batch-size, --samples or --seq-len"
    return (code, shortened(message)) if message else None


def shortened(message: str) -> str:
    """`message` on one line of at most `MAX_LINE` characters, the word before it included.

    Where it is longer, the path at the start loses its first folders (and is DIR where it stands
    again), then long words their middle, then the line what stands between the place, in front, and
    what to do about it, behind the last semicolon.
    """
    line = printable(" ".join(message.splitlines()))
    if len(line) <= _MOST:
        return line
    first, colon, rest = line.partition(": ")
    if not colon:
        first, rest = "", line
    if len(first) > _SHORT_PATH:
        rest = rest.replace(first, "DIR")
    words = re.sub(rf"\S{{{_LONG_WORD},}}", _without_middle, rest)
    for shorter in (rest, words):
        line = _with_short_path(first, f"{colon}{shorter}")
        if len(line) <= _MOST:
            return line
    semicolon = words.rfind("; ")
    remedy = words[semicolon:] if semicolon >= 0 else words[-_MOST // 4 :]
    remedy = remedy if len(remedy) <= _MOST // 2 else f"{remedy[: _MOST // 2 - 4]} ..."
    return f"{line[: _MOST - len(remedy) - 4]} ...{remedy}"


def _with_short_path(path: str, rest: str) -> str:
    """Both, `path` without as many of its first characters as must go."""
    room = max(_MOST - len(rest), _SHORT_PATH)
    return (path if len(path) <= room else f"...{path[3 - room :]}") + rest


def _without_middle(word: re.Match[str]) -> str:
    return f"{word[0][: _LONG_WORD // 2]}...{word[0][-_LONG_WORD // 4 :]}"

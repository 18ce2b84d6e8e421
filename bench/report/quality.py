"""Sections on quality: accuracy, the frontier, and which layers went."""

from __future__ import annotations

from bench.qualities import Accuracy, TaskResult
from bench.report.content import Part, Section, Table, missing
from bench.report.format import NOT_MEASURED, count, listed, number, percent, retained
from bench.report.plots.depth import deepest_plans, read_plans
from bench.schema import Report


def accuracy(report: Report) -> Section:
    """Values and retained performance by task, means by group, perplexity."""
    found = report.accuracy
    if found is None:
        why = "not asked for" if "accuracy" in report.settings.skipped else ""
        return Section("accuracy", "Accuracy", [missing("Accuracy", why)])
    shots = "the task's own number of" if found.num_fewshot is None else str(found.num_fewshot)
    note = (
        f"lm-eval with {found.engine}, {shots} examples in the prompt. Retained is the pruned "
        "model's value over the base's, with the standard error of that ratio over the same "
        "samples." + _beginning(found.prefix)
    )
    parts = [Part(text=(note,))]
    if found.mean_retained:
        rows = [[r.group, r.model, retained(r)] for r in found.mean_retained]
        table = Table(("group", "model", "mean retained"), rows, text_columns=2)
        parts.append(Part("Mean over the tasks of a group", table=table))
    if found.results:
        parts.append(Part("By task", table=_tasks(found)))
    else:
        parts.append(missing("Tasks"))
    return Section("accuracy", "Accuracy", [*parts, _perplexities(found)])


def _beginning(prefix: tuple[str, ...] | None) -> str:
    if prefix is None:
        return ""
    if not prefix:
        return " Nothing is put in front of a text, for the tokenizer puts nothing there."
    return f" Every text begins with {' '.join(prefix)}, as the tokenizer puts it."


def _tasks(found: Accuracy) -> Table:
    kept = {(r.model, r.group, r.task): r for r in found.retained}

    def row(result: TaskResult) -> list[str]:
        error = "" if result.stderr is None else f" ± {100 * result.stderr:.1f}"
        key = (result.model, result.group, result.task)
        return [
            result.group, result.task, result.model, result.metric, result.kind,
            f"{100 * result.value:.1f}{error} %",
            "" if result.chance is None else percent(result.chance),
            retained(kept[key]) if key in kept else "", count(result.n),
        ]  # fmt: skip

    columns = ("group", "task", "model", "metric", "kind", "value", "chance", "retained", "samples")
    tasks = [(r.group, r.task) for r in found.results]
    ordered = sorted(found.results, key=lambda r: tasks.index((r.group, r.task)))
    return Table(columns, [row(result) for result in ordered], text_columns=5)


def _perplexities(found: Accuracy) -> Part:
    if not found.perplexity:
        return missing("Perplexity")
    texts = [p.text for p in found.perplexity]
    ordered = sorted(found.perplexity, key=lambda p: texts.index(p.text))
    rows = [[p.text, p.model, number(p.value, 4), count(p.tokens)] for p in ordered]
    return Part("Perplexity", table=Table(("text", "model", "perplexity", "tokens"), rows, 2))


def frontier(report: Report) -> Section:
    """Every depth of one nested plan, and the recommended one."""
    found = report.frontier
    if found is None:
        why = "`cli.py frontier` measures every depth of one plan"
        return Section("frontier", "Depth", [missing("Every depth", why), Part(plots="perplexity")])
    limits = listed(f"{k} {v}" for k, v in found.criterion.items())
    chosen = (
        "no depth keeps the criterion"
        if found.recommended is None
        else f"{found.recommended} layers are the deepest cut that keeps it"
    )
    rows = [
        [str(p.layers_removed), listed(p.removed), number(p.perplexity, 4), number(p.ratio, 4),
         retained(p.retained)]
        for p in found.points
    ]  # fmt: skip
    columns = ("layers removed", "which", "perplexity", "over base", "accuracy retained")
    return Section(
        "frontier", "Depth",
        [Part(text=(f"Criterion: {limits}; {chosen}. The plan is in {found.plan}.",),
              table=Table(columns, rows, text_columns=2), plots="frontier")],
    )  # fmt: skip


def layers(report: Report) -> Section:
    """What every model lacks, how it was chosen, and the factors of the cuts."""
    pruned, plans = [m for m in report.models if m.role != "base"], read_plans(report)
    if not pruned:
        return Section("layers", "Choice of layers", [missing("Pruned models")])
    rows = []
    for model in pruned:
        row = [model.id, listed(model.removed) if model.removed else "not known"]
        if (plan := plans.get(model.id)) is None:
            rows.append([*row, "no plan", "", "", NOT_MEASURED])
            continue
        recipe = plan.recipe
        order = listed("+".join(map(str, r.removed)) for r in plan.rounds)
        rows.append([
            *row, f"{recipe.metric}, {recipe.strategy}", recipe.compensation, order,
            listed(number(r.factor, 4) for r in plan.rounds),
        ])  # fmt: skip
    columns = ("model", "layers removed", "chosen by", "compensation", "in order", "factors")
    parts = [Part(table=Table(columns, rows, text_columns=len(columns)))]
    parts += [
        Part(f"Scores and magnitude gaps: {model}", plots=f"plan {model}")
        for model in deepest_plans(report)
    ]
    return Section("layers", "Choice of layers", parts)

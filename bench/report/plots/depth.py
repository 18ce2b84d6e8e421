"""The choice of layers, and what every depth costs."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Mapping, Sequence

from bench.report.format import number, retained
from bench.report.plots.drawing import (
    Plot,
    colour,
    logarithmic,
    panel,
    series,
    slug,
    whole_numbers,
)
from bench.schema import Frontier, Report
from prunecomp.errors import PlanError
from prunecomp.plan import PrunePlan


def read_plans(report: Report) -> dict[str, PrunePlan]:
    """By model; unreadable plans are left out."""
    plans = {}
    for model in report.models:
        with contextlib.suppress(PlanError):
            if model.plan is not None:
                plans[model.id] = PrunePlan.from_json(model.plan, where=model.id)
    return plans


def deepest_plans(report: Report) -> dict[str, PrunePlan]:
    """By model: the plans that no other model's plan continues."""
    plans = read_plans(report)

    def continues(longer: PrunePlan, plan: PrunePlan) -> bool:
        return longer is not plan and longer.rounds[: len(plan.rounds)] == plan.rounds

    found: dict[str, PrunePlan] = {}
    for model, plan in sorted(plans.items(), key=lambda item: -len(item[1].rounds)):
        if plan.rounds and not any(continues(longer, plan) for longer in found.values()):
            found[model] = plan
    return found


def plan(model: str, plan: PrunePlan) -> list[Plot]:
    """Scores of the layers in every round, and the magnitude gap that every cut leaves."""
    return [_scores(model, plan), _gaps(model, plan)]


def _scores(model: str, plan: PrunePlan) -> Plot:
    rounds, metric = plan.rounds, plan.recipe.metric
    title = f"Scores by layer ({metric}); the lowest goes"
    said = []
    with panel(title, "layer of the base model", f"score ({metric})") as drawing:
        axes = drawing.axes
        for place, cut in enumerate(rounds, start=1):
            layers = sorted(cut.scores)
            strength = 0.25 + 0.75 * place / len(rounds)
            axes.plot(layers, [cut.scores[i] for i in layers], color=colour("series-1"),
                      alpha=strength, linewidth=1.2, marker=".", markersize=3)  # fmt: skip
            said.append(f"round {place} removes {_span(cut.removed)}")
            first = cut.removed[0]
            if first in cut.scores:
                axes.plot(first, cut.scores[first], marker="o", markersize=9, linestyle="",
                          color=colour("series-2"))  # fmt: skip
                axes.annotate(str(place), (first, cut.scores[first]), ha="center", va="center",
                              fontsize=7.5, color=colour("paper"), fontweight="bold")  # fmt: skip
        axes.plot([], [], color=colour("series-1"), label="scores; later rounds darker")
        axes.plot([], [], marker="o", linestyle="", color=colour("series-2"),
                  label="removed, with its round")  # fmt: skip
        drawing.legend()
        _crop(axes, [score for cut in rounds for score in cut.scores.items()])
        whole_numbers(axes.xaxis)
        return drawing.finish(f"scores-{slug(model)}", f"{title}: {model}. {'; '.join(said)}.")


def _crop(axes, scores: Sequence[tuple[int, float]]) -> None:
    """Cuts off the few layers that nobody would remove, and says how high they are."""
    highest = 3 * statistics.median(score for _, score in scores)
    far = {layer for layer, score in scores if score > highest}
    near = [score for layer, score in scores if layer not in far]
    if not far or min(near, default=0) <= 0 or 4 * len(far) > len({layer for layer, _ in scores}):
        logarithmic(axes.yaxis, [score for _, score in scores])
        return
    low, high = min(near), max(near)
    top = high + 0.25 * (high - low or high)
    axes.set_ylim(low - 0.1 * (high - low or low), top)
    for layer in far:
        value = max(score for i, score in scores if i == layer)
        axes.annotate(
            f"↑ {number(value)}", (layer, top), va="top", ha="center", fontsize=8.5,
            bbox={"facecolor": colour("paper"), "linewidth": 0, "pad": 1},
        )  # fmt: skip


def _gaps(model: str, plan: PrunePlan) -> Plot:
    if all(r.factor == 1 for r in plan.rounds):
        title = "No magnitude gap was closed"
    else:
        title = "Magnitude gap that every cut leaves"
    said = []
    with panel(title, "layer removed, in order", "magnitude after / before") as drawing:
        axes = drawing.axes
        for place, cut in enumerate(plan.rounds):
            axes.vlines(place, 1, cut.factor, color=colour("series-1"), linewidth=3)
            axes.plot(place, cut.factor, marker="o", color=colour("series-1"), linestyle="")
            said.append(f"{_span(cut.removed)}: {number(cut.factor, 4)}")
        axes.axhline(1, color=colour("series-0"), linewidth=1.4)
        labels = [_short_span(r.removed) for r in plan.rounds]
        axes.set_xticks(range(len(labels)), labels)
        axes.set_xlim(-0.6, len(labels) - 0.4)
        return drawing.finish(f"gaps-{slug(model)}", f"{title}: {model}. {'; '.join(said)}.")


def _short_span(span: Sequence[int]) -> str:
    return str(span[0]) if len(span) == 1 else f"{span[0]}–{span[-1]}"


def _span(span: Sequence[int]) -> str:
    return f"layer {span[0]}" if len(span) == 1 else f"layers {_short_span(span)}"


def frontier(found: Frontier) -> Plot:
    """Perplexity at every depth of one nested plan, the limit, and the recommended depth."""
    points = [(p.layers_removed, p.perplexity) for p in found.points]
    base = next((p.perplexity / p.ratio for p in found.points if p.ratio), None)
    increase = found.criterion.get("max_ppl_increase")
    limit = None if increase is None or base is None else base * (1 + increase)
    if found.recommended is None:
        title = "No depth keeps the limit"
    else:
        title = f"{found.recommended} layers can go within the limit"
    return _perplexity(
        f"{title}: perplexity against layers removed", {"perplexity": points}, "frontier",
        limit=limit, recommended=found.recommended,
    )  # fmt: skip


def frontier_retained(found: Frontier) -> Plot | None:
    """Retained accuracy at every depth, where it was measured."""
    points = [(p.layers_removed, p.retained) for p in found.points if p.retained]
    if not points:
        return None
    title = "Retained accuracy against layers removed"
    with panel(title, "layers removed", "retained accuracy, % of base") as drawing:
        axes = drawing.axes
        depths, values = zip(*points, strict=True)
        axes.errorbar(
            depths, [100 * v.value for v in values], yerr=[100 * (v.stderr or 0) for v in values],
            **series(1), capsize=2.5, elinewidth=1.2,
        )  # fmt: skip
        minimum = found.criterion.get("min_retained")
        if minimum is not None:
            axes.axhline(100 * minimum, color=colour("ink"), linestyle=":", label="limit")
            drawing.legend()
        whole_numbers(axes.xaxis)
        said = "; ".join(f"{depth} removed: {retained(value)}" for depth, value in points)
        return drawing.finish("frontier-retained", f"{title}. {said}.")


def perplexity(report: Report) -> Plot | None:
    """Perplexity of the models by depth, one line per text: measured now, or by their plans."""
    depths = {m.id: m.layers_removed for m in report.models}
    lines: dict[str, dict[int, float]] = {}
    for row in report.accuracy.perplexity if report.accuracy else ():
        lines.setdefault(row.text, {})[depths[row.model]] = row.value
    if not lines:
        for model, plan in read_plans(report).items():
            for text, values in plan.perplexity.items():
                line = lines.setdefault(text, {})
                line[0] = values["base"]
                if "pruned" in values:
                    line[depths[model]] = values["pruned"]
    lines = {text: line for text, line in lines.items() if len(line) > 1}
    if not lines:
        return None
    points = {text: sorted(line.items()) for text, line in lines.items()}
    return _perplexity("Perplexity of the models against layers removed", points, "perplexity")


def _perplexity(
    title: str, lines: Mapping[str, Sequence[tuple[int, float]]], name: str, *,
    limit: float | None = None, recommended: int | None = None,
) -> Plot:  # fmt: skip
    said = []
    with panel(title, "layers removed", "perplexity (lower is better)") as drawing:
        axes = drawing.axes
        for place, (text, points) in enumerate(lines.items(), start=1):
            axes.plot(*zip(*points, strict=True), **series(place), label=text)
            values = "; ".join(f"{depth} removed: {number(value)}" for depth, value in points)
            said.append(f"{text}: {values}")
            if recommended in dict(points):
                axes.plot(recommended, dict(points)[recommended], marker="o", markersize=13,
                          markerfacecolor="none", markeredgewidth=1.8, linestyle="",
                          color=colour("series-2"), label="recommended")  # fmt: skip
        if limit is not None:
            axes.axhline(limit, color=colour("ink"), linestyle=":", label=f"limit {number(limit)}")
            said.append(f"limit: {number(limit)}")
        drawing.legend(3)
        logarithmic(axes.yaxis, [value for points in lines.values() for _, value in points])
        whole_numbers(axes.xaxis)
        return drawing.finish(name, f"{title}. {'. '.join(said)}.")

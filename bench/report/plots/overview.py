"""What pruning bought, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.qualities import MeanRetained
from bench.report.format import SPEEDUPS, number, ratio, retained
from bench.report.plots.drawing import Plot, colour, error_bar, numbers, panel, series, slug
from bench.schema import CeilingPoint, Report


def ideal(report: Report, model: str, measure: str) -> CeilingPoint | None:
    """The ideal that a speedup of the summary belongs to."""
    speedup = next((s.speedup.get(measure) for s in report.summary if s.model == model), None)
    points = [
        p for c in report.ceiling if c.model == model
        for p in c.points if p.stage == SPEEDUPS[measure][0]
    ]  # fmt: skip
    same = [p for p in points if p.measured is not None and p.measured == speedup]
    return next(iter(same or points), None)


def plots(report: Report) -> list[Plot]:
    """What pruning bought, and what it cost."""
    return [*speedups(report), *speedup_against_retained(report)]


def speedups(report: Report) -> list[Plot]:
    """One row per kind of speedup, one point per model, the ideal beside it."""
    measures = [m for m in SPEEDUPS if any(m in row.speedup for row in report.summary)]
    if not measures:
        return []
    colours, rows = numbers(report), list(report.summary)
    best = max(report.summary, key=lambda row: getattr(row.speedup.get(measures[0]), "value", 0))
    title = (
        f"{SPEEDUPS[measures[0]][1].capitalize()} speedup up to "
        f"{number(best.speedup[measures[0]].value)} ({best.model})"
    )
    said = []
    height = 130 + len(measures) * max(34, 15 * len(rows))
    with panel(title, "speedup over base (1 = no change)", "", height=height) as drawing:
        axes = drawing.axes
        axes.axvline(1, color=series(0)["color"], linewidth=1.4)
        for place, measure in enumerate(measures):
            for row, summary in enumerate(rows):
                if measure not in summary.speedup:
                    continue
                value, style = summary.speedup[measure], series(colours[summary.model])
                y = place + (row - (len(rows) - 1) / 2) * 0.7 / max(len(rows), 2)
                axes.errorbar(
                    value.value, y, xerr=error_bar(value, value.value), **style, linestyle="",
                    capsize=2.5, elinewidth=1.4,
                )  # fmt: skip
                said.append(f"{summary.model}, {SPEEDUPS[measure][1]}: {ratio(value)}")
                if point := ideal(report, summary.model, measure):
                    axes.plot(point.ideal, y, marker="|", markersize=11, markeredgewidth=1.8,
                              color=style["color"], linestyle="")  # fmt: skip
                    said[-1] += f", ideal {number(point.ideal)}"
        if any(ideal(report, row.model, measure) for row in rows for measure in measures):
            axes.plot([], [], marker="|", markersize=11, linestyle="", color=colour("ink"),
                      label="ideal, from the counted work")  # fmt: skip
        axes.plot([], [], marker="o", linestyle="", color=colour("ink"),
                  label="measured, smallest to largest")  # fmt: skip
        drawing.legend(1)
        axes.set_yticks(range(len(measures)), [SPEEDUPS[m][1].replace(" ", "\n") for m in measures])
        axes.set_ylim(len(measures) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        return [drawing.finish("speedups", f"{title}. {'; '.join(said)}.")]


def speedup_against_retained(report: Report) -> list[Plot]:
    """One plot per group of tasks; the ideal speedup is a hollow marker."""
    measure = next((m for m in SPEEDUPS if any(m in row.speedup for row in report.summary)), None)
    if measure is None:
        return []
    means: Sequence[MeanRetained] = report.accuracy.mean_retained if report.accuracy else ()
    groups = {group: {r.model: r for r in means if r.group == group} for group in
              dict.fromkeys(r.group for r in means)}  # fmt: skip
    plots = [_against_retained(report, measure, group, found) for group, found in groups.items()]
    return [plot for plot in plots if plot is not None]


def _against_retained(
    report: Report, measure: str, group: str, found: Mapping[str, MeanRetained]
) -> Plot | None:
    rows = [s for s in report.summary if s.model in found and measure in s.speedup]
    if not rows:
        return None
    words, colours, said = SPEEDUPS[measure][1], numbers(report), []
    title = f"{words.capitalize()} speedup against retained accuracy: {group}"
    with panel(title, "retained accuracy, % of base", f"{words} speedup over base") as drawing:
        axes = drawing.axes
        axes.plot(100, 1, **series(0), markersize=8, linestyle="")
        for row in rows:
            kept, speedup = found[row.model], row.speedup[measure]
            style = series(colours[row.model])
            x = 100 * kept.value
            if point := ideal(report, row.model, measure):
                axes.plot([x, x], [speedup.value, point.ideal], color=style["color"],
                          linewidth=1.0, linestyle=":")  # fmt: skip
                axes.plot(x, point.ideal, **style, markerfacecolor=colour("paper"), linestyle="",
                          markersize=7)  # fmt: skip
            axes.errorbar(
                x, speedup.value, xerr=None if kept.stderr is None else 100 * kept.stderr,
                yerr=error_bar(speedup, speedup.value), **style, markersize=7, linestyle="",
                capsize=2.5, elinewidth=1.4,
            )  # fmt: skip
            said.append(f"{row.model}: {ratio(speedup)} at {retained(kept)}")
        ink = {"color": colour("ink"), "marker": "o", "linestyle": ""}
        axes.plot([], [], **ink, label="measured")
        axes.plot([], [], **ink, markerfacecolor=colour("paper"), label="ideal speedup")
        drawing.legend(3)
        axes.margins(0.1)
        name = f"retained-{slug(group)}"
        return drawing.finish(name, f"{title}. base: 1 at 100 %; {'; '.join(said)}.")

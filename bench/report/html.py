"""``report.html``: one file that asks for nothing else."""

from __future__ import annotations

from pathlib import Path

from bench.report import content
from bench.report.plots import depth, load, overview
from bench.report.plots.drawing import Plot, glyph, numbers, variables
from bench.schema import Report
from prunecomp.errors import MissingDependencyError


def render(report: Report) -> str:
    """The report as a page with its plots; everything from the report is escaped.

    Raises:
        MissingDependencyError: jinja2 or matplotlib is missing.
    """
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependencyError(
            "the page needs jinja2; install it with `pip install prunecomp[bench]`"
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template("page.html").render(
        title=content.title(report),
        subtitle=content.subtitle(report),
        alerts=content.alerts(report),
        sections=content.sections(report),
        plots=_plots(report),
        legend=[(model, *glyph(place)) for model, place in numbers(report).items()],
        variables=variables(":root"),
    )


def _plots(report: Report) -> dict[str, list[Plot]]:
    """By the name under which the sections ask for them."""
    found = {"overview": overview.plots(report)}
    for mix in report.settings.mixes:
        found[f"serving {mix.name}"] = load.plots(report, mix.name)
    for model, plan in depth.deepest_plans(report).items():
        found[f"plan {model}"] = depth.plan(model, plan)
    perplexity = depth.perplexity(report)
    found["perplexity"] = [perplexity] if perplexity else []
    found["frontier"] = []
    if report.frontier is not None:
        retained = depth.frontier_retained(report.frontier)
        found["frontier"] = [depth.frontier(report.frontier), *([retained] if retained else [])]
        found["frontier"] += found["perplexity"]
    return found

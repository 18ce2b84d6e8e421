"""What single plots show, and that they stand alone."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from bench.report.plots import depth, drawing, frontier, frontier_retained, overview
from bench.schema import Estimate
from prunecomp.plan import PrunePlan
from tests.bench import reports

SVG = "{http://www.w3.org/2000/svg}"


def words(svg: str) -> list[str]:
    """All texts of a drawing."""
    return [
        "".join(text.itertext()).strip() for text in ElementTree.fromstring(svg).iter(SVG + "text")
    ]


def test_text_is_shown_as_it_is():
    with drawing.panel("<b> $x$ & 'y'", "", "") as panel:
        panel.axes.plot([0, 1], [0, 1])
        plot = panel.finish("name", 'says "<b>"')
    assert "<b> $x$ & 'y'" in words(plot.svg)
    assert ElementTree.fromstring(plot.svg).get("aria-label") == 'says "<b>"'
    assert all(i.startswith("name-") for i in re.findall(r'\bid="([^"]+)"', plot.svg))


def test_a_file_of_its_own_has_colours_for_both_modes_and_no_stand_ins():
    svg = frontier(reports.full().frontier).standalone()
    style = "".join(ElementTree.fromstring(svg.encode()).find(SVG + "style").itertext())
    used = set(re.findall(r"var\(--([\w-]+)\)", svg))
    assert {"ink", "grid", "series-1", "series-2"} <= used
    for name in used:
        assert style.count(f"--{name}:#") == 2
    assert "#0101" not in svg
    assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", svg)


@pytest.mark.parametrize("mine", [{}, {"font.size": 30.0, "svg.hashsalt": None}])
def test_settings_of_the_user_play_no_part(mine):
    import matplotlib as mpl

    expected = overview.speedup_against_retained(reports.full())
    with mpl.rc_context(mine):
        assert overview.speedup_against_retained(reports.full()) == expected


@pytest.mark.parametrize(
    ("value", "label"),
    [(4, "4"), (1024, "1,024"), (1.5, "1.5"), (3.7958, "3.8"), (1.0004, "1"), (120.4, "120"),
     (0.02, "0.02"), (0.1 + 0.2, "0.3")],
)  # fmt: skip
def test_tick_labels(value, label):
    assert drawing.tick_label(value) == label


def test_frontier():
    found = reports.full().frontier
    plot = frontier(found)
    assert plot.title.startswith("3 layers can go within the limit")
    assert "limit 19.7" in words(plot.svg)  # 16.378 and 20 % of it
    assert "3 removed: 18.7; 4 removed: 20.9" in plot.alt
    nothing = frontier(replace(found, recommended=None, criterion={}))
    assert nothing.title.startswith("No depth keeps the limit")
    assert not any(text.startswith("limit") for text in words(nothing.svg))


def test_frontier_by_accuracy():
    found = reports.full().frontier
    assert "6 removed: 85.6 ± 2.4 %" in frontier_retained(found).alt
    points = tuple(replace(p, retained=None) for p in found.points)
    assert frontier_retained(replace(found, points=points)) is None
    unknown = tuple(replace(p, retained=Estimate(0.9, None)) for p in found.points)
    assert "6 removed: 90.0 %" in frontier_retained(replace(found, points=unknown)).alt


def test_only_the_deepest_of_nested_plans_is_drawn():
    report = reports.full()
    assert list(depth.deepest_plans(report)) == ["minus-6"]
    other = dict(report.models[1].plan, rounds=[{"removed": [5], "factor": 1.0, "scores": {}}])
    models = (*report.models, replace(report.models[1], id="other", plan=other))
    assert list(depth.deepest_plans(replace(report, models=models))) == ["minus-6", "other"]
    damaged = (*report.models[:3], replace(report.models[3], plan={"rounds": "?"}))
    assert list(depth.deepest_plans(replace(report, models=damaged))) == ["minus-4"]


def test_scores_that_dwarf_the_others_are_cut_off_and_told():
    plan = PrunePlan.from_json(reports.full().models[3].plan, where="test")
    scores, gaps = depth.plan("minus-6", plan)
    assert f"↑ {max(r.scores[0] for r in plan.rounds):.0f}" in words(scores.svg)
    assert "round 1 removes layer 12; round 2 removes layer 3" in scores.alt
    assert "layer 4: 1.101" in gaps.alt


def test_perplexity_comes_from_the_plans_where_it_was_not_measured():
    report = reports.full()
    measured = depth.perplexity(report)
    planned = depth.perplexity(replace(report, accuracy=None))
    assert measured.alt == planned.alt
    assert "python-stdlib held out: 0 removed: 16.4; 2 removed: 17.6" in measured.alt
    assert depth.perplexity(reports.minimal()) is None


def test_the_ideal_is_that_of_the_same_measurement():
    """There is one for batch 8 in front of it."""
    report = reports.full()
    assert overview.ideal(report, "minus-4", "decode").what == "decode, batch 1, vllm"
    assert overview.ideal(report, "minus-4", "serving_output_tokens_per_s") is None

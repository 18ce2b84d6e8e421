"""The plan as data: round trip, prefixes, and the refusal of what is not a plan."""

from __future__ import annotations

import copy
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunecomp.errors import PlanError
from prunecomp.plan import (
    CalibrationRecord,
    PrunePlan,
    PruneRound,
    Recipe,
    RemoveSpan,
    Scale,
    SourceModel,
    read_plan,
)
from tests.prunecomp.strategies import plans


@given(plan=plans())
def test_json_round_trip(plan):
    text = json.dumps(plan.to_json(), indent=2)
    again = PrunePlan.from_json(json.loads(text), where="test")
    assert again == plan
    assert json.dumps(again.to_json(), indent=2) == text


@given(plan=plans(), data=st.data())
def test_prefix_is_the_first_rounds(plan, data):
    if not plan.rounds:
        with pytest.raises(PlanError, match="has 0 round"):
            plan.prefix(1)
        return
    count = data.draw(st.integers(1, len(plan.rounds)))
    short = plan.prefix(count)
    assert short.rounds == plan.rounds[:count]
    assert (short.source, short.calibration) == (plan.source, plan.calibration)
    assert set(short.removed) <= set(plan.removed)
    if count < len(plan.rounds):
        assert short.recipe.num_removed == len(short.removed)
        assert all("pruned" not in values for values in short.perplexity.values())
    for wrong in (0, -1, len(plan.rounds) + 1):
        with pytest.raises(PlanError, match=f"--rounds {wrong}"):
            plan.prefix(wrong)


@given(plan=plans())
def test_scale_before(plan):
    for layer in plan.kept:
        expected = math.prod(r.factor for r in plan.rounds if min(r.removed) > layer)
        assert plan.scale_before(layer) == expected
    assert plan.total_scale == plan.scale_before(-1) == math.prod(r.factor for r in plan.rounds)


def _document() -> dict:
    plan = PrunePlan(
        source=SourceModel("m", "llama", 6, {"config.json": "00"}),
        recipe=Recipe("bi", "iterative", "magnitude", "downstream", 2, 0, 0, "float32", "cpu"),
        calibration=CalibrationRecord("a.txt", 2, 4, 0, "00"),
        rounds=(
            PruneRound(RemoveSpan((2,)), Scale(1.1), {2: 0.1, 3: 0.2}),
            PruneRound(RemoveSpan((3,)), Scale(1.2), {3: 0.2}),
        ),
        perplexity={"text": {"base": 2.0, "pruned": 3.0}},
    )
    return plan.to_json()


def _changed(path: str, value) -> dict:
    document = copy.deepcopy(_document())
    *parents, last = [int(k) if k.isdigit() else k for k in path.split(".")]
    place = document
    for key in parents:
        place = place[key]
    place[last] = value
    return document


def test_the_unchanged_document_is_a_plan():
    plan = PrunePlan.from_json(_document(), where="test")
    assert plan.removed == (2, 3)
    assert plan.kept == (0, 1, 4, 5)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema_version", 3, "schema version 3"),
        ("schema_version", None, "schema version None"),
        ("rounds.0.removed", [6], r"round 1 removes \[6\], which are not layers"),
        ("rounds.0.removed", [-1], r"round 1 removes \[-1\], which are not layers"),
        ("rounds.0.removed", [], r"round 1 removes \[\]"),
        ("rounds.1.removed", [2], r"round 2 removes \[2\], which are not layers"),
        ("rounds.1.removed", [1, 4], r"round 2 removes \[1, 4\], which are not neighbours"),
        ("rounds.1.removed", [3, 1], "not neighbours"),
        ("rounds.1.removed", [4, 4], "not neighbours"),
        ("rounds.1.removed", [0, 1, 3, 4, 5], "removes all 6 layers"),
        ("rounds.0.removed", ["x"], "malformed"),
        ("rounds.0.removed", 2, "malformed"),
        ("rounds.0.factor", 0.0, "round 1 has factor 0.0"),
        ("rounds.1.factor", -1.5, "round 2 has factor -1.5"),
        ("rounds.0.factor", float("nan"), r"rounds\[0\].factor: nan is not"),
        ("rounds.0.factor", float("inf"), r"rounds\[0\].factor: inf is not"),
        ("rounds.0.factor", "big", "malformed"),
        ("rounds.0.scores", [1, 2], "malformed"),
        ("source", {"name": "m"}, "malformed"),
        ("recipe.surprise", 1, "malformed"),
        ("rounds", None, "malformed"),
    ],
)
def test_malformed_plans(path, value, message):
    with pytest.raises(PlanError, match=message):
        PrunePlan.from_json(_changed(path, value), where="plan.json")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("source.num_hidden_layers", "6"),
        ("source.sha256", None),
        ("source.sha256", ["00"]),
        ("recipe.fold", "sideways"),
        ("rounds.0.removed", [2.7]),
        ("perplexity", None),
        ("perplexity", {"text": 3.0}),
        ("perplexity", {"text": {"pruned": 3.0}}),
    ],
)
def test_plans_with_values_of_the_wrong_kind(path, value):
    """Each would fail later with a traceback, or be read as something else."""
    with pytest.raises(PlanError, match=r"plan\.json"):
        PrunePlan.from_json(_changed(path, value), where="plan.json")


@pytest.mark.parametrize(
    "key", ["schema_version", "source", "recipe", "calibration", "rounds", "perplexity", "versions"]
)
def test_missing_keys(key):
    document = _document()
    del document[key]
    with pytest.raises(PlanError, match=r"plan\.json"):
        PrunePlan.from_json(document, where="plan.json")


@pytest.mark.parametrize("key", ["removed", "factor", "scores"])
def test_missing_keys_of_a_round(key):
    document = _document()
    del document["rounds"][1][key]
    with pytest.raises(PlanError, match=r"plan\.json.*malformed"):
        PrunePlan.from_json(document, where="plan.json")


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"plan": 3}', "{}", "\xff"])
def test_files_that_are_no_plan(content, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(PlanError, match=r"plan\.json"):
        read_plan(path)
    with pytest.raises(PlanError, match=r"nothing\.json"):
        read_plan(tmp_path / "nothing.json")


def test_a_manifest_is_read_as_its_plan(tmp_path):
    path = tmp_path / "prunecomp.json"
    path.write_text(json.dumps({"schema_version": 1, "plan": _document()}))
    assert read_plan(path) == PrunePlan.from_json(_document(), where="test")

"""Random inputs for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from prunecomp.plan import CalibrationRecord, PrunePlan, Recipe, SourceModel
from prunecomp.rounds import PruneRound, RemoveSpan, Scale

_TEXT = st.text(max_size=8)
_FINITE = st.floats(allow_nan=False, allow_infinity=False)
_HASHES = st.dictionaries(_TEXT, _TEXT, max_size=2)


@st.composite
def plans(draw) -> PrunePlan:
    """Any valid plan: spans of neighbours among the layers that are live in their round."""
    depth = draw(st.integers(2, 12))
    live, rounds = list(range(depth)), []
    for _ in range(draw(st.integers(0, 5))):
        if len(live) < 2:
            break
        first = draw(st.integers(0, len(live) - 1))
        width = draw(st.integers(1, min(3, len(live) - 1, len(live) - first)))
        removed = tuple(live[first : first + width])
        scores = draw(st.dictionaries(st.integers(0, depth - 1), _FINITE, max_size=3))
        rounds.append(PruneRound(RemoveSpan(removed), Scale(draw(st.floats(0.25, 4.0))), scores))
        del live[first : first + width]
    return PrunePlan(
        source=SourceModel(draw(_TEXT), "llama", depth, draw(_HASHES)),
        recipe=Recipe(
            "bi", "iterative", "magnitude", draw(st.sampled_from(["downstream", "upstream"])),
            depth - len(live), 0, 0, "float32", "cpu", draw(_HASHES),
        ),
        calibration=CalibrationRecord("a.txt", 2, 4, 0, "00", draw(_HASHES)),
        rounds=tuple(rounds),
        perplexity=draw(st.dictionaries(_TEXT, st.just({"base": 2.5, "pruned": 3.5}), max_size=2)),
        versions=draw(_HASHES),
    )  # fmt: skip

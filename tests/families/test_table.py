"""The table of families: complete, up to date, and readable in a terminal."""

from __future__ import annotations

import json
from importlib import metadata

import pytest

from prunecomp.families import FAMILIES, REFUSED
from prunecomp.families import _table as tables


def test_the_document_is_up_to_date():
    """When this fails: ``make docs``, and look at what changed."""
    document = (tables.REPOSITORY / "docs" / "families.md").read_text(encoding="utf-8")
    assert document == tables.markdown(tables.table()), "docs/families.md is stale; run `make docs`"


def test_every_type_is_in_the_document():
    document = (tables.REPOSITORY / "docs" / "families.md").read_text(encoding="utf-8")
    for model_type in [*FAMILIES.names(), *REFUSED]:
        assert f"`{model_type}`" in document


def test_the_pinned_transformers_is_the_one_that_is_tested():
    assert tables.pinned_transformers() == metadata.version("transformers")


def test_nothing_is_claimed_without_the_files(tmp_path):
    assert tables.pinned_transformers(tmp_path / "absent") == "unknown"
    results = tables.vllm_results(tmp_path / "absent")
    row = tables.row(FAMILIES.get("llama"), results, "unknown")
    assert row["verified"]["vllm_status"] == "not checked"
    assert tables.onnx_results(tmp_path / "absent") == {"families": {}}
    assert row["verified"]["onnx_status"] == "not checked"


def test_vllm_results_are_shown(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({
        "vllm": "9.9", "families": {"llama": {"status": "not served: no class", "detail": "why"}},
    }))  # fmt: skip
    results = tables.vllm_results(tmp_path / "results.json")
    row = tables.row(FAMILIES.get("llama"), results, "1.2.3")
    assert "vLLM          9.9: not served: no class: why" in tables.detail_lines(row)
    assert tables.terminal_lines([row])[1].endswith(" no")
    assert "not served: no class. why |" in tables.markdown([row])
    assert "transformers 1.2.3:" in tables.markdown([row])


def test_onnx_results_are_shown(tmp_path):
    (tmp_path / "onnx.json").write_text(json.dumps({
        "families": {"llama": {"status": "not exported", "detail": "no trace"}},
    }))  # fmt: skip
    exports = tables.onnx_results(tmp_path / "onnx.json")
    row = tables.row(FAMILIES.get("llama"), {"families": {}}, "1.2.3", exports)
    assert "ONNX          not exported: no trace" in tables.detail_lines(row)
    assert "not exported. no trace |" in tables.markdown([row])


def test_recorded_vllm_results_are_of_known_kinds():
    for model_type, found in tables.vllm_results()["families"].items():
        assert model_type in FAMILIES.names()
        assert found["status"].partition(":")[0] in tables.MARKS


def test_fits_a_terminal():
    rows = tables.table()
    for line in tables.terminal_lines(rows):
        assert len(line) <= 100, line
    for row in rows:
        for line in tables.detail_lines(row):
            assert len(line) <= 100, line
    for model_type in REFUSED:
        for line in tables.refused_lines(model_type):
            assert len(line) <= 100, line


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gpt_oss", "layers go in runs of 2"),
        ("gpt2", "only with scale_attn_by_inverse_layer_idx = false"),
        ("ernie4_5_moe", "only with moe_layer_interval = 1"),
    ],
)
def test_restrictions_are_told(name, says):
    row = {entry["model_type"]: entry for entry in tables.table()}[name]
    assert says in " ".join(row["restrictions"])
    assert any(line.startswith(f"{name}*") for line in tables.terminal_lines([row]))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("bloom", "never scaled"),
        ("olmo", "upstream folding is refused when tied"),
        ("gemma", "tied by default; upstream, the final norm takes the inverse"),
    ],
)
def test_heads_are_told(name, says):
    row = {entry["model_type"]: entry for entry in tables.table()}[name]
    assert says in row["head"]


def test_names_are_cut_to_fit():
    assert tables._fit(["abc", "def"], 7) == "abc def"
    assert tables._fit(["abc", "def", "ghi"], 10) == "abc def +1"
    assert tables._fit(["a" * 20], 10) == "aaaaaa... "
    assert tables._short(["attn.c_proj.weight", "attn.c_proj.bias", "mlp.c_proj.weight"]) == [
        "attn.c_proj", "mlp.c_proj",
    ]  # fmt: skip

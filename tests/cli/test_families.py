"""The command that lists the families."""

from __future__ import annotations

import json

import pytest

from prunecomp.families import FAMILIES, REFUSED


def test_lists_all(cli):
    ended = cli("families")
    assert (ended.code, ended.err) == (0, "")
    listed = [line.split()[0].rstrip("*") for line in ended.out.splitlines()[1:] if line[:1] != ""]
    assert set(FAMILIES.names()) <= set(listed)


def test_json(cli):
    ended = cli("families", "--json")
    assert (ended.code, ended.err) == (0, "")
    document = json.loads(ended.out)
    assert [row["model_type"] for row in document["families"]] == FAMILIES.names()
    assert document["refused"] == dict(REFUSED)


def test_one(cli):
    ended = cli("families", "olmo2")
    assert (ended.code, ended.err) == (0, "")
    assert "multiplied    post_attention_layernorm.weight" in ended.out
    assert "self_attn.q_proj.weight" in ended.out
    assert json.loads(cli("families", "olmo2", "--json").out)["model_type"] == "olmo2"


def test_one_that_is_refused(cli):
    ended = cli("families", "jamba")
    assert (ended.code, ended.err) == (0, "")
    assert " ".join(ended.out.split()) == f"jamba is refused: {REFUSED['jamba']}"
    assert json.loads(cli("families", "jamba", "--json").out)["refused"] == REFUSED["jamba"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lama"], "did you mean 'llama'"),
        (["xyz"], "`families` lists those"),
        ([""], "not a model type"),
        (["--markdown", "--json"], "give neither --json nor TYPE"),
        (["--markdown", "llama"], "give neither --json nor TYPE"),
    ],
)
def test_wrong_arguments(refused, arguments, says):
    refused("families", *arguments, says=says)


def test_markdown_is_the_document(cli):
    from prunecomp.families._table import REPOSITORY

    ended = cli("families", "--markdown")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == (REPOSITORY / "docs" / "families.md").read_text(encoding="utf-8")

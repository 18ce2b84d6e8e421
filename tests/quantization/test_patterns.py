"""Patterns of a config: the standard library's answer where it comes in time, else a refusal."""

from __future__ import annotations

import re

import pytest

from prunecomp.errors import UnsupportedModelError
from prunecomp.quantization._patterns import matching

NAMES = [f"model.layers.{i}.mlp.{name}" for i in range(12) for name in ("up_proj", "down_proj")]


@pytest.mark.parametrize(
    "pattern",
    ["lm_head", "model.layers.3.mlp.up_proj", r".*layers\.[0-3]\..*", r".*\.(up|gate)_proj$", "",
     r"model\.layers\.(?:1|11)\.", r"(?:.*\.)?mlp\.(?:up|down)_proj(?:\.x)?$", r"(model|\.|\w)+",
     r"(?:(?:model|layers|mlp|\d+)\.)*up_proj", "(?P<a>", "[", "*", "(?i:MODEL)"],
)  # fmt: skip
def test_as_the_standard_library_has_it(pattern):
    try:
        expected = {name for name in NAMES if re.match(pattern, name)}
    except re.error:
        expected = set()
    assert matching(pattern, NAMES) == expected


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        (r"(([a-z_0-9]+)\.?)+!", "takes more than"),
        ("m?" + "(o|o)?" * 40 + "Z", "takes more than"),
        ("(oo|o)" * 40 + "Z", "takes more than"),
        (".*" * 14 + "Z", "takes more than"),
        ("a{99999999999}", "too large"),
        ("(" * 3000 + ")" * 3000, "too large"),
        ("x" * 100_000, "too long"),
    ],
)
def test_what_would_take_too_long(pattern, says, monkeypatch):
    with pytest.raises(UnsupportedModelError, match=says) as error:
        matching(pattern, [*NAMES, "o" * 80])
    assert len(str(error.value)) < 160

"""``--max-memory``: what does not fit is read layer by layer, and what cannot fit is refused."""

from __future__ import annotations

import json

import pytest

from prunecomp import memory
from prunecomp.calibration.local_text import Reading
from prunecomp.metrics import METRICS


@pytest.fixture
def _bare(monkeypatch):
    """As if the process, and reading, took nothing, so that limits are about this tiny model."""
    monkeypatch.setattr(memory, "resident", lambda dtype: 0)
    monkeypatch.setattr(memory, "SLACK", 0)
    monkeypatch.setattr(memory, "HELD", 0)
    monkeypatch.setattr(Reading, "nbytes", 0)


@pytest.fixture
def inspected(cli, model, small):
    """``inspected(limit, ...)``: what is told of memory."""

    def run(limit, *options) -> dict:
        ended = cli("inspect", model, *small, "--max-memory", limit, *options, "--json")
        assert (ended.code, ended.err) == (0, "")
        return json.loads(ended.out)["memory"]

    return run


@pytest.mark.usefixtures("_bare")
@pytest.mark.parametrize("metric", METRICS.names())
def test_what_does_not_fit_is_read_layer_by_layer(metric, inspected, cli, model, small, tmp_path):
    """The plan is the same, bit for bit; what is told stays within the limit."""
    small = [*small, "--metric", metric, "--protect-first", 0, "--protect-last", 0]
    plenty = inspected("1GiB", "--metric", metric)
    assert (plenty["mode"], plenty["available_bytes"]) == ("resident", 1 << 30)
    steps = range(100, 700, 20) if metric == "bi" else range(100, 1000, 100)
    limits = [f"{kib}K" for kib in steps]
    told = {}
    for limit in limits:
        ended = cli("inspect", model, *small, "--max-memory", limit, "--json")
        if ended.code == 0:
            told[limit] = json.loads(ended.out)["memory"]
    assert {each["mode"] for each in told.values()} == {"resident", "streamed"}
    for limit, each in told.items():
        assert each["bytes"] <= int(limit[:-1]) << 10
    tight = min((n for n in told if told[n]["mode"] == "streamed"), key=lambda n: int(n[:-1]))
    plans = []
    for limit in (tight, "1GiB"):
        path = tmp_path / f"{limit}.json"
        ended = cli("plan", model, "-o", path, "--layers", 3, *small, "--max-memory", limit,
                    "--batch-size", told[tight]["batch_size"])  # fmt: skip
        assert ended.code == 0
        how = "one layer at a time, from the files" if limit == tight else "the whole model"
        assert how in ended.err
        plans.append(json.loads(path.read_text()))
    assert plans[0] == plans[1]


@pytest.mark.usefixtures("_bare")
def test_less_than_a_layer_is_refused(refused, model, small):
    refused("inspect", model, *small, "--max-memory", "10K",
            says=("--max-memory", "even with one layer at a time", "give more"))  # fmt: skip


@pytest.mark.parametrize("size", ["4 apples", "-1", "0", "GiB", "1e9", "4iB", "9" * 400])
def test_sizes_that_are_none(refused, model, small, size):
    refused("inspect", model, *small, f"--max-memory={size}", says="such as 4GiB")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GiB", 4 << 30), ("1.5g", 3 << 29), ("500 MiB", 500 << 20), ("12345", 12345),
        ("12345 b", 12345), ("500 MB", 500 * 10**6), ("4gb", 4 * 10**9), ("2tIb", 2 << 40),
    ],
)  # fmt: skip
def test_sizes(text, size):
    """One meaning for all options; transformers' own for shards."""
    from exporters.safetensors import _size
    from prunecomp.sizes import parse_bytes

    assert parse_bytes(text, option="--max-memory") == size == _size(text)

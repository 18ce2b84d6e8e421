"""The naive procedure that the cost of choosing is held against does the same as ours."""

import json

import pytest

from bench import compress_speed, compress_worker

CASE = {
    "layers": 8, "hidden_size": 64, "vocab_size": 96, "samples": 3, "seq_len": 24, "remove": 2,
    "dtype": "float32", "device": "cpu", "threads": 1, "calibration": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    directory = tmp_path_factory.mktemp("made")
    compress_worker.make_model(CASE, directory)
    return {**CASE, "model": str(directory)}


@pytest.mark.parametrize("metric", compress_speed.METRICS)
def test_both_choose_the_same(case, metric):
    naive, ours = (
        compress_worker.run(k, {**case, "metric": metric})["cuts"] for k in ("naive", "ours")
    )
    assert [cut["removed"] for cut in naive] == [cut["removed"] for cut in ours]
    assert sum(len(cut["removed"]) for cut in ours) == case["remove"]
    assert [cut["factor"] for cut in naive] == pytest.approx(
        [cut["factor"] for cut in ours], rel=1e-4
    )


def test_plain_is_the_fastest_way_to_batch(case):
    found = compress_worker.run("plain", {**case, "metric": "bi"})
    assert found["by_batch_size_s"].keys() == {1, 3}
    assert found["time_s"] == min(sorted(each)[1] for each in found["by_batch_size_s"].values())


@pytest.mark.parametrize(
    ("times", "told"), [([1.0, 4.0, 2.0], 2.0), ([8.0, 10.0], 9.0), ([15.0], 15.0)]
)
def test_what_is_short_is_repeated(times, told):
    left = iter(times)
    found = compress_worker.repeated(lambda: {"time_s": next(left), "cuts": []})
    assert found == {"time_s": told, "times_s": times, "cuts": []}


def test_ratios_are_taken_within_a_turn(case, monkeypatch, tmp_path):
    """A machine that is three times slower in the second turn changes no ratio."""
    times = iter([2.0, 20.0, 4.0, 6.0, 60.0, 12.0, 2.0, 21.0, 3.0])
    cuts = [{"removed": [5], "factor": 1.5}]
    monkeypatch.setattr(
        compress_speed, "measure",
        lambda kind, case: {"time_s": next(times), "cuts": cuts, "peak_bytes": 1 << 20},
    )  # fmt: skip
    output, page = tmp_path / "speed.json", tmp_path / "page.md"
    page.write_text(f"before\n{compress_speed.BEGIN}\nold\n{compress_speed.END}\nbehind\n")
    code = compress_speed.main([
        "--model", case["model"], "--metrics", "bi", "--repeats", "3", "--quiet",
        "--output", str(output), "--document", str(page),
    ])  # fmt: skip
    assert code == 0
    (comparison,) = (v for k, v in json.loads(output.read_text()).items() if "comparison" in k)
    assert case["model"] not in output.read_text()  # nor any other folder of the machine
    (row,) = comparison["rows"]
    assert row["ours_over_plain_each"] == [2.0, 2.0, 1.5]
    assert row["ours_over_plain"] == 2.0
    assert row["naive_over_ours_each"] == [5.0, 5.0, 7.0]
    assert row["plain"]["times_s"] == [2.0, 6.0, 2.0]
    assert row["naive"]["time_s"] == 21.0
    text = page.read_text()
    assert "| bi | 2.00 | 21.00 | 4.00 | 2.00 | 5.00 | 1 / 1 | yes | 0.0e+00 |" in text
    assert text.startswith("before\n")
    assert text.endswith("behind\n")
    assert "old" not in text

"""Mixes, prompts, load points and the pieces of a run."""

import json

import pytest

from bench.conditions import Mix, Slo
from bench.placement import place
from bench.raw import Raw
from bench.schema import Model
from bench.serving import load_arguments
from bench.workload import Point, parse_mix, prompt_file_mix, random_prompts, rotated
from prunecomp.errors import UsageError


def test_mixes():
    assert parse_mix("balanced") == Mix("balanced", 256, 256, 32)
    assert parse_mix("mine=7:9x3") == Mix("mine", 7, 9, 3)
    for wrong in ("", "mine", "mine=7", "mine=0:1", "mine=1:1x0", "a b=1:1"):
        with pytest.raises(UsageError, match="--mix"):
            parse_mix(wrong)


def test_prompt_files(tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text('{"prompt": "one"}\n\n{"prompt": "two", "more": 1}\n')
    assert prompt_file_mix(file, output_tokens=5) == Mix("questions", None, 5, 2, str(file))
    for wrong in ("", "{}\n", "[1]\n", '{"prompt": 1}\n', "no json\n"):
        file.write_text(wrong)
        with pytest.raises(UsageError, match="give JSON lines"):
            prompt_file_mix(file, output_tokens=5)


def test_random_prompts():
    found = random_prompts(3, 50, vocabulary=11, seed=4)
    assert [len(p) for p in found] == [50] * 3
    assert {token for p in found for token in p} == set(range(11))
    assert found == random_prompts(3, 50, vocabulary=11, seed=4)
    assert found != random_prompts(3, 50, vocabulary=11, seed=5)


def test_rotation_gives_every_place_to_every_item():
    orders = [rotated("abc", by) for by in range(3)]
    assert orders == [list("abc"), list("bca"), list("cab")]
    assert rotated([], 3) == []


class Address:
    url, model = "http://there", "name"


def test_arguments_of_the_load_generator(tmp_path):
    def arguments(point: Point, slo: Slo) -> str:
        found = load_arguments(
            point, Address(), tokenizer=tmp_path, prompts=4, seed=3, slo=slo,
            result=tmp_path / "r.partial",
        )  # fmt: skip
        return " ".join(found)

    closed = arguments(Point(Mix("m", 7, 9, 4), concurrency=2), Slo(ttft_ms=100, e2el_ms=2000))
    assert "--request-rate inf --max-concurrency 2 " in closed
    assert "--dataset-name random --random-input-len 7 --random-output-len 9 " in closed
    assert "--goodput ttft:100 e2el:2000 " in closed
    assert "--ignore-eos" in closed
    given = arguments(Point(Mix("m", None, 9, 4, "p.jsonl"), request_rate=1.25), Slo())
    assert "--request-rate 1.25 --burstiness 1.0 " in given
    assert "--dataset-name custom --dataset-path p.jsonl --custom-output-len 9 " in given
    assert "goodput" not in given
    assert Point(Mix("m", 7, 9, 4), concurrency=8).prompts == 32


def test_pieces(tmp_path):
    raw = Raw(tmp_path / "run")
    assert raw.read("a/b") is None
    raw.open({"seed": 0, "mixes": (1, 2)})
    raw.write("a/b", {"x": 1})
    assert json.loads((tmp_path / "run" / raw.relative("a/b")).read_text()) == {"x": 1}
    with pytest.raises(UsageError, match="begun with another seed"):
        raw.open({"seed": 1, "mixes": (1, 2)})
    raw.open({"seed": 0, "mixes": (1, 2)})
    assert raw.read("a/b") == {"x": 1}
    (tmp_path / "run" / "mine.txt").touch()
    (tmp_path / "run" / "report.md").touch()
    raw.clear()
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["mine.txt"]


def models(*sizes: int) -> list[Model]:
    return [Model(str(n), "p", "pruned", "llama", 1, 0, (), 1, n << 30) for n in sizes]


def test_placement_on_a_gpu(monkeypatch):
    monkeypatch.setattr("bench.placement.gpu_memory_bytes", lambda: 140 << 30)
    four = models(16, 14, 13, 12)
    found = place(four, device="cuda", shards=1)
    assert found.together
    assert found.in_turns
    # 0.9 x 140 GiB, less 55 of weights and 4 x 4 of the rest, for four
    assert found.kv_cache_bytes == pytest.approx((126 - 55 - 16) / 4 * 2**30, rel=1e-6)
    assert found.arguments == (
        "--kv-cache-memory-bytes", str(found.kv_cache_bytes), "--gpu-memory-utilization", "0.225",
    )  # fmt: skip
    big = place(models(70, 60), device="cuda", shards=1)
    assert not big.together
    assert big.arguments == ()
    assert place(models(70, 60), device="cuda", shards=2).together
    assert not place(four, device="cuda", shards=1, engine_args=["--nnodes", "2"]).together
    fixed = place(four, device="cuda", shards=1, kv_cache_bytes=3 << 30, one_at_a_time=True)
    assert fixed.arguments == ("--kv-cache-memory-bytes", str(3 << 30))


def test_placement_on_a_cpu(monkeypatch):
    assert not place(models(10_000, 1), device="cpu", shards=1).together
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    found = place(models(1), device="cpu", shards=1)
    assert found.kv_cache_bytes == 3 << 30
    assert found.environment()["VLLM_CPU_KVCACHE_SPACE"] == "3"

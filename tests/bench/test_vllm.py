"""The whole path against real vLLM servers, one of which vLLM refuses."""

import json
import shutil

import numpy as np
import psutil
import pytest

import cli
from bench.schema import read_report

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
ROWS, LENGTH = 5, 12


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A Llama of two layers whose heads vLLM takes on a CPU, and one that is damaged."""
    from tests.oracles import tiny_models

    root = tmp_path_factory.mktemp("served")
    model = tiny_models.build(
        "llama-tied", vocab_size=257, hidden_size=64, num_attention_heads=2, num_key_value_heads=2,
        head_dim=32, num_hidden_layers=2, max_position_embeddings=256,
    )  # fmt: skip
    good = tiny_models.write(model, root / "good")
    tiny_models.byte_tokenizer().save_pretrained(good)
    refused = shutil.copytree(good, root / "refused")
    config = json.loads((refused / "config.json").read_text())
    config |= {"num_hidden_layers": 1, "head_dim": 34}
    (refused / "config.json").write_text(json.dumps(config))
    return good, refused


def test_real_servers(models, tmp_path, capsys):
    before = {p.pid for p in psutil.process_iter()}
    code = cli.main([
        "bench", *map(str, models), "-o", str(tmp_path / "run"), "-q", "--skip", "offline,accuracy",
        "--mix", f"small={LENGTH}:4x{ROWS}", "--concurrency", "2", "--request-rates", "20",
        "--repeats", "2", "--startup-timeout", "400", "--slo-ttft-ms", "60000",
    ])  # fmt: skip
    assert code == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "serving, minus-1: " in err
    assert (
        "vLLM ended with exit code 1 before it was up: RuntimeError: start (0) + length (68) "
        in err
    )
    report = read_report(tmp_path / "run")
    (failure,) = report.failures
    assert (failure.model, failure.stage) == ("minus-1", "serving")
    assert len(failure.message.splitlines()) > 5

    points = {s.mode: s for s in report.serving if s.model == "base"}
    assert {mode: (p.completed, p.failed) for mode, p in points.items()} == {
        "closed": (2 * 8, 0), "open": (2 * ROWS, 0),
    }  # fmt: skip
    for point in points.values():
        raw = [json.loads((tmp_path / "run" / name).read_text()) for name in point.raw]
        assert len(raw) == 2
        metrics = point.metrics
        # vLLM's own summary of the same samples
        for name in ("ttft", "tpot", "itl", "e2el"):
            found = getattr(metrics, f"{name}_ms")
            for q, value in ((50, found.p50), (90, found.p90), (99, found.p99)):
                expected = np.median([r[f"p{q}_{name}_ms"] for r in raw])
                assert value == pytest.approx(expected, rel=1e-6), (name, q)
        for name, found in (
            ("request_throughput", metrics.requests_per_s),
            ("output_throughput", metrics.output_tokens_per_s),
            ("total_token_throughput", metrics.total_tokens_per_s),
            ("request_goodput", metrics.goodput_requests_per_s),
        ):
            assert found.samples == pytest.approx([r[name] for r in raw], rel=1e-6)
        assert {n for r in raw for n in r["output_lens"]} == {4}
        assert [r["burstiness"] for r in raw] == [1.0, 1.0]
    (memory,) = report.memory
    # 2 layers, keys and values, 2 heads of 32, 4 bytes
    assert memory.kv_bytes_per_token == 2 * 2 * 2 * 32 * 4
    assert memory.kv_cache_tokens * memory.kv_bytes_per_token == pytest.approx(1 << 30, rel=0.01)
    assert memory.peak_bytes > 100 << 20
    assert any("vllm.entrypoints.openai.api_server" in c for c in report.environment.commands)
    assert any(c.startswith("vllm bench serve ") for c in report.environment.commands)
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.pid not in before
                and str(models[0].parent) in " ".join(p.info["cmdline"] or [])]  # fmt: skip

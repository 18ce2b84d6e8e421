"""Held against the published procedure, and vLLM against transformers; and when they differ."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from bench import compress_worker, greedy, naive, parity
from tests.bench.test_compress_speed import CASE


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    from safetensors.torch import save_file

    directory = tmp_path_factory.mktemp("made")
    compress_worker.make_model(CASE, directory / "model")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(CASE["vocab_size"], (3, 24), generator=generator)
    save_file({"input_ids": ids}, directory / "tokens.safetensors")
    return directory


def compared(made, capsys, *options):
    code = parity.main([
        str(made / "model"), "--layers", "2", "--calibration", str(made / "tokens.safetensors"),
        "--samples", "3", "--seq-len", "24", "--quiet", *options,
    ])  # fmt: skip
    return code, capsys.readouterr()


def test_the_choice_is_the_published_one(made, capsys):
    code, said = compared(made, capsys, "--json")
    assert code == 0
    found = json.loads(said.out)["metrics"]
    assert [one["metric"] for one in found] == ["bi", "mag"]
    for one in found:
        assert one["agrees"]
        assert one["largest_difference"] <= parity.TOLERANCE
        assert [c["removed"] for c in one["ours"]] == [c["removed"] for c in one["published"]]
        assert len(one["ours"]) == 2
        assert all(cut["factor"] != 1 for cut in one["ours"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda cuts: [naive.Cut(c.removed, c.factor + 2e-4) for c in cuts], "the same layers"),
        (lambda cuts: [naive.Cut((7,), c.factor) for c in cuts], "OTHER LAYERS"),
    ],
)
def test_a_difference_is_told(made, capsys, monkeypatch, change, says):
    real = naive.prune
    monkeypatch.setattr(naive, "prune", lambda *a, **k: change(real(*a, **k)))
    code, said = compared(made, capsys, "--metrics", "bi")
    assert code == 4
    assert said.err.endswith("error: bi: not as published; see above\n")
    assert f"bi: {says}" in said.out


def test_greedy_tokens(text_model):
    """Of the model itself, step by step without a cache; then with one token exchanged."""
    model = AutoModelForCausalLM.from_pretrained(text_model, dtype=torch.float32).eval()
    model.config.max_position_embeddings = 256
    ids = [10, 20, 30]
    with torch.no_grad():
        for _ in range(greedy.NEW_TOKENS):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    expected = ids[3:]
    assert greedy.compare(model, ids[:3], expected) == {"equal": True, "tokens": expected}
    other = [*expected[:5], expected[5] + 1, *expected[6:]]
    found = greedy.compare(model, ids[:3], other)
    assert (found["equal"], found["first_difference"]) == (False, 5)
    with torch.no_grad():
        best = model(torch.tensor([ids[:8]]), use_cache=False).logits[0, -1].topk(2).values
    assert found["margin"] == pytest.approx(float(best[0] - best[1]), abs=1e-4)

"""`cli.py export --format onnx`: layout, numbers, precisions, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.oracles import tiny_models

LAYERS = 2


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tied Llama of three layers, with a tokenizer."""
    path = tmp_path_factory.mktemp("onnx") / "model"
    tiny_models.write(
        tiny_models.build("llama-tied", vocab_size=257, num_hidden_layers=LAYERS + 1), path
    )
    tiny_models.byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def plan(model, tiny_tokens, tmp_path_factory) -> Path:
    import cli

    path = tmp_path_factory.mktemp("onnx-plan") / "plan.json"
    done = cli.main(["plan", str(model), "--layers", "1", "--calibration", str(tiny_tokens),
                     "-o", str(path), "-q"])  # fmt: skip
    assert done == 0
    return path


@pytest.fixture(scope="module")
def exported(model, plan, tmp_path_factory):
    """``exported(precision)``: the directory of the pruned model in that precision."""
    import cli

    root, made = tmp_path_factory.mktemp("onnx-out"), {}

    def get(precision: str) -> Path:
        if precision not in made:
            made[precision] = root / precision
            assert cli.main([
                "export", str(model), "--plan", str(plan), "--format", "onnx",
                "--precision", precision, "-o", str(made[precision]), "-q",
            ]) == 0  # fmt: skip
        return made[precision]

    return get


@pytest.fixture(scope="module")
def pruned(model, plan, tmp_path_factory):
    """The same pruned model, as transformers loads it from an ordinary checkpoint."""
    from transformers import AutoModelForCausalLM

    import cli

    path = tmp_path_factory.mktemp("onnx-pruned") / "pruned"
    assert cli.main(["apply", str(model), str(plan), "-o", str(path), "-q"]) == 0
    return AutoModelForCausalLM.from_pretrained(path).eval()


def session_of(directory: Path):
    import onnxruntime

    return onnxruntime.InferenceSession(directory / "model.onnx")


def greedy(directory: Path, ids: torch.Tensor, mask: torch.Tensor, new: int) -> torch.Tensor:
    """Tokens [batch, new] by a plain loop over the graph, written from the layout alone."""
    session = session_of(directory)
    names = [value.name for value in session.get_outputs()]
    inputs = {value.name: value for value in session.get_inputs()}
    config = json.loads((directory / "config.json").read_text())
    past = {
        name: np.zeros(
            (len(ids), config["num_key_value_heads"], 0, value.shape[3]),
            {"tensor(float)": np.float32, "tensor(float16)": np.float16}[value.type],
        )
        for name, value in inputs.items()
        if name.startswith("past_key_values.")
    }
    step, seen, made = ids.numpy(), mask.numpy(), []
    for _ in range(new):
        positions = np.maximum(seen.cumsum(1) - 1, 0)[:, -step.shape[1] :]
        feed = {"input_ids": step, "attention_mask": seen, "position_ids": positions, **past}
        result = dict(zip(names, session.run(names, feed), strict=True))
        assert np.isfinite(result["logits"][:, -1]).all()
        step = result["logits"][:, -1:].argmax(-1)
        made.append(step)
        seen = np.concatenate([seen, np.ones((len(ids), 1), dtype=seen.dtype)], 1)
        past = {name: result[name.replace("past_key_values", "present")] for name in past}
    return torch.from_numpy(np.concatenate(made, 1))


def padded_prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """Three prompts of different lengths, padded on the left."""
    ids = tiny_models.tokens(3, 9)
    mask = (torch.arange(9) >= torch.tensor([[0], [3], [7]])).long()
    return ids * mask, mask


def test_the_layout_is_the_one_that_the_ecosystem_loads(exported):
    session = session_of(exported("fp32"))
    caches = [f"{i}.{kind}" for i in range(LAYERS) for kind in ("key", "value")]
    inputs = {value.name: value for value in session.get_inputs()}
    outputs = {value.name: value for value in session.get_outputs()}
    assert set(inputs) == {
        "input_ids", "attention_mask", "position_ids", *(f"past_key_values.{c}" for c in caches)
    }  # fmt: skip
    assert set(outputs) == {"logits", *(f"present.{c}" for c in caches)}
    assert inputs["input_ids"].shape == ["batch_size", "sequence_length"]
    assert inputs["past_key_values.0.key"].shape == ["batch_size", 2, "past_sequence_length", 8]
    assert outputs["logits"].shape == ["batch_size", "sequence_length", 257]
    names = {path.name for path in exported("fp32").iterdir()}
    assert {"config.json", "tokenizer.json", "genai_config.json", "prunecomp.json"} <= names
    assert not any(name.startswith(".") for name in names)


def test_a_tied_embedding_is_stored_once(exported):
    import onnx

    graph = onnx.load(exported("fp32") / "model.onnx").graph
    shapes = [sorted(value.dims) for value in graph.initializer]
    assert shapes.count([32, 257]) == 1


def test_same_greedy_tokens_as_transformers(exported, pruned):
    ids, mask = padded_prompts()
    wanted = pruned.generate(
        input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=20, min_new_tokens=20,
        pad_token_id=0,
    )  # fmt: skip
    assert torch.equal(greedy(exported("fp32"), ids, mask, 20), wanted[:, ids.shape[1] :])


def test_the_difference_is_kept_in_the_manifest(exported):
    manifest = json.loads((exported("fp32") / "prunecomp.json").read_text())
    found = manifest["export"]["difference"]
    assert 0 < found["relative"] < found["tolerance"] == 1e-4
    assert manifest["plan"]["rounds"] if "plan" in manifest else manifest["rounds"]


def spoil(path: Path) -> None:
    """Changes one weight of the graph: the format stays right, the numbers do not."""
    import onnx

    graph = onnx.load(path)
    weight = next(v for v in graph.graph.initializer if sorted(v.dims) == [32, 48])
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0] += 1.0
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(graph, path)


@pytest.mark.parametrize("damage", ["one weight", "cut short"])
def test_a_wrong_graph_ends_with_code_4_and_leaves_nothing(
    damage, model, plan, exported, tmp_path, monkeypatch, capsys
):
    import cli
    from exporters import _onnx_graph

    good = (exported("fp32") / "model.onnx").read_bytes()

    def wrong(traced, path: Path, **options) -> None:
        path.write_bytes(good[: len(good) // 2] if damage == "cut short" else good)
        if damage == "one weight":
            spoil(path)

    monkeypatch.setattr(_onnx_graph, "write_graph", wrong)
    out = tmp_path / "out"
    code = cli.main(["export", str(model), "--plan", str(plan), "--format", "onnx", "-o", str(out)])
    error = capsys.readouterr().err.splitlines()[-1]
    assert code == 4
    assert ("differ by" if damage == "one weight" else "checker refuses") in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opset", ["9", "17", "99"])
def test_an_opset_that_cannot_be_written_is_refused_at_once(opset, model, tmp_path, capsys):
    import cli

    code = cli.main(["export", str(model), "--format", "onnx", "--opset", opset,
                     "-o", str(tmp_path / "out")])  # fmt: skip
    assert code == 2
    assert f"--opset {opset}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

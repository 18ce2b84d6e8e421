"""`cli.py export --format onnx`: layout, numbers, precisions, and what is refused."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli.support import REPOSITORY, largest_file
from tests.oracles import tiny_models

LAYERS = 2
#: Each takes most of the time of an export.
KILLS = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tied Llama of three layers, with a tokenizer."""
    path = tmp_path_factory.mktemp("onnx") / "model"
    tiny_models.write(
        tiny_models.build(
            "llama-tied", vocab_size=257, num_hidden_layers=LAYERS + 1, rms_norm_eps=1e-6
        ),
        path,
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


def export(model: Path, directory: Path, *options: str) -> Path:
    import cli

    assert cli.main(["export", str(model), "--format", "onnx", "-o", str(directory), "-q",
                     *options]) == 0  # fmt: skip
    return directory


@pytest.fixture(scope="module")
def exported(model, plan, tmp_path_factory) -> Path:
    """The model, pruned on the way, in fp32; tracing takes seconds, so this is the only one."""
    return export(model, tmp_path_factory.mktemp("onnx-out") / "fp32", "--plan", str(plan))


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
            (len(ids), config["num_key_value_heads"], 0, config["head_dim"]),
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
    session = session_of(exported)
    caches = [f"{i}.{kind}" for i in range(LAYERS) for kind in ("key", "value")]
    inputs = {value.name: value for value in session.get_inputs()}
    outputs = {value.name: value for value in session.get_outputs()}
    assert set(inputs) == {
        "input_ids", "attention_mask", "position_ids", *(f"past_key_values.{c}" for c in caches)
    }  # fmt: skip
    assert set(outputs) == {"logits", *(f"present.{c}" for c in caches)}
    assert inputs["input_ids"].shape == ["batch_size", "sequence_length"]
    assert inputs["past_key_values.0.key"].shape == [
        "batch_size", "num_key_value_heads", "past_sequence_length", "head_size"
    ]  # fmt: skip
    assert outputs["present.0.key"].shape == ["batch_size", 2, "total_length", 8]
    assert outputs["logits"].shape == ["batch_size", "sequence_length", 257]
    names = {path.name for path in exported.iterdir()}
    assert {"config.json", "tokenizer.json", "genai_config.json", "prunecomp.json"} <= names
    assert not any(name.startswith(".") for name in names)


def test_a_tied_embedding_is_stored_once(exported):
    import onnx

    graph = onnx.load(exported / "model.onnx").graph
    shapes = [sorted(value.dims) for value in graph.initializer]
    assert shapes.count([32, 257]) == 1


def test_onnx_runtime_finds_the_norms(exported, tmp_path):
    """As one operator each, of ONNX Runtime's own, after its optimisation: fast."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3  # it warns that the file is for this machine only
    onnxruntime.InferenceSession(exported / "model.onnx", options)
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
    norms = [node for node in nodes if node.op_type == "SimplifiedLayerNormalization"]
    assert len(norms) == 2 * LAYERS + 1


def test_keys_are_turned_without_being_flattened(exported):
    """One transposition a layer; with the detour of torch's translation, every step copies all."""
    import onnx

    nodes = onnx.load(exported / "model.onnx").graph.node
    orders = [list(n.attribute[0].ints) for n in nodes if n.op_type == "Transpose"]
    assert orders.count([0, 1, 3, 2]) == LAYERS
    assert [0, 2, 1] not in orders


def test_the_engine_of_the_benchmark_generates_these_tokens(exported, pruned):
    """What it is timed at is the greedy decoding of the model, with its cache."""
    from bench.engines.base import Options
    from bench.engines.onnxruntime import ENGINE

    ENGINE.check(exported)
    session = ENGINE.load(exported, Options(context=32, batch=2))
    found, run = [], session._session.run

    def watched(names, given):
        result = run(names, given)
        found.append((given["input_ids"].shape[1], result[0][:, -1].argmax(-1)))
        return result

    class Watched:
        run = staticmethod(watched)

    session._session = Watched()
    ids = tiny_models.tokens(2, 7)
    generated = session.generate(ids.tolist(), 5)
    assert [length for length, _ in found] == [7, 1, 1, 1, 1]
    expected = pruned.generate(
        ids, attention_mask=torch.ones_like(ids), min_new_tokens=5, max_new_tokens=5,
        do_sample=False, pad_token_id=0,
    )  # fmt: skip
    tokens = np.stack([best for _, best in found], axis=1)
    assert generated == tokens.tolist() == expected[:, 7:].tolist()


def test_same_greedy_tokens_as_transformers(exported, pruned):
    ids, mask = padded_prompts()
    wanted = pruned.generate(
        input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=20, min_new_tokens=20,
        pad_token_id=0,
    )  # fmt: skip
    assert torch.equal(greedy(exported, ids, mask, 20), wanted[:, ids.shape[1] :])


def test_the_difference_is_kept_in_the_manifest(exported):
    manifest = json.loads((exported / "prunecomp.json").read_text())
    found = manifest["export"]["difference"]
    assert 0 < found["relative"] < found["tolerance"] == 1e-4
    assert manifest["plan"]["rounds"] if "plan" in manifest else manifest["rounds"]


def spoil(path: Path, value: float) -> None:
    """Sets one weight of the graph: the format stays right, the numbers do not."""
    import onnx

    graph = onnx.load(path)
    weight = next(v for v in graph.graph.initializer if sorted(v.dims) == [32, 48])
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0] = value
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(graph, path)


@pytest.mark.parametrize(
    ("value", "said"),
    [(2.0, "differ by"), (float("inf"), "not finite"), (None, "checker refuses")],
    ids=["one weight", "infinite", "cut short"],
)
def test_a_wrong_graph_ends_with_code_4_and_leaves_nothing(
    value, said, model, plan, exported, tmp_path, monkeypatch, capsys
):
    import cli
    from exporters import _onnx_graph

    good = (exported / "model.onnx").read_bytes()

    def wrong(traced, path: Path, **options) -> None:
        path.write_bytes(good if value else good[: len(good) // 2])
        if value:
            spoil(path, value)

    monkeypatch.setattr(_onnx_graph, "write_graph", wrong)
    out = tmp_path / "out"
    code = cli.main(["export", str(model), "--plan", str(plan), "--format", "onnx", "-o", str(out)])
    assert code == 4
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_bf16_halves_the_weights_and_computes_in_fp32(tmp_path):
    import onnx

    model = tiny_models.build("llama-tied", num_hidden_layers=1)
    tiny_models.write(model, tmp_path / "model")
    out = export(tmp_path / "model", tmp_path / "out", "--precision", "bf16")
    graph = onnx.load(out / "model.onnx").graph
    types = {v.name: v.data_type for v in graph.initializer if len(v.dims) == 2}
    assert set(types.values()) == {onnx.TensorProto.BFLOAT16}
    (table,) = (v for v in graph.initializer if 97 in v.dims)
    wanted = model.model.embed_tokens.weight.to(torch.bfloat16).float().numpy()
    assert np.array_equal(onnx.numpy_helper.to_array(table).astype(np.float32), wanted)
    assert session_of(out).get_outputs()[0].type == "tensor(float)"
    greedy(out, *padded_prompts(), 3)  # asserts that logits are finite


def test_fp16_stays_finite_where_squares_and_masks_do_not_fit(tmp_path, monkeypatch):
    """Also with the weights beside the graph, as those of large models are."""
    from exporters import _onnx_graph

    monkeypatch.setattr(_onnx_graph, "EXTERNAL_ABOVE_BYTES", 10_000)

    model = tiny_models.build("llama-bias", num_hidden_layers=1, embedding_std=300.0)
    stream = model.model.embed_tokens.weight.detach().half()
    assert stream.isfinite().all()
    assert stream.square().isinf().any()
    tiny_models.write(model, tmp_path / "model")
    out = export(tmp_path / "model", tmp_path / "out", "--precision", "fp16")
    assert (out / "model.onnx_data").stat().st_size > 10_000
    greedy(out, *padded_prompts(), 5)  # asserts that logits are finite
    assert session_of(out).get_inputs()[-1].type == "tensor(float16)"


def test_weights_that_are_quantised_already_are_refused(model, tmp_path, monkeypatch, capsys):
    import cli
    from prunecomp.checkpoint.reader import Checkpoint

    class Fp8(Checkpoint):
        def __init__(self, path, **options):
            super().__init__(path, **options)
            self.quantized = object()

    monkeypatch.setattr("prunecomp.checkpoint.reader.Checkpoint", Fp8)
    code = cli.main(["export", str(model), "--format", "onnx", "-o", str(tmp_path / "out")])
    assert code == 2
    assert "takes unquantised weights" in capsys.readouterr().err


@pytest.mark.parametrize("opset", ["9", "17", "99"])
def test_an_opset_that_cannot_be_written_is_refused_at_once(opset, model, tmp_path, capsys):
    import cli

    code = cli.main(["export", str(model), "--format", "onnx", "--opset", opset,
                     "-o", str(tmp_path / "out")])  # fmt: skip
    assert code == 2
    assert f"--opset {opset}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("precision", "beside", "part"),
    [("fp32", False, 0.5), ("fp32", True, 0.5), ("int8", False, 0.95), ("int8", False, 0.1)],
    ids=["graph", "weights beside it", "graph to quantise", "quantised graph"],
)
def test_a_full_disk_leaves_nothing(
    precision, beside, part, model, exported, tmp_path, monkeypatch, capsys
):
    import cli
    from exporters import _onnx_graph

    if beside:
        monkeypatch.setattr(_onnx_graph, "EXTERNAL_ABOVE_BYTES", 10_000)
    limit = int((exported / "model.onnx").stat().st_size * part)
    with largest_file(limit):
        code = cli.main(["export", str(model), "--format", "onnx", "--precision", precision,
                         "-q", "-o", str(tmp_path / "out")])  # fmt: skip
    assert code == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"error: {tmp_path / 'out'}: ")
    assert "space" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_killed_at_random_moments(model, exported, tmp_path):
    """Under its name there is a whole graph or none; 50 times, and what follows, in test_export."""
    out = tmp_path / "out"
    command = [sys.executable, REPOSITORY / "cli.py", "export", model, "--format", "onnx"]
    command += ["-o", out]
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.monotonic() - started
    whole = (out / "model.onnx").read_bytes()
    for seed in range(KILLS):
        shutil.rmtree(out, ignore_errors=True)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(random.Random(seed).uniform(seconds / 3, seconds))
        process.kill()
        process.wait()
        assert not out.exists() or (out / "model.onnx").read_bytes() == whole

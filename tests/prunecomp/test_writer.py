"""Bytes: what is written against the format's own library, and against naive arithmetic."""

from __future__ import annotations

import json
import math
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from prunecomp.calibration.view import PlannedModel
from prunecomp.checkpoint.layout import as_stored, layout
from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.checkpoint.writer import write_index, write_weights
from prunecomp.fold import compile_edits
from tests.oracles import tiny_models

ROUNDS = [((3,), 1.3), ((2, 4), 0.8), ((6,), 1.17)]
KEPT = (0, 1, 5, 7)
WRITERS = ("o_proj.weight", "o_proj.bias", "down_proj.weight", "down_proj.bias")


def write(directory, output, plan) -> list[str]:
    checkpoint = Checkpoint(directory)
    output.mkdir()
    edits = compile_edits(plan, checkpoint.family, checkpoint, tied=checkpoint.tied)
    saved = as_stored(checkpoint)
    shards = layout(checkpoint, edits, saved, None)
    write_weights(output, checkpoint, shards)
    return write_index(output, checkpoint, shards, saved)


def raw(path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """All tensors of all safetensors files of a directory as dtype, shape, bytes."""
    found = {}
    for file in sorted(path.glob("*.safetensors")):
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8 : 8 + length]).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                assert name not in found
                found[name] = (
                    entry["dtype"], tuple(entry["shape"]),
                    data[8 + length + begin : 8 + length + end],
                )  # fmt: skip
    return found


def naive_scale(source: torch.Tensor, factors: list[float]) -> torch.Tensor:
    """Product of the factors in float64, one fp32 multiplication, one rounding."""
    product = np.float64(1.0)
    for factor in factors:
        product = product * np.float64(factor)
    value = source.to(torch.float32).numpy() * np.float32(product)
    return torch.from_numpy(np.ascontiguousarray(value)).to(source.dtype)


def naive_result(tensors: dict[str, torch.Tensor], fold: str) -> dict[str, torch.Tensor]:
    """The tensors after `ROUNDS` on an untied model, by the definition."""
    result = {}
    for name, tensor in tensors.items():
        new, value = name, tensor
        if name.startswith("model.layers."):
            layer, relative = name.removeprefix("model.layers.").split(".", 1)
            if int(layer) not in KEPT:
                continue
            new = f"model.layers.{KEPT.index(int(layer))}.{relative}"
            if relative.endswith(WRITERS):
                behind = [s for removed, s in ROUNDS if removed[0] > int(layer)]
                before = [s for removed, s in ROUNDS if removed[0] < int(layer)]
                if fold == "upstream" and behind:
                    value = naive_scale(tensor, behind)
                elif fold == "downstream" and before:
                    value = naive_scale(tensor, [1 / math.prod(before)])
        elif name == "model.embed_tokens.weight" and fold == "upstream":
            value = naive_scale(tensor, [s for _, s in ROUNDS])
        result[new] = value
    return result


@pytest.fixture(scope="module")
def mixed(tiny_model, tmp_path_factory):
    """A checkpoint of many dtypes, with tensors that no model class knows."""
    directory = tmp_path_factory.mktemp("mixed") / "model"
    tiny_models.write(tiny_model("llama-bias"), directory)
    tensors = load_file(directory / "model.safetensors")
    for i, name in enumerate(sorted(tensors)):
        tensors[name] = tensors[name].to(
            (torch.float32, torch.bfloat16, torch.float16)[i % 3]
        ).contiguous()  # fmt: skip
    tensors["model.layers.5.self_attn.rotary_emb.inv_freq"] = torch.rand(6)
    tensors["model.counts"] = torch.arange(10)
    tensors["model.bytes"] = torch.arange(7, dtype=torch.uint8)
    tensors["model.flag"] = torch.tensor(True)
    tensors["model.scalar"] = torch.tensor(1.5, dtype=torch.float64)
    tensors["model.empty"] = torch.zeros(0, 4, dtype=torch.float16)
    tensors['model.n\u00e4me "quoted"'] = torch.ones(3, dtype=torch.bfloat16)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory, tensors


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_no_op_is_byte_equal(name, tiny_directory, tmp_path, hand_plan):
    source = tiny_directory(name)
    for fold in ("downstream", "upstream"):
        files = write(source, tmp_path / fold, hand_plan(Checkpoint(source), [], fold))
        assert files == ["model.safetensors"]
        written = (tmp_path / fold / "model.safetensors").read_bytes()
        assert written == (source / "model.safetensors").read_bytes()


def test_no_op_of_mixed_dtypes_is_the_file_of_the_official_writer(mixed, tmp_path, hand_plan):
    directory, tensors = mixed
    write(directory, tmp_path / "out", hand_plan(Checkpoint(directory), []))
    assert {entry[0] for entry in raw(directory).values()} == {
        "F32", "BF16", "F16", "I64", "U8", "BOOL", "F64",
    }  # fmt: skip
    save_file(tensors, tmp_path / "official.safetensors", metadata={"format": "pt"})
    written = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert written == (tmp_path / "official.safetensors").read_bytes()


@pytest.mark.parametrize("fold", ["downstream", "upstream"])
def test_edited_file_is_that_of_naive_arithmetic_and_the_official_writer(
    fold, mixed, tmp_path, hand_plan
):
    directory, tensors = mixed
    write(directory, tmp_path / "out", hand_plan(Checkpoint(directory), ROUNDS, fold))
    expected = naive_result(tensors, fold)
    originals = {id(tensor) for tensor in tensors.values()}
    edited = [name for name, value in expected.items() if id(value) not in originals]
    assert len(edited) == {"downstream": 2 * 4, "upstream": 3 * 4 + 1}[fold]
    save_file(expected, tmp_path / "official.safetensors", metadata={"format": "pt"})
    written = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert written == (tmp_path / "official.safetensors").read_bytes()


@pytest.fixture(scope="module")
def bf16(tiny_model, tmp_path_factory):
    """The biased Llama in bf16, in many shards."""
    import copy

    directory = tmp_path_factory.mktemp("bf16") / "model"
    model = copy.deepcopy(tiny_model("llama-bias")).to(torch.bfloat16)
    return tiny_models.write(model, directory, max_shard_size="30KB")


@pytest.mark.parametrize("fold", ["downstream", "upstream"])
def test_bf16_edits_round_once(fold, bf16, tmp_path, hand_plan):
    """And every tensor without an edit has the bytes of its source."""
    source = {}
    for file in bf16.glob("*.safetensors"):
        source |= load_file(file)
    write(bf16, tmp_path / "out", hand_plan(Checkpoint(bf16), ROUNDS, fold))
    written, expected = {}, naive_result(source, fold)
    for file in (tmp_path / "out").glob("*.safetensors"):
        written |= load_file(file)
    assert written.keys() == expected.keys()
    for name, value in expected.items():
        assert written[name].dtype == torch.bfloat16
        assert torch.equal(written[name].view(torch.int16), value.view(torch.int16)), name


def test_rounding_once_differs_from_rounding_each_round(bf16):
    """So the test above can tell them apart."""
    source = load_file(next(iter(sorted(bf16.glob("*.safetensors")))))
    weight = next(t for n, t in source.items() if t.ndim == 2)
    once, repeatedly = naive_scale(weight, [1.3, 0.8, 1.17]), weight
    for factor in (1.3, 0.8, 1.17):
        repeatedly = naive_scale(repeatedly, [factor])
    assert not torch.equal(once, repeatedly)


def test_sharded_source(bf16, tmp_path, hand_plan):
    assert len(list(bf16.glob("*.safetensors"))) > 3
    limit = max(
        sum(len(data) for _, _, data in raw_file.values())
        for raw_file in [_one(file) for file in bf16.glob("*.safetensors")]
    )
    output = tmp_path / "out"
    files = write(bf16, output, hand_plan(Checkpoint(bf16), ROUNDS))
    assert sorted(files) == sorted(path.name for path in output.iterdir())
    index = json.loads((output / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert shards == [
        f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)
    ]
    total = 0
    for shard in shards:
        with safe_open(output / shard, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            names = set(file.keys())
        assert names == {n for n, s in index["weight_map"].items() if s == shard}
        size = sum(len(data) for _, _, data in _one(output / shard).values())
        assert 0 < size <= limit
        total += size
    assert index["metadata"] == {"total_size": total, "total_parameters": total // 2}

    config = json.loads((bf16 / "config.json").read_text()) | {"num_hidden_layers": len(KEPT)}
    (output / "config.json").write_text(json.dumps(config))
    model, info = AutoModelForCausalLM.from_pretrained(output, output_loading_info=True)
    assert not any(info.values())
    assert model.dtype == torch.bfloat16
    written = raw(output)
    for name, parameter in model.named_parameters():
        assert parameter.detach().view(torch.uint8).numpy().tobytes() == written[name][2], name


def _one(file):
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return {
        name: (e["dtype"], e["shape"], data[8 + length :][slice(*e["data_offsets"])])
        for name, e in json.loads(data[8 : 8 + length]).items()
        if name != "__metadata__"
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("fold", ["downstream", "upstream"])
def test_the_model_in_memory_is_the_one_that_is_written(
    fold, dtype, bf16, tiny_ids, written, hand_plan
):
    """Bitwise: weights, and logits of layer-wise passes against the loaded result's own."""
    checkpoint = Checkpoint(bf16)
    planned = PlannedModel(checkpoint, device=torch.device("cpu"), dtype=dtype)
    for count in range(1, len(ROUNDS) + 1):  # round by round, as it happens
        planned.apply(hand_plan(checkpoint, ROUNDS[:count], fold))
    assert planned.live == KEPT
    output = written(bf16, ROUNDS, fold)
    result = AutoModelForCausalLM.from_pretrained(output, dtype=dtype).eval()
    for position, original in enumerate(KEPT):
        ours = dict(planned.layer(original).named_parameters())
        for name, theirs in result.model.layers[position].named_parameters():
            assert torch.equal(ours[name], theirs), (original, name)
    embedding = planned.model.model.embed_tokens.weight
    assert torch.equal(embedding, result.model.embed_tokens.weight)

    with torch.no_grad():
        hidden = planned.embed(tiny_ids)
        for original in planned.live:
            hidden = planned.run_layer(original, hidden)
        assert torch.equal(
            planned.logits(hidden, tiny_ids), result(input_ids=tiny_ids, use_cache=False).logits
        )


@pytest.mark.parametrize("fold", ["downstream", "upstream"])
@pytest.mark.parametrize("name", ["llama-bias", "llama-tied"])
def test_an_earlier_plan_takes_edits_back(name, fold, tiny_directory, hand_plan):
    checkpoint = Checkpoint(tiny_directory(name))
    planned = PlannedModel(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    planned.apply(hand_plan(checkpoint, ROUNDS, fold))
    for rounds in (ROUNDS[:1], []):
        planned.apply(hand_plan(checkpoint, rounds, fold))
        fresh = PlannedModel(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
        fresh.apply(hand_plan(checkpoint, rounds, fold))
        assert planned.live == fresh.live
        for layer in planned.live:
            ours, theirs = planned.layer(layer).state_dict(), fresh.layer(layer).state_dict()
            assert all(torch.equal(ours[n], theirs[n]) for n in theirs)
        for part in ("embed_tokens", "norm"):
            ours, theirs = getattr(planned.model.model, part), getattr(fresh.model.model, part)
            assert torch.equal(ours.weight, theirs.weight)


def test_a_short_write_is_an_error(tiny_directory, tmp_path, hand_plan):
    """``write(2)`` may take fewer bytes than given: at 2 GiB, and when space or quota runs out.

    A file-size limit in the middle of the last tensor provokes it here.
    """
    source = tiny_directory("llama-bias")
    plan = hand_plan(Checkpoint(source), [], "downstream")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (source / "model.safetensors").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 16, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write(source, tmp_path / "out", plan)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("most", [10 << 20, 1 << 30])
def test_reading_ahead(most, tmp_path):
    """All weight files, up to a limit; what cannot be read is not its business."""
    from prunecomp.checkpoint.ahead import _BLOCK_BYTES, read_ahead

    def read_bytes() -> int:
        (line,) = [v for v in Path("/proc/self/io").read_text().splitlines() if "rchar" in v]
        return int(line.split()[1])

    for name in ("b.safetensors", "a.safetensors", "other.bin"):
        (tmp_path / name).write_bytes(bytes(20 << 20))
    before = read_bytes()
    read_ahead(tmp_path, most=most).join()
    wanted = min(most, 40 << 20)
    assert wanted <= read_bytes() - before < wanted + _BLOCK_BYTES + (1 << 20)
    (tmp_path / "c.safetensors").mkdir()
    read_ahead(tmp_path).join()
    read_ahead(tmp_path / "missing").join()

"""The safetensors exporter against transformers' own ``save_pretrained``."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from prunecomp.errors import NumericError
from prunecomp.fold import TensorEdit
from tests.families import tiny
from tests.oracles import quantised, tiny_models

#: model type and the number of its tiny model: untied, tied, one and two norms a sub-block,
#: buffers that are saved, experts that are one tensor in memory and many in files.
FAMILIES = ["llama", "qwen2", "qwen3", "gemma2", "mixtral", "qwen3_moe", "deepseek_v3", "gpt2"]


def weight_files(directory: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in directory.iterdir()
        if path.name.startswith("model") and path.name.partition(".")[2].startswith("safetensors")
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """``saved(type)``: a bf16 directory of a tiny model, in shards."""
    made = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "model"
            model = tiny.build(name, 0).to(torch.bfloat16)
            model.save_pretrained(made[name], max_shard_size="40KB")
        return made[name]

    return get


@pytest.fixture
def export(capsys):
    import cli

    def call(*arguments) -> dict:
        capsys.readouterr()
        code = cli.main(["export", "-q", "--json", *map(str, arguments)])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return json.loads(captured.out)["facts"]

    return call


@pytest.mark.parametrize("name", FAMILIES)
def test_files_are_those_of_transformers(name, saved, export, tmp_path):
    """Names, order, shards, headers, data and index, for several sizes and dtypes."""
    source = saved(name)
    for number, (size, dtype) in enumerate([("60KB", "bfloat16"), (None, "float16")]):
        theirs, ours = tmp_path / f"theirs{number}", tmp_path / f"ours{number}"
        model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype))
        model.save_pretrained(theirs, **({"max_shard_size": size} if size else {}))
        options = ["--max-shard-size", size] if size else []
        export(source, "-o", ours, *options, "--dtype", dtype)
        a, b = weight_files(theirs), weight_files(ours)
        assert sorted(a) == sorted(b)
        assert [file for file in a if a[file] != b[file]] == []
        assert (len(a) > 2) == (size is not None)


@pytest.fixture(scope="module")
def planned(text_model, tiny_tokens, tmp_path_factory):
    """The text model and plans of three rounds for it, one per fold."""
    import cli

    root = tmp_path_factory.mktemp("plans")
    for fold in ("downstream", "upstream"):
        options = ["--layers", "3", "--calibration", str(tiny_tokens), "--fold", fold]
        assert cli.main(["plan", str(text_model), "-q", *options, "-o", str(root / fold)]) == 0
    return text_model, root


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {k: v for f in directory.glob("*.safetensors") for k, v in load_file(f).items()}


@pytest.mark.parametrize("fold", ["downstream", "upstream"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_plan_and_dtype_round_once(planned, export, tmp_path, fold, dtype):
    """From the fp32 source: one product of factors in float64, one fp32 multiplication, a cast."""
    model, plans = planned
    export(model, "--plan", plans / fold, "-o", tmp_path / "wide", "--dtype", "float32")
    facts = export(model, "--plan", plans / fold, "-o", tmp_path / "out", "--dtype", dtype)
    wide, narrow = tensors(tmp_path / "wide"), tensors(tmp_path / "out")
    assert wide.keys() == narrow.keys()
    for name, value in wide.items():
        assert torch.equal(narrow[name], value.to(getattr(torch, dtype))), name
    assert facts["edited_tensors"] > 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == dtype
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == getattr(torch, dtype)


@pytest.mark.parametrize("kernel_copies", [True, False])
def test_small_pieces_change_nothing(planned, export, tmp_path, monkeypatch, kernel_copies):
    """Nor does a system that cannot copy; the digests of the plan are computed in steps, too."""
    from prunecomp.checkpoint import writer

    model, plans = planned
    options = ["--plan", plans / "upstream", "--max-shard-size", "40KB"]
    export(model, *options, "-o", tmp_path / "whole" / "out")
    monkeypatch.setattr(writer, "_WINDOW_BYTES", 1000)
    monkeypatch.setattr(writer, "_PIECE_BYTES", 136)
    monkeypatch.setattr(writer, "_CHUNK_BYTES", 77)
    if not kernel_copies:

        def refuse(*arguments):
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr("os.copy_file_range", refuse)
    export(model, *options, "-o", tmp_path / "pieces" / "out")
    first, second = (weight_files(tmp_path / each / "out") for each in ("whole", "pieces"))
    assert len(first) > 4
    assert first == second


def test_single_file(saved, export, tmp_path):
    source = saved("llama")
    assert len(weight_files(source)) > 2
    facts = export(source, "-o", tmp_path / "out", "--single-file")
    assert weight_files(tmp_path / "out").keys() == {"model.safetensors"}
    assert facts["nbytes"] == sum(t.nbytes for t in tensors(source).values())


def test_quantised_parts_keep_their_dtype(export, tmp_path):
    """Codes and scales stay as they are; what is not quantised is converted."""
    source = tmp_path / "model"
    tiny_models.build("llama-bias").to(torch.bfloat16).save_pretrained(source)
    quantised.quantise_directory(source, quantised.fp8(block=False))
    export(source, "-o", tmp_path / "out", "--dtype", "float16")
    before, after = tensors(source), tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name].dtype != after[name].dtype}
    assert {"model.embed_tokens.weight", "model.norm.weight"} <= changed
    kept = before.keys() - changed
    assert any("scale" in name for name in kept)
    assert not any("scale" in name or before[name].dtype.itemsize == 1 for name in changed)
    for name in kept:
        a, b = (each[name].flatten().view(torch.uint8) for each in (before, after))
        assert torch.equal(a, b), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_cut_of_half_precision_is_exact(dtype):
    """Every value of the dtype, times many factors, against fp32 and one rounding."""
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(dtype)
    every = every[torch.isfinite(every)]
    generator = torch.Generator().manual_seed(0)
    for scale in (torch.rand(200, generator=generator, dtype=torch.float64) * 3 + 1e-3).tolist():
        expected = (every.to(torch.float32) * scale).to(dtype)
        fits = torch.isfinite(expected)
        found = TensorEdit("a", "a", scale).apply(lambda _, fits=fits: every[fits])
        assert torch.equal(found.view(torch.int16), expected[fits].view(torch.int16)), scale
        if not fits.all():
            with pytest.raises(NumericError, match="does not fit"):
                TensorEdit("a", "a", scale).apply(lambda _: every)

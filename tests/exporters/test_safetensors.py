"""The safetensors exporter against transformers' own ``save_pretrained``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.families import tiny

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

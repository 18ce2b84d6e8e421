"""Weights that are damaged, forged, incomplete or not numbers: exit code 2 and where."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

WEIGHTS = "model.safetensors"
O_PROJ = "model.layers.3.self_attn.o_proj.weight"


def header(model: Path) -> tuple[dict, bytes]:
    data = (model / WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def put_header(model: Path, head, data: bytes = b"") -> None:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    (model / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data)


def shard(model: Path, change=lambda weight_map: weight_map) -> None:
    """Makes the copy a sharded one whose index is changed."""
    name = "model-00001-of-00001.safetensors"
    weight_map = change({k: name for k in header(model)[0] if k != "__metadata__"})
    (model / WEIGHTS).rename(model / name)
    (model / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
    )


def test_only_pickled_weights(refused_compress, model):
    (model / WEIGHTS).unlink()
    (model / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n")
    refused_compress(
        model, says=("pickled", "pytorch_model.bin", "from_pretrained", "save_pretrained")
    )


def test_no_weights(refused_compress, model):
    (model / WEIGHTS).unlink()
    refused_compress(model, says=("has neither", "model.safetensors"))


@pytest.mark.parametrize("length", [0, 4, 8, 100, -1, -1000])
def test_truncated(refused_compress, model, length):
    data = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(data[:length])
    refused_compress(model, says=("model.safetensors: damaged", "download it again"))


def test_bytes_behind_the_end(refused_compress, model):
    with (model / WEIGHTS).open("ab") as file:
        file.write(b"\0" * 8)
    refused_compress(model, says="damaged")


@pytest.mark.parametrize("length", [0, 1, 5, 2**31, 2**63, 2**64 - 1])
def test_header_length_lies(refused_compress, model, length):
    data = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(length.to_bytes(8, "little") + data[8:])
    refused_compress(model, says="damaged")


@pytest.mark.parametrize(
    "text", [b"[1]", b"\xff\xfe{}", b"[" * 200_000, b'{"a": ' + b"1" * 5000 + b"}", b'{"x": 3}']
)
def test_header_is_not_one(refused_compress, model, text):
    put_header(model, text)
    refused_compress(model, says="damaged")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shape", [33]), ("shape", [-32]), ("shape", ["32"]), ("shape", "32"), ("shape", None),
        ("shape", [2**70, 0]), ("dtype", "F64"), ("dtype", "F33"), ("dtype", ["F32"]),
        ("data_offsets", [0]), ("data_offsets", [0, -64]), ("data_offsets", [10**30, 10**30 + 64]),
        ("data_offsets", "ab"),
    ],
)  # fmt: skip
def test_entry_lies(refused_compress, model, key, value):
    head, data = header(model)
    head["model.norm.weight"][key] = value
    put_header(model, head, data)
    refused_compress(model, says=("damaged", "tensor"))


def test_overlapping_tensors(refused_compress, model):
    head, data = header(model)
    head["model.norm.weight"]["data_offsets"] = [0, 64]
    put_header(model, head, data)
    refused_compress(model, says=("damaged", "invalid offset for tensor"))


def rename_tensor(model: Path, old: str, new: str) -> None:
    head, data = header(model)
    put_header(model, {new if k == old else k: v for k, v in head.items()}, data)


@pytest.mark.parametrize("name", [O_PROJ, "model.embed_tokens.weight", "lm_head.weight"])
def test_missing_tensor(refused_compress, model, name):
    rename_tensor(model, name, "something.else")
    refused_compress(model, says=("missing or misshapen", name))


@pytest.mark.parametrize("number", ["²", "03", "x", "-1"])
def test_tensor_of_a_layer_that_is_no_number(refused_compress, model, number):
    rename_tensor(model, O_PROJ, f"model.layers.{number}.self_attn.o_proj.weight")
    refused_compress(model)


def test_misshapen_tensor(refused_compress, model):
    head, data = header(model)
    head[O_PROJ]["shape"] = [16, 64]
    put_header(model, head, data)
    refused_compress(model, says=("missing or misshapen", O_PROJ))


@pytest.mark.parametrize(
    "file", ["model-00002.safetensors", "../pristine/model.safetensors", "/etc/passwd", "..", ".",
             "", "config.json", 3, None, ["a"]],
    ids=repr,
)  # fmt: skip
def test_index_names_what_is_not_there(refused_compress, model, file):
    shard(model, lambda weight_map: {**weight_map, O_PROJ: file})
    refused_compress(model, says=("model-00002" if file == "model-00002.safetensors" else "",))


def test_index_leads_outside(refused_compress, model, pristine):
    """Not even to a file that holds the tensor."""
    outside = os.path.relpath(pristine / WEIGHTS, model)
    shard(model, lambda weight_map: {**weight_map, O_PROJ: outside})
    refused_compress(model, says=(outside, "not a file of this directory"))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_index_is_not_one(refused_compress, model, content):
    (model / "model.safetensors.index.json").write_text(content)
    refused_compress(model, says="model.safetensors.index.json")


def test_index_places_a_tensor_that_no_file_holds(refused_compress, model):
    shard(model, lambda w: {**w, "extra": "model-00001-of-00001.safetensors"})
    refused_compress(model, says=("places extra", "does not hold it"))


def test_index_forgets_a_tensor(cli, model, small, tmp_path):
    """transformers reads it all the same."""
    shard(model, lambda w: {k: v for k, v in w.items() if k != "lm_head.weight"})
    ended = cli("compress", model, "-q", "-o", tmp_path / "out", "--layers", 1, *small)
    assert (ended.code, ended.err) == (0, "")


def change(model: Path, name: str, edit) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / WEIGHTS)
    edit(tensors[name])
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})


def test_weights_that_give_no_numbers(refused_compress, model):
    change(model, "lm_head.weight", lambda weight: weight.mul_(1e30))
    refused_compress(model, code=1, says=("not finite", "the weights are damaged"))


#: Written by no edit; read for few tokens, or for none; edited; before and behind any cut.
ANYWHERE = [
    "lm_head.weight",
    "model.embed_tokens.weight",
    "model.layers.0.mlp.up_proj.weight",
    O_PROJ,
]


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("name", ANYWHERE)
def test_a_weight_that_is_no_number_is_named(refused, refused_compress, model, name, value):
    def spoil(weight):
        weight[-1, -1] = value

    change(model, name, spoil)
    says = (name, "holds NaN or infinity", "restore the file")
    refused_compress(model, says=says)
    refused("export", model, "-q", "-o", model.parent / "out", says=says)


@pytest.mark.parametrize("options", [[], ["--no-check"]])
@pytest.mark.parametrize("name", ANYWHERE)
def test_apply_names_it_too(refused, model, planned, tmp_path, name, options):
    """A plan of such files cannot be made; here somebody has written their digests into one."""
    import hashlib

    change(model, name, lambda weight: weight[-1].fill_(float("nan")))
    digest = hashlib.sha256((model / WEIGHTS).read_bytes()).hexdigest()
    source = {**planned["source"], "sha256": {**planned["source"]["sha256"], WEIGHTS: digest}}
    (tmp_path / "plan.json").write_text(json.dumps({**planned, "source": source}))
    arguments = ["apply", model, tmp_path / "plan.json", "-q", "-o", tmp_path / "out", *options]
    refused(*arguments, says=(name, "holds NaN or infinity"))


def test_the_comparison_can_be_left_out(cli, model, planned, tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps(planned))
    for options, compared in (([], True), (["--no-check"], False)):
        output = tmp_path / f"out{compared}"
        ended = cli("apply", model, tmp_path / "plan.json", "-o", output, *options)
        assert ended.code == 0, ended.err
        assert ("checked: on 16 tokens" in ended.err) == compared
        manifest = json.loads((output / "prunecomp.json").read_text())
        assert ("runs-as-planned" in manifest["checks"]) == compared
        assert (manifest["comparison"].get("tokens") == 16) == compared


@pytest.mark.parametrize("name", ["lm_head.weight", O_PROJ, "model.embed_tokens.weight"])
def test_headers_tell_it_to_all_commands(refused, model, planned, small, tmp_path, name):
    """A tensor that is missing, before anything is read or run."""
    rename_tensor(model, name, "something.else")
    (tmp_path / "plan.json").write_text(json.dumps(planned))
    out = ["-q", "-o", tmp_path / "out"]
    says = ("missing or misshapen", name)
    refused("inspect", model, *small, says=says)
    refused("plan", model, *out, "--layers", 1, "--dry-run", *small, says=says)
    refused("export", model, *out, says=says)
    refused("export", model, *out, "--dry-run", says=says)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "bool", "complex64"])
@pytest.mark.parametrize("name", [O_PROJ, "model.embed_tokens.weight"])
def test_weights_that_are_no_floats(refused_compress, model, dtype, name):
    """Codes of a quantised model whose settings are lost, say; a factor would round them."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / WEIGHTS)
    tensors[name] = tensors[name].float().to(getattr(torch, dtype))
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})
    refused_compress(model, says=(name, "where a weight has to be a float", "restore"))


def test_masks_that_are_no_floats_are_no_hindrance(cli, model, small, tmp_path):
    """Buffers of some published files; transformers passes them over."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / WEIGHTS)
    tensors["model.layers.0.self_attn.masked_bias"] = torch.zeros(3, dtype=torch.bool)
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})
    ended = cli("apply", model, "nope.json", "-o", tmp_path / "out")
    assert "nope.json: cannot read it" in ended.err
    ended = cli("inspect", model, *small)
    assert ended.code == 0, ended.err

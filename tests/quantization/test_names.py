"""Settings that name modules by layer, after layers went: the readers' own rules are the oracle."""

from __future__ import annotations

import json
import re

import pytest
import torch
from compressed_tensors.utils.match import match_name
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.quantizers.quantizers_utils import should_convert_module

from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.errors import CheckpointError, UnsupportedModelError
from prunecomp.pipeline import apply_plan
from prunecomp.quantization import _names
from tests.families import tiny
from tests.families.test_conformance import QUIET, plan_for
from tests.oracles import quantised

LAYERS, KEPT = 12, (0, 2, 3, 4, 5, 6, 7, 8, 9, 11)
MODULES = ("self_attn.q_proj", "mlp.gate", "mlp.gate_proj", "mlp.down_proj", "input_layernorm")


def renumbering():
    modules = [(i, module) for i in range(LAYERS) for module in MODULES] + [(None, "lm_head")]
    return _names.Renumbering(modules, "model.layers", KEPT)


def said(pattern, names):
    return renumbering().of(pattern, _names.NameList(("ignore",), *names))


LIST = ((_names.exact_or_regex,),)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("lm_head", ["lm_head"]),
        ("Linear", ["Linear"]),
        ("re:.*down_proj", ["re:.*down_proj"]),
        ("re:.*layers.*gate$", ["re:.*layers.*gate$"]),
        ("model.layers.0.mlp.gate", ["model.layers.0.mlp.gate"]),
        ("model.layers.1.mlp.gate", []),
        ("model.layers.11.mlp.gate", ["model.layers.9.mlp.gate"]),
        ("model.layers.2.self_attn.qkv_proj", ["model.layers.1.self_attn.qkv_proj"]),
        ("model.layers.61.eh_proj", []),  # of a layer behind the last one
        ("model.layers.3.vision", ["model.layers.2.vision"]),  # nothing here, but a layer's name
        (r"re:.*layers\.3\..*gate$", [r"re:.*layers\.2\..*gate$"]),
        ("re:model.layers.10.*", []),
        (r"re:.*\.[01]\.mlp\.gate$", ["model.layers.0.mlp.gate"]),
        (
            r"re:.*layers\.(?:[5-9]|1[01])\.mlp\.down_proj",
            [f"model.layers.{i}.mlp.down_proj" for i in (4, 5, 6, 7, 8, 9)],
        ),
        # by number of digits: layer 11 becomes layer 9
        (r"re:.*layers\.\d\d\.mlp\.gate$", ["model.layers.9.mlp.gate"]),
    ],
)
def test_one_name(pattern, expected):
    assert said(pattern, LIST) == expected


def test_what_means_different_things_to_its_readers():
    """``model.layers.1`` is layer 1 to one program, and 1, 10 and 11 to another."""
    both = ((_names.exact, _names.beginning_or_end),)
    assert said("model.layers.2.mlp.gate", both) == ["model.layers.1.mlp.gate"]
    with pytest.raises(UnsupportedModelError, match=r"names 'model\.layers\.1', which cannot"):
        said("model.layers.1", both)


def test_rules_with_a_sign():
    """GPTQ's rules are patterns, and the first that matches counts."""
    rules = ((_names.signed_regex,), _names.as_regex)
    assert said(r"-:.*mlp\.gate$", rules) == [r"-:.*mlp\.gate$"]
    assert said(r"+:.*layers\.4\..*", rules) == [r"+:.*layers\.3\..*"]
    (made,) = said(r"+:.*layers\.(?:10|11)\.mlp\.down_proj", rules)
    assert made.startswith("+:")
    matched = [n for n in renumbering().new if re.match(made[2:], n)]
    assert matched == ["model.layers.9.mlp.down_proj"]


SKIPPED = ("model.layers.2.mlp.down_proj", "model.layers.5.self_attn.o_proj")
ROUNDS = [([3], 1.37), ([1], 0.81)]
DOWN, OUT = "model.layers.1.mlp.down_proj", "model.layers.3.self_attn.o_proj"


@pytest.fixture
def prune(tmp_path):
    """Quantises a tiny Llama but for `SKIPPED`, removes layers, and gives both as files."""

    def make(scheme, **settings):
        tiny.build("llama", 0).save_pretrained(tmp_path / "model")
        quantised.quantise_directory(tmp_path / "model", scheme, skipped=SKIPPED, **settings)
        checkpoint = Checkpoint(tmp_path / "model")
        apply_plan(
            checkpoint, plan_for(checkpoint, "downstream", ROUNDS), tmp_path / "out",
            progress=QUIET,
        )  # fmt: skip
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
            names = set(file.keys())
        linear = {n.rpartition(".")[0] for n in names if "_proj." in n}
        plain = {m for m in linear if f"{m}.{scheme.scale}" not in names}
        assert plain == {DOWN, OUT}
        return config["quantization_config"], linear, plain

    return make


@pytest.mark.parametrize(
    "ignore",
    [
        ["lm_head", *SKIPPED],
        ["lm_head", r"re:.*layers\.2\.mlp\.down", r"re:model\.layers\.5\.self_attn\.o_proj$"],
        ["lm_head", r"re:.*\.(?:2\.mlp\.down|5\.self_attn\.o)_proj$"],
    ],
)
def test_compressed_tensors_finds_what_is_quantised(prune, ignore):
    scheme = quantised.schemes()["ct-int8-w8a8"]()
    settings, linear, plain = prune(scheme, ignore=ignore)
    ignored = {m for m in linear if any(match_name(m, name) for name in settings["ignore"])}
    assert ignored == plain


def test_a_group_whose_modules_are_gone_is_gone(tmp_path):
    scheme = quantised.schemes()["ct-int8-w8a8"]()
    group = scheme.settings["config_groups"]["group_0"]
    groups = {
        "group_0": {**group, "targets": [r"re:.*layers\.[0245]\..*"]},
        "group_1": {**group, "targets": [r"re:.*layers\.1\..*", r"re:.*layers\.3\..*"]},
    }
    tiny.build("llama", 0).save_pretrained(tmp_path / "model")
    quantised.quantise_directory(tmp_path / "model", scheme, config_groups=groups)
    checkpoint = Checkpoint(tmp_path / "model")
    plan = plan_for(checkpoint, "downstream", ROUNDS)
    apply_plan(checkpoint, plan, tmp_path / "out", progress=QUIET)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert list(config["config_groups"]) == ["group_0"]
    targets = config["config_groups"]["group_0"]["targets"]
    for name in ("self_attn.q_proj", "mlp.up_proj"):
        for layer in range(4):
            assert any(match_name(f"model.layers.{layer}.{name}", t) for t in targets)
    assert not any(match_name("lm_head", t) for t in targets)


def test_transformers_finds_what_is_quantised_in_fp8(prune):
    """The published Qwen3 files list every norm and router of every layer."""
    norms = [f"model.layers.{i}.input_layernorm" for i in range(tiny.DEPTH)]
    settings, linear, plain = prune(
        quantised.schemes()["fp8-block"](), modules_to_not_convert=["lm_head", *SKIPPED, *norms]
    )
    listed = settings["modules_to_not_convert"]
    assert {m for m in linear if not should_convert_module(m, listed)} == plain
    assert [n for n in listed if "norm" in n] == norms[:4]


def test_gptq_rules_by_layer(prune):
    rules = {
        r"-:model\.layers\.2\.mlp\.down_proj": {},
        r"-:.*\.5\.self_attn\.o_proj": {},
        r"+:.*\.(?:0|4)\.mlp\.up_proj": {"bits": 4, "group_size": 8},
    }
    settings, linear, plain = prune(quantised.schemes()["gptq-4"](), dynamic=rules)
    new = settings["dynamic"]
    assert list(new.values()) == list(rules.values())
    negative = [rule[2:] for rule in new if rule.startswith("-:")]
    assert {m for m in linear if any(re.match(rule, m) for rule in negative)} == plain
    (positive,) = (rule[2:] for rule in new if rule.startswith("+:"))
    assert {m for m in linear if re.match(positive, m)} == {
        "model.layers.0.mlp.up_proj", "model.layers.2.mlp.up_proj",
    }  # fmt: skip


def refused(tmp_path, scheme_name, **changes):
    scheme = quantised.schemes()[scheme_name]()
    tiny.build("llama", 0).save_pretrained(tmp_path)
    quantised.quantise_directory(tmp_path, scheme, **changes)
    with pytest.raises((UnsupportedModelError, CheckpointError)) as caught:
        Checkpoint(tmp_path)
    return str(caught.value)


def group(**changes):
    settings = quantised.schemes()["ct-int8-w8a8"]().settings["config_groups"]["group_0"]
    return {"group_0": {**settings, **changes}}


def weights(**changes):
    return group(weights={**quantised.INT8, **changes})


@pytest.mark.parametrize(
    ("scheme", "changes", "says"),
    [
        ("ct-int8-w8a8", {"quant_method": "mxfp4"}, r"mxfp4.*powers of two"),
        ("ct-int8-w8a8", {"quant_method": "bitsandbytes"}, r"bitsandbytes.*scales"),
        ("ct-int8-w8a8", {"quant_method": "modelopt"}, r"modelopt.*awq, compressed-tensors, fp8"),
        ("ct-int8-w8a8", {"quant_method": None}, r"format unknown"),
        ("ct-int8-w8a8", {"format": "nvfp4-pack-quantized"}, r"'nvfp4-pack-quantized'"),
        ("ct-int8-w8a8", {"format": "marlin-24"}, r"'marlin-24'"),
        ("ct-int8-w8a8", {"quantization_status": "frozen"}, r"'frozen'"),
        ("ct-int8-w8a8", {"sparsity_config": {"format": "sparse-24-bitmask"}}, r"sparse"),
        ("ct-int8-w8a8", {"transform_config": {"config_groups": {}}}, r"transform_config"),
        ("ct-int8-w8a8", {"config_groups": {"W8A8": ["Linear"]}}, r"W8A8 has no weights"),
        ("ct-int8-w8a8", {"config_groups": weights(num_bits=4, type="float")}, r"4 bits.*'float'"),
        ("ct-int8-w8a8", {"config_groups": weights(strategy="tensor_group")}, r"'tensor_group'"),
        ("ct-int8-w8a8", {"per_layer": {"model.layers.3": 1}}, r"per_layer\.model\.layers\.3"),
        ("fp8-block", {"scale_fmt": "ue8m0"}, r"'ue8m0'.*powers of two"),
        ("gptq-4", {"bits": 3}, r"3 bits; 2, 4, 8"),
        ("gptq-4", {"checkpoint_format": "marlin"}, r"'marlin'"),
        ("gptq-4", {"dynamic": {"+:.*": {"bits": 3}}}, r"3 bits"),
        ("awq", {"version": "gemv"}, r"gemv"),
        ("awq", {"bits": 8}, r"8 bits; 4"),
        ("awq", {"zero_point": False}, r"no zero points"),
        ("gptq-4", {"quant_method": "fp8"}, r"no weight is quantised"),
    ],
)  # fmt: skip
def test_refused_by_name(tmp_path, scheme, changes, says):
    message = refused(tmp_path, scheme, **changes)
    assert re.search(says, message), message
    assert "compress the unquantised model" in message or "restore the file" in message
    assert "\n" not in message


def spoil(tmp_path, scheme_name, change):
    tiny.build("llama", 0).save_pretrained(tmp_path)
    quantised.quantise_directory(tmp_path, quantised.schemes()[scheme_name]())
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_powers_of_two_cannot_take_a_factor(tmp_path):
    def change(tensors):
        for name in [n for n in tensors if n.endswith("scale_inv")]:
            tensors[name] = tensors[name].to(torch.float8_e8m0fnu)

    spoil(tmp_path, "fp8-block", change)
    with pytest.raises(UnsupportedModelError, match=r"is F8_E8M0, a scale that cannot"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("scheme", "last", "says"),
    [
        ("fp8-block", "mlp.up_proj.weight_scale_inv", r"up_proj\.weight is F8_E4M3 but has no"),
        ("gptq-4", "mlp.up_proj.qzeros", r"has scales but not qweight and qzeros"),
        ("ct-w4a16", "mlp.up_proj.weight_shape", r"has weight_scale but not"),
    ],
)
def test_a_part_is_missing(tmp_path, scheme, last, says):
    spoil(tmp_path, scheme, lambda tensors: tensors.pop(f"model.layers.2.{last}"))
    with pytest.raises(CheckpointError, match=says):
        Checkpoint(tmp_path)


def test_an_unknown_part(tmp_path):
    name = "model.layers.2.mlp.up_proj.weight_global_scale"
    spoil(tmp_path, "ct-w4a16", lambda tensors: tensors.update({name: torch.ones(1)}))
    with pytest.raises(CheckpointError, match=rf"{name} is not a part of compressed-tensors"):
        Checkpoint(tmp_path)


def test_a_quantised_model_without_its_settings(tmp_path):
    """Codes would be taken for weights."""
    tiny.build("llama", 0).save_pretrained(tmp_path)
    quantised.quantise_directory(tmp_path, quantised.schemes()["fp8-block"]())
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"is F8_E4M3, but config\.json"):
        Checkpoint(tmp_path)

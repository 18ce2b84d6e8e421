"""What transformers itself makes of the written files is what the oracle decodes from them."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, FineGrainedFP8Config

from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.pipeline import apply_plan
from tests.families import tiny
from tests.families.test_conformance import QUIET, assert_close, plan_for, reload
from tests.oracles import quantised

#: Formats whose readers in transformers need neither a GPU nor a package that does not install.
READERS = {
    "ct-w8a16": lambda: CompressedTensorsConfig(dequantize=True),
    "ct-w4a16": lambda: CompressedTensorsConfig(dequantize=True),
    "ct-fp8-w8a16": lambda: CompressedTensorsConfig(dequantize=True),
    "fp8-block": lambda: FineGrainedFP8Config(dequantize=True, weight_block_size=[16, 16]),
}


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
@pytest.mark.parametrize("name", READERS)
def test_transformers_reads_the_written_files(name, family, tmp_path):
    # Its fp8 reader wants whole blocks.
    tiny.build(
        family, 0, head_dim=16, num_key_value_heads=4, hidden_size=32, moe_intermediate_size=32
    ).save_pretrained(tmp_path / "model")
    scheme = quantised.schemes()[name]()
    quantised.quantise_directory(tmp_path / "model", scheme)
    checkpoint = Checkpoint(tmp_path / "model")
    plan = plan_for(checkpoint, "downstream", [([4], 1.37), ([1], 0.81)])
    apply_plan(checkpoint, plan, tmp_path / "out", progress=QUIET)
    quantised.decode_directory(tmp_path / "out", scheme, tmp_path / "dense")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", quantization_config=READERS[name](), dtype=torch.float32
    )
    model = tiny.with_negligible_eps(model.eval())
    ids = tiny.tokens()
    with torch.no_grad():
        found, expected = model(ids).logits, reload(tmp_path / "dense")(ids).logits
    # transformers 5.19 rounds FP8 experts to bfloat16 when it puts them together
    rounded = (name, family) == ("ct-fp8-w8a16", "qwen3_moe")
    assert_close(found, expected, 2e-2 if rounded else 2e-4)

"""Exports of several families and of a trained model, in other people's runtimes.

The expected tokens come from transformers of the main environment, on the ordinary checkpoint.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile

import pytest
import torch

from tests.exporters import record_onnx
from tests.families import tiny

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("generate_elsewhere.py")
#: How many layers: windows and capped scores, no ``position_ids``, fused projections, wide heads.
TINY = {"gemma2": 2, "opt": 1, "phi3": 1, "qwen3": 1}
TRAINED = ROOT / "examples" / "tiny-python-lm"
CUT_LAYERS, NEW_TOKENS = 13, 20
#: In which the second-best token is never near: fp16 may not choose another one by rounding.
PROMPTS = (
    "import os\n",
    "import unittest\n\nclass Test",
    "class Error(Exception):\n    def __init__(self",
)


@dataclass(frozen=True)
class Case:
    """An exported directory and the model that it must repeat."""

    directory: Path
    model: Path
    input_ids: torch.Tensor
    attention_mask: torch.Tensor

    def expected(self) -> list[list[int]]:
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(self.model)
        capped = getattr(config, "attn_logit_softcapping", None) is not None
        model = AutoModelForCausalLM.from_pretrained(
            self.model, dtype="float32", attn_implementation="eager" if capped else None
        )
        made = model.eval().generate(
            input_ids=self.input_ids, attention_mask=self.attention_mask, do_sample=False,
            max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, pad_token_id=0,
        )  # fmt: skip
        return made[:, self.input_ids.shape[1] :].tolist()


def export(model: Path, directory: Path, *options: str) -> Path:
    import cli

    assert cli.main(["export", str(model), "--format", "onnx", "-o", str(directory), "-q",
                     *options]) == 0  # fmt: skip
    return directory


def left_padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


@pytest.fixture(scope="module")
def tiny_cases(tmp_path_factory) -> dict[str, Case]:
    root, found = tmp_path_factory.mktemp("elsewhere"), {}
    batch = left_padded([tiny.tokens(1, n, seed=n)[0].tolist() for n in (11, 8, 2)])
    for family, layers in TINY.items():
        model = record_onnx.write_model(family, root / f"{family}-model", layers)
        found[family] = Case(export(model, root / family), model, *batch)
    return found


@pytest.fixture(scope="module")
def trained_cases(tmp_path_factory) -> dict[str, Case]:
    """The trained model without most of its layers: few, because tracing one takes seconds."""
    from transformers import AutoTokenizer

    import cli

    root, found = tmp_path_factory.mktemp("trained"), {}
    model = root / "pruned"
    assert cli.main([
        "compress", str(TRAINED), "-o", str(model), "--layers", str(CUT_LAYERS), "--metric", "mag",
        "--strategy", "one-shot", "--samples", "2", "--seq-len", "64", "-q",
        "--protect-first", "1", "--protect-last", "1",
    ]) == 0  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(TRAINED)
    batch = left_padded([tokenizer(prompt)["input_ids"] for prompt in PROMPTS])
    for precision in ("fp32", "fp16"):
        directory = export(model, root / precision, "--precision", precision)
        found[precision] = Case(directory, model, *batch)
    traced = found["fp32"].directory / "model.onnx"  # that of int8 is the same, and takes seconds
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "exporters._onnx_graph.write_graph", lambda model, path, **o: copyfile(traced, path)
        )
        directory = export(model, root / "int8", "--precision", "int8")
    found["int8"] = Case(directory, model, *batch)
    return found


@pytest.fixture(scope="module")
def elsewhere(tiny_cases, trained_cases, optimum_python) -> dict[str, dict]:
    """``{case: {runtime: tokens}}``, from one process in the other environment."""
    cases = {**tiny_cases, **trained_cases}
    jobs = [
        {
            "directory": str(case.directory), "new": NEW_TOKENS,
            "input_ids": case.input_ids.tolist(), "attention_mask": case.attention_mask.tolist(),
        }
        for case in cases.values()
    ]  # fmt: skip
    done = subprocess.run(
        [optimum_python, SCRIPT],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(zip(cases, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("family", TINY)
def test_the_record_of_families_is_true(family, tiny_cases):
    recorded = json.loads((ROOT / "docs" / "verified_onnx.json").read_text())["families"][family]
    manifest = json.loads((tiny_cases[family].directory / "prunecomp.json").read_text())
    assert recorded["status"] == record_onnx.EXPORTS
    assert manifest["export"]["difference"]["relative"] < 1e-5


def test_a_model_without_key_value_cache_is_refused(tmp_path, capsys):
    import cli

    model = record_onnx.write_model("mamba", tmp_path / "mamba")
    code = cli.main(["export", str(model), "--format", "onnx", "-o", str(tmp_path / "out")])
    assert code == 2
    assert "mamba: its cache is not one of keys and values" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.optimum
@pytest.mark.parametrize("runtime", ["optimum", "genai"])
@pytest.mark.parametrize("family", TINY)
def test_other_runtimes_give_the_tokens_of_transformers(family, runtime, tiny_cases, elsewhere):
    assert elsewhere[family][runtime] == tiny_cases[family].expected()


@pytest.mark.optimum
@pytest.mark.parametrize("runtime", ["optimum", "genai"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_trained_model_says_the_same_elsewhere(precision, runtime, trained_cases, elsewhere):
    assert elsewhere[precision][runtime] == trained_cases[precision].expected()


@pytest.mark.optimum
@pytest.mark.parametrize("runtime", ["optimum", "genai"])
def test_eight_bits_run_elsewhere(runtime, trained_cases, elsewhere):
    """Its tokens may differ from those of full weights."""
    made = elsewhere["int8"][runtime]
    assert [len(row) for row in made] == [NEW_TOKENS] * len(PROMPTS)
    assert len({token for row in made for token in row}) > 1

"""vLLM loads what `compress` writes, and computes what transformers computes.

Every family of the registry is served, in one run of vLLM that starts when the first test needs it.
What each one came to stands in docs/verified_vllm.json; ``make verified`` writes it anew.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import cli
from prunecomp.families import FAMILIES
from tests.families import tiny
from tests.serving.measure import NEW_TOKENS, TOLERANCE, Case, Engine, Outcome, measure, prompts
from tests.serving.record import BROKEN, disagrees, entry, gist, verdict, versions

ROOT = Path(__file__).resolve().parents[2]
RECORD = json.loads((ROOT / "docs" / "verified_vllm.json").read_text())
TRAINED = ROOT / "examples" / "tiny-python-lm"
FAMILY_TEST = "test_family_is_served_as_recorded"
AGAIN = "if that is as it should be, run: make verified ARGS={}"


@dataclass(frozen=True)
class Served:
    """What a run of vLLM gave."""

    trained: Path
    answer: dict[str, Any]
    outcomes: dict[Case, Outcome]


@pytest.fixture(scope="module")
def served(request, tmp_path_factory) -> Served:
    """The trained model, and the families whose tests are selected."""
    names = {
        item.callspec.params["name"]
        for item in request.session.items
        if item.module is request.module and item.originalname == FAMILY_TEST
    }
    directory = tmp_path_factory.mktemp("served")
    engine = Engine(directory)
    trained = directory / "trained"
    assert cli.main(
        ["compress", str(TRAINED), "-o", str(trained), "--layers", "4", "--quiet",
         "--samples", "4", "--seq-len", "256", "--evaluation", "none"]
    ) == 0  # fmt: skip
    engine.ask("trained", trained, logprobs=False)
    unpruned = {n for n in names if n in RECORD["families"] and disagrees(RECORD["families"][n])}
    cases = [case for case in tiny.cases() if case[0] in names]
    outcomes = measure(cases, unpruned, engine, directory)
    return Served(trained, engine.answers()["trained"], outcomes)


def greedy(directory: Path) -> list[list[int]]:
    """What transformers continues the prompts with."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    found = []
    for prompt in prompts():
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False,
            attention_mask=torch.ones_like(ids), pad_token_id=0,
        )  # fmt: skip
        found.append(out[0, len(prompt) :].tolist())
    return found


@pytest.mark.vllm
def test_greedy_tokens_of_a_trained_model_are_those_of_transformers(served):
    assert served.answer.get("tokens") == greedy(served.trained), served.answer


@pytest.mark.vllm
@pytest.mark.skipif(torch.cuda.is_available(), reason="the record is of vLLM's CPU build")
@pytest.mark.parametrize("name", list(FAMILIES.names()))
def test_family_is_served_as_recorded(name, served):
    assert name in RECORD["families"], f"{name} has no record; run: make verified ARGS={name}"
    found, recorded = entry(name, served.outcomes), RECORD["families"][name]
    assert gist(found) == gist(recorded), f"{found}; {AGAIN.format(name)}"
    assert BROKEN not in json.dumps(found)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the record is of vLLM's CPU build")
def test_record_is_of_these_families_and_versions():
    assert set(RECORD["families"]) == set(FAMILIES.names())
    assert {key: RECORD[key] for key in versions()} == versions()
    assert RECORD["tolerance"] == TOLERANCE


def served_by_llama(difference: float, short: float = 0.0) -> Outcome:
    return Outcome("", "LlamaForCausalLM", difference, short)


REFUSED = Outcome(error="ValueError: no")


@pytest.mark.parametrize(
    ("pruned", "before", "expected"),
    [
        ([served_by_llama(1e-5)], None, "agrees"),
        ([Outcome("", "TransformersForCausalLM", 1e-5)], None,
         "agrees through the Transformers backend"),
        ([served_by_llama(1.0)], served_by_llama(1.1), "differs before pruning: 1.1e+00"),
        ([REFUSED], REFUSED, "not served: ValueError: no"),
        # a wrong fold in one place, a wrong layer, other tokens, a file that cannot be read
        ([served_by_llama(1e-5), served_by_llama(0.5)], served_by_llama(1e-5), BROKEN),
        ([served_by_llama(4.0)], served_by_llama(1.1), BROKEN),
        ([served_by_llama(1e-5, short=0.5)], served_by_llama(1e-5), BROKEN),
        ([REFUSED], served_by_llama(1e-5), BROKEN),
        ([REFUSED], served_by_llama(1.1), BROKEN),
        ([served_by_llama(1.0)], None, BROKEN),
    ],
)  # fmt: skip
def test_only_what_was_wrong_before_is_excused(pruned, before, expected):
    assert verdict(pruned, before).startswith(expected)

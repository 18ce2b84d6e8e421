"""How far vLLM's log-probabilities are from transformers', for pruned models of every family."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.errors import UsageError
from prunecomp.fold import choose_fold
from prunecomp.pipeline import PlanRequest, compress
from prunecomp.progress import Progress
from tests.families import tiny

#: In nats, over all positions and all tokens of the vocabulary, both engines in float32. Different
#: kernels give 1e-5 to 1e-4; the attention of vLLM's CPU build gives 1e-2 where it caps the scores;
#: a layer of the wrong type or scale gives 0.1 and more.
TOLERANCE = 2e-2
NEW_TOKENS = 8
#: vLLM's CPU attention takes heads of 32 (some classes: hidden size / heads), its CPU kernels for
#: experts take multiples of 32, those for latent attention the sizes of the published models, and
#: its Falcon takes four times the hidden size for the MLP.
SHAPE: Mapping[str, Any] = {
    "hidden_size": 128, "n_embd": 128, "word_embed_proj_dim": 128, "head_dim": 32,
    "intermediate_size": 96, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 96,
    "q_lora_rank": 32, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128,
    "v_head_dim": 128, "sliding_window": 6, "ffn_hidden_size": 512,
}  # fmt: skip
#: Fields that vLLM reads, as the published config.json has or resolves them, and `tiny` has not.
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "deepseek_v3": {"topk_method": "noaux_tc", "scoring_func": "sigmoid"},
    "glm4_moe": {"head_dim": 32},
    "gpt_bigcode": {"num_key_value_heads": 1},
}
#: What vLLM computes otherwise than transformers, and how to do without it: a window that is longer
#: by one, scores that the CPU's attention does not cap, a bias that the CPU's router leaves out.
#: A config field, or all tensors of a name.
EASED: Mapping[str, Mapping[str, Any]] = {
    "cohere2": {"sliding_window": 64},
    "ernie4_5_moe": {"e_score_correction_bias": 0.0},
    "gemma2": {"attn_logit_softcapping": None},
    "vaultgemma": {"attn_logit_softcapping": None},
}


@dataclass(frozen=True)
class Case:
    """One tiny model: a family's variant, folded somewhere, or unpruned where `fold` is None.

    An `eased` one does without what vLLM computes otherwise.
    """

    family: str
    variant: int
    fold: str | None
    eased: bool = False

    @property
    def id(self) -> str:
        ease = "-eased" if self.eased else ""
        return f"{self.family}-{self.variant}{ease}-{self.fold or 'unpruned'}"


@dataclass(frozen=True)
class Outcome:
    """What vLLM made of one model: an error, or its class and how far it is from transformers."""

    error: str = ""
    served_by: str = ""
    difference: float = 0.0
    short_of_greedy: float = 0.0

    @property
    def agrees(self) -> bool:
        return not self.error and max(self.difference, self.short_of_greedy) < TOLERANCE


def prompts() -> list[list[int]]:
    """Random tokens, several times as many as the sliding windows are wide."""
    first, second = tiny.tokens(2, 24, seed=7).tolist()
    return [first, second[:13]]


class Engine:
    """vLLM in a process that is fed while it works: `engine.py`."""

    def __init__(self, directory: Path):
        self.answers_file = directory / "answers.jsonl"
        self.log = directory / "vllm.log"
        jobs = len(os.sched_getaffinity(0)) if not torch.cuda.is_available() else 1
        with self.answers_file.open("wb") as answers, self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("engine.py")), str(min(jobs, 4))],
                stdin=subprocess.PIPE, stdout=answers, stderr=log, text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def ask(self, name: str, model: Path, **fields: Any) -> None:
        request = {"id": name, "model": str(model), "prompts": prompts(),
                   "new_tokens": NEW_TOKENS, "logprobs": True, **fields}  # fmt: skip
        with contextlib.suppress(BrokenPipeError):  # it has died; `answers` says of what
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()

    def answers(self) -> dict[str, dict[str, Any]]:
        """All answers, when all are there."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        code = self.process.wait()
        assert code == 0, f"exit code {code}: {self.log.read_text(errors='replace')[-3000:]}"
        lines = map(json.loads, self.answers_file.read_text().splitlines())
        return {answer["id"]: answer for answer in lines}


def write_source(family: str, variant: int, path: Path, *, eased: bool) -> Path:
    """The unpruned model."""
    model, changes = tiny.build(family, variant, **SHAPE), EASED[family] if eased else {}
    for name, parameter in model.named_parameters():
        if (last := name.rpartition(".")[2]) in changes:
            parameter.fill_(changes[last])
    model.save_pretrained(path)
    file = path / "config.json"
    config = json.loads(file.read_text())
    config |= {key: value for key, value in changes.items() if key in config}
    file.write_text(json.dumps({**config, **PUBLISHED.get(family, {})}))
    return path


def write_pruned(source: Path, fold: str, path: Path) -> Path:
    """The model without layer 1 (or 1 and 2): types of layers in turns get out of step."""
    checkpoint = Checkpoint(source)
    count, tokens = checkpoint.family.removal_unit, path.with_suffix(".safetensors")
    save_file({"input_ids": tiny.tokens(4, 16, seed=5)}, tokens)
    request = PlanRequest(
        layers=count, protect_first=1, protect_last=tiny.DEPTH - 1 - count, fold=fold,
        calibration=str(tokens), dtype="float32", device="cpu",
    )  # fmt: skip
    plan, _ = compress(checkpoint, request, path, name="tiny", progress=Progress(quiet=True))
    factor = plan.rounds[0].factor
    assert abs(factor - 1) > 1e-3, f"{path.name}: a factor of {factor} folds nothing"
    return path


def folds_of(source: Path) -> list[str]:
    checkpoint, found = Checkpoint(source), []
    for fold in ("downstream", "upstream"):
        with contextlib.suppress(UsageError):
            found.append(choose_fold(fold, checkpoint.family, tied=checkpoint.tied))
    return found


@torch.no_grad()
def compare(answer: Mapping[str, Any], directory: Path) -> Outcome:
    """vLLM's answer against transformers, which scores the same tokens without a cache."""
    if "error" in answer:
        return Outcome(error=answer["error"])
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    difference = short = 0.0
    for prompt, new, found in zip(prompts(), answer["tokens"], answer["logprobs"], strict=True):
        ids = torch.tensor([prompt + new])
        expected = model(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        served = torch.tensor(found)
        assert served.shape == expected.shape
        difference = max(difference, float((served - expected).abs().max()))
        chosen = expected[len(prompt) - 1 :]
        picked = chosen.gather(1, torch.tensor(new)[:, None])[:, 0]
        short = max(short, float((chosen.max(-1).values - picked).max()))
    return Outcome("", answer["class"], difference, short)


def measure(
    variants: Iterable[tuple[str, int]], unpruned: Collection[str], engine: Engine, directory: Path
) -> dict[Case, Outcome]:
    """Outcomes of all folds of the `variants`.

    Args:
        variants: families with the number of a variant.
        unpruned: families whose models are also served as they are, and eased.
        engine: asked nothing more after this.
        directory: where the models go.
    """
    models = {}
    for name, variant in variants:
        for eased in (False, True)[: 1 + (name in unpruned and name in EASED)]:
            source = directory / Case(name, variant, None, eased).id
            write_source(name, variant, source, eased=eased)
            cases = [Case(name, variant, fold, eased) for fold in folds_of(source)]
            paths = {case: write_pruned(source, case.fold, directory / case.id) for case in cases}
            if name in unpruned:
                paths[Case(name, variant, None, eased)] = source
            for case, path in paths.items():
                engine.ask(case.id, path)
            models.update(paths)
    answers = engine.answers()
    return {case: compare(answers[case.id], path) for case, path in models.items()}

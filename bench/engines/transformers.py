"""transformers' `generate`: greedy, with its ordinary cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.engines.base import Options, need


class _Session:
    def __init__(self, model: Path, options: Options) -> None:
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig

        dtype = options.dtype()
        self._model = AutoModelForCausalLM.from_pretrained(
            model, dtype=dtype if dtype == "auto" else getattr(torch, dtype)
        )
        self._model.to(options.device).eval()
        # Defaults of the directory, such as sampling or an end-of-text, are not to play a part.
        self._model.generation_config = GenerationConfig()

    def generate(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, stop: Sequence[int] = ()
    ) -> list[list[int]]:
        import torch

        ids = torch.tensor(prompts, device=self._model.device)
        with torch.inference_mode():
            found = self._model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False,
                max_new_tokens=new_tokens, min_new_tokens=None if stop else new_tokens,
                pad_token_id=0, eos_token_id=list(stop) or None,
            )  # fmt: skip
        return found[:, ids.shape[1] :].tolist()

    def kv_cache_tokens(self) -> int | None:
        return None


class TransformersEngine:
    """The model in the dtype of ``--dtype``, or as stored."""

    summary = "transformers generate, greedy"

    def check(self, model: Path) -> None:
        need("transformers", "prunecomp")

    def load(self, model: Path, options: Options) -> _Session:
        return _Session(model, options)


ENGINE = TransformersEngine()

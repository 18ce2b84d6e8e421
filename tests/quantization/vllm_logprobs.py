"""Prints, as JSON, the log-probability that vLLM gives to each token of each prompt.

Run as a script in a process of its own: ``python vllm_logprobs.py < request.json``, where the
request is ``{"model": dir, "prompts": [[token, ...], ...]}``.
"""

import json
import os
import sys

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
os.environ["VLLM_NO_USAGE_STATS"] = "1"


def main() -> None:
    from vllm import LLM, SamplingParams

    request = json.load(sys.stdin)
    engine = LLM(
        request["model"], dtype="bfloat16", enforce_eager=True, max_model_len=64, max_num_seqs=4,
        skip_tokenizer_init=True, enable_prefix_caching=False,
    )  # fmt: skip
    sampling = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    prompts = [{"prompt_token_ids": ids} for ids in request["prompts"]]
    answers = [
        [each[token].logprob for token, each in zip(ids[1:], out.prompt_logprobs[1:], strict=True)]
        for ids, out in zip(
            request["prompts"], engine.generate(prompts, sampling, use_tqdm=False), strict=True
        )
    ]
    sys.stdout.write("ANSWER" + json.dumps(answers) + "\n")


if __name__ == "__main__":
    main()

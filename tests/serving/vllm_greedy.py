"""Prints, as JSON, the greedy continuations that vLLM gives for each model directory.

Run as a script in a process of its own: ``python vllm_greedy.py < request.json``, where the
request is ``{"models": [dir, ...], "prompts": [[token, ...], ...], "new_tokens": n}``.
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
    sampling = SamplingParams(
        temperature=0, max_tokens=request["new_tokens"], ignore_eos=True, detokenize=False
    )
    prompts = [{"prompt_token_ids": ids} for ids in request["prompts"]]
    answers = {}
    for model in request["models"]:
        engine = LLM(
            model, dtype="float32", enforce_eager=True, max_model_len=128, max_num_seqs=4,
            skip_tokenizer_init=True, enable_prefix_caching=False,
        )  # fmt: skip
        outputs = engine.generate(prompts, sampling, use_tqdm=False)
        answers[model] = [list(output.outputs[0].token_ids) for output in outputs]
        del engine
    sys.stdout.write("ANSWER" + json.dumps(answers) + "\n")


if __name__ == "__main__":
    main()

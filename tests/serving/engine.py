"""Serves model directories with vLLM, each in a process of its own, and prints what it answers.

Run as a script: ``python engine.py JOBS < requests``. A request is one JSON line ``{"id": ...,
"model": directory, "prompts": [[token, ...], ...], "new_tokens": n, "logprobs": true}``. Each
answer is one JSON line ``{"id": ..., "class": ..., "tokens": [[...], ...], "logprobs": ...}``, the
last for every position but the first, prompt and answer, and for the whole vocabulary; or
``{"id": ..., "error": one line}``.

vLLM is imported once; then every model gets a fork. A native crash takes one model with it, and
nothing has to be torn down, which takes longer than to serve a model of this size.
"""

import gc
import importlib
import json
import os
import signal
import sys
import textwrap

os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
# Latent attention as ordinary attention: the kernels for it take no float32 where a CPU has AMX.
os.environ["VLLM_MLA_DISABLE"] = "1"
# The sampler compiles its gathering of logprobs even with enforce_eager: four seconds per model.
os.environ["TORCH_COMPILE_DISABLE"] = "1"

MAX_MODEL_LEN = 64
#: A model that has not answered after this time is killed; two seconds are usual.
SECONDS = 300
#: What every engine imports late; imported before the fork, it is imported once.
COMMON = (
    "vllm.model_executor.layers.quantization.online.base",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.models.transformers",
    "vllm.v1.core.sched.scheduler",
    "vllm.v1.engine.core",
    "vllm.v1.engine.llm_engine",
)
COMMON_ON_CPU = ("vllm.v1.attention.backends.cpu_attn", "vllm.v1.worker.cpu_worker")


def import_all() -> None:
    """Imports vLLM and what its engines need."""
    from vllm.platforms import current_platform

    for name in (*COMMON, *(COMMON_ON_CPU if current_platform.is_cpu() else ())):
        importlib.import_module(name)
    if current_platform.is_cpu():
        # Searches all modules for the kernels that it replaces: once is enough.
        current_platform.register_triton_kernel_overrides()
        type(current_platform).register_triton_kernel_overrides = classmethod(lambda cls: None)
        # The first look at a class takes a process that imports vLLM; only CUDA needs that.
        from vllm.model_executor.models import registry

        registry._run_in_subprocess = lambda look: look()
    gc.collect()
    gc.freeze()  # the forks' collections need not look at what is there already


def serve(request: dict, keep: list) -> dict:
    """The answer to one request; `keep` holds the engine, so that it is not torn down."""
    from vllm import LLM, SamplingParams

    engine = LLM(
        request["model"], dtype="float32", enforce_eager=True, max_model_len=MAX_MODEL_LEN,
        max_num_seqs=4, skip_tokenizer_init=True, enable_prefix_caching=False, max_logprobs=-1,
        num_gpu_blocks_override=16,
    )  # fmt: skip
    keep.append(engine)
    wanted = -1 if request.get("logprobs") else None
    sampling = SamplingParams(
        temperature=0, max_tokens=request["new_tokens"], ignore_eos=True, detokenize=False,
        logprobs=wanted, prompt_logprobs=wanted,
    )  # fmt: skip
    prompts = [{"prompt_token_ids": ids} for ids in request["prompts"]]
    outputs = engine.generate(prompts, sampling, use_tqdm=False)
    answer = {
        "id": request["id"],
        "class": engine.apply_model(lambda model: type(model).__name__)[0],
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
    }
    if wanted:
        answer["logprobs"] = [
            [
                [position[token].logprob for token in sorted(position)]
                for position in (*output.prompt_logprobs[1:], *output.outputs[0].logprobs)
            ]
            for output in outputs
        ]
    return answer


def one_line(error: Exception, model: str) -> str:
    """vLLM's error without line breaks and without the place of the model."""
    text = f"{type(error).__name__}: {error}".replace(model, "MODEL")
    return textwrap.shorten(text, 300, placeholder=" ...")


def write(answers: int, answer: dict) -> None:
    """In one call: the lines of several processes do not mix."""
    os.write(answers, (json.dumps(answer) + "\n").encode())


def start(request: dict, answers: int) -> int:
    """Forks; the fork answers. Returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(SECONDS)
    engines: list = []
    try:
        answer = serve(request, engines)
    except Exception as error:  # noqa: BLE001 -- whatever vLLM raises is the answer
        answer = {"id": request["id"], "error": one_line(error, request["model"])}
    write(answers, answer)
    os._exit(0)


def main() -> None:
    jobs = int(sys.argv[1])
    answers = os.dup(1)
    os.dup2(2, 1)  # what vLLM prints is no answer
    import_all()
    running: dict[int, dict] = {}

    def reap() -> None:
        pid, status = os.wait()
        request = running.pop(pid)
        if status:
            number = os.waitstatus_to_exitcode(status)
            ended = f"killed by {signal.Signals(-number).name}" if number < 0 else f"exit {number}"
            write(answers, {"id": request["id"], "error": f"vLLM's process ended: {ended}"})

    for line in sys.stdin:
        while len(running) >= jobs:
            reap()
        request = json.loads(line)
        running[start(request, answers)] = request
    while running:
        reap()


if __name__ == "__main__":
    main()

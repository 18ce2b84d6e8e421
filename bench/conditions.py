"""The conditions of a benchmark: what was asked for, and where it ran."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mix:
    """What the requests look like.

    Attributes:
        input_tokens: of every prompt; null for a prompt file.
        output_tokens: that every request generates, end-of-text or not.
        prompts: requests per load point; the harness sends more where the concurrency needs it.
        prompt_file: JSON lines with ``{"prompt": text}``, or null for random tokens.
    """

    name: str
    input_tokens: int | None
    output_tokens: int
    prompts: int
    prompt_file: str | None = None


@dataclass(frozen=True)
class Slo:
    """What a request must keep to count towards goodput; null is no limit."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2el_ms: float | None = None


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


#: What a model is asked: a conversation, of one turn where somebody just asks.
Prompt = tuple[Message, ...]


@dataclass(frozen=True)
class Settings:
    """What was asked for.

    Attributes:
        warmup: unmeasured runs before the first repeat of every shape.
        concurrency: of the closed loop; empty: doubled until the base is saturated.
        request_rates: requests per second of the open loop; the same for all models.
        rates_from: how the rates were chosen: ``given``, or a sentence.
        servers: ``together`` (all up, loads in turns) or ``one at a time`` (restarted per repeat).
        servers_why: why so.
        kv_cache_bytes: memory for the KV cache, the same for every model; null: vLLM's own choice.
        prefix_caching: whether the servers kept it on; offline it is always off.
        limit: samples per accuracy task; null for all.
        skipped: stages that were not asked for.
        answers: prompts that every model was to answer.
    """

    seed: int
    repeats: int
    warmup: int
    mixes: tuple[Mix, ...]
    concurrency: tuple[int, ...]
    request_rates: tuple[float, ...]
    slo: Slo
    engines: tuple[str, ...]
    engine_args: tuple[str, ...]
    tensor_parallel_size: int
    pipeline_parallel_size: int
    tasks: tuple[str, ...] = ()
    limit: float | None = None
    rates_from: str = "given"
    servers: str = "together"
    servers_why: str = ""
    kv_cache_bytes: int | None = None
    prefix_caching: bool = False
    batches: tuple[int, ...] = ()
    skipped: tuple[str, ...] = ()
    answers: tuple[Prompt, ...] = ()


@dataclass(frozen=True)
class Git:
    """The state of the repository that ran; both null outside one."""

    commit: str | None
    dirty: bool | None


@dataclass(frozen=True)
class Environment:
    """Where it ran, and the exact commands."""

    device: str
    gpu: str | None
    gpu_count: int
    cpu: str
    cores: int
    memory_bytes: int
    driver: str | None
    cuda: str | None
    python: str
    platform: str
    versions: dict[str, str]
    git: Git
    commands: tuple[str, ...] = ()

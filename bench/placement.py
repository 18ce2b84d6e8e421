"""Whether all models are held in memory at once, and how much of it each gets for its KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.environment import gpu_memory_bytes
from bench.schema import Model
from bench.server import defaults

#: What an engine takes besides weights and KV cache: interpreter, libraries, activations, graphs.
OVERHEAD_CPU, OVERHEAD_GPU = 2 << 30, 4 << 30
#: Share of the memory that may be planned with.
SHARE_CPU, SHARE_GPU = 0.8, 0.9
#: A KV cache below this would distort the load.
MINIMAL_KV = 2 << 30
#: With these, vLLM spreads one model over machines or processes of its own.
_SPREAD = ("--nnodes", "--node-rank", "--data-parallel", "--distributed-executor-backend")


@dataclass(frozen=True)
class Placement:
    """How engines share the machine.

    Attributes:
        together: all up at once, and loads in turns; otherwise each is started anew per repeat.
        why: in words.
        kv_cache_bytes: for each model; None for vLLM's own choice.
        arguments: of vLLM, that follow from this.
        in_turns: engines start one after the other, because each measures what memory is free.
    """

    together: bool
    why: str
    kv_cache_bytes: int | None = None
    arguments: tuple[str, ...] = ()
    in_turns: bool = False

    @property
    def name(self) -> str:
        return "together" if self.together else "one at a time"

    def environment(self) -> dict[str, str]:
        """Of vLLM's processes, as far as ours does not say it already."""
        found = defaults()
        if self.kv_cache_bytes is not None:
            found["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, self.kv_cache_bytes >> 30))
        return found


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def place(
    models: Sequence[Model],
    *,
    device: str,
    shards: int,
    engine_args: Sequence[str] = (),
    kv_cache_bytes: int | None = None,
    one_at_a_time: bool = False,
) -> Placement:
    """Decides from the sizes.

    Args:
        shards: GPUs that each model is spread over.
        engine_args: given by the user.
        kv_cache_bytes: asked for by the user.
        one_at_a_time: asked for by the user.
    """
    alone = one_at_a_time or any(a.startswith(_SPREAD) for a in engine_args) or len(models) == 1
    if device == "cpu":
        return _on_cpu(models, kv_cache_bytes, alone)
    given = () if kv_cache_bytes is None else ("--kv-cache-memory-bytes", str(kv_cache_bytes))
    if alone:
        return Placement(False, "as asked for", kv_cache_bytes, given)
    total = SHARE_GPU * (gpu_memory_bytes() or 0)
    fixed = sum(m.weights_bytes / shards + OVERHEAD_GPU for m in models)
    each = kv_cache_bytes or int((total - fixed) / len(models))
    if each < MINIMAL_KV or fixed + each * len(models) > total:
        why = f"{_gib(fixed)} without KV caches leave too little of {_gib(total)}"
        return Placement(False, why, kv_cache_bytes, given)
    share = SHARE_GPU / len(models)
    arguments = ("--kv-cache-memory-bytes", str(each), "--gpu-memory-utilization", f"{share:.3f}")
    why = f"{_gib(fixed)} and {len(models)} KV caches of {_gib(each)} fit {_gib(total)}"
    return Placement(True, why, each, arguments, in_turns=True)


def _on_cpu(models: Sequence[Model], kv_cache_bytes: int | None, alone: bool) -> Placement:
    import psutil

    usual = int(defaults()["VLLM_CPU_KVCACHE_SPACE"]) << 30
    each = max(1, (kv_cache_bytes or usual) >> 30) << 30  # vLLM takes whole GiB there
    free = SHARE_CPU * psutil.virtual_memory().available
    need = sum(2 * m.weights_bytes + each + OVERHEAD_CPU for m in models)
    if alone:
        return Placement(False, "as asked for", each)
    fits = need <= free
    why = f"{_gib(need)} {'fit' if fits else 'do not fit'} the {_gib(free)} that may be used"
    return Placement(fits, why, each)

"""How a plan runs on this machine: as a whole, or layer by layer, within its memory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from prunecomp.calibration.cache import CacheBudget
from prunecomp.calibration.data import CalibrationSet
from prunecomp.calibration.needs import Need
from prunecomp.calibration.runner import Runner
from prunecomp.calibration.streams import default_batch
from prunecomp.calibration.view import PlannedModel
from prunecomp.calibration.weights import skeleton
from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.compensators import COMPENSATORS
from prunecomp.device import DTYPES, resolve_device
from prunecomp.distributed import current
from prunecomp.errors import UsageError
from prunecomp.memory import Estimate, Workload, estimate, part_uses
from prunecomp.metrics import METRICS
from prunecomp.plan import Recipe
from prunecomp.progress import Progress
from prunecomp.sizes import parse_bytes

if TYPE_CHECKING:
    from prunecomp.pipeline import PlanRequest

_LOGITS = Need.LOSSES | Need.CANDIDATES | Need.GRADIENTS


def estimate_memory(
    checkpoint: Checkpoint,
    request: PlanRequest,
    recipe: Recipe,
    model: nn.Module,
    *,
    samples: int,
    seq_len: int,
    evaluation_samples: int,
    reading: int,
) -> Estimate:
    """How much memory the plan will need, and how it is to run within it.

    Raises:
        UsageError: it cannot be done within ``--max-memory``.
    """
    metric, dtype = METRICS.get(recipe.metric), DTYPES[recipe.dtype]
    needs = metric.needs | COMPENSATORS.get(recipe.compensation).needs
    width, device = checkpoint.family.removal_unit, resolve_device(recipe.device)
    return estimate(
        model,
        Workload(
            samples=samples, seq_len=seq_len, evaluation_samples=evaluation_samples,
            batch_size=request.batch_size or default_batch(device.type, seq_len),
            block=metric.block,
            gradients=Need.GRADIENTS in needs,
            logits=request.evaluation != "none" or bool(needs & _LOGITS),
            candidates=width if Need.CANDIDATES in needs else 0,
            again=recipe.strategy == "iterative" and recipe.num_removed > width,
            reading=reading,
        ),
        uses=part_uses(model, checkpoint, dtype),
        device=device, dtype=dtype, depth=checkpoint.num_hidden_layers,
        limit=None if request.max_memory is None
        else parse_bytes(request.max_memory, option="--max-memory"),
    )  # fmt: skip


def place_layers(
    model: nn.Module, layers_path: str, device: torch.device
) -> dict[int, torch.device]:
    """Which layers go to which further GPU, as accelerate spreads them.

    Layer 0 and all that is outside of the layers stay on `device`.

    Raises:
        UsageError: the GPUs together are too small.
    """
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    if device.type != "cuda":
        return {}
    whole = {"no_split_module_classes": list(model._no_split_modules or ())}
    found = infer_auto_device_map(model, get_balanced_memory(model, **whole), **whole)
    if {"cpu", "disk"} & {str(where) for where in found.values()}:
        raise UsageError(
            "--device-map auto: the GPUs together cannot hold the model; leave it away, and layers "
            "are read from the files one after the other"
        )
    path = re.compile(re.escape(layers_path) + r"\.(\d+)$")
    places = {int(m[1]): where for name, where in found.items() if (m := path.match(name))}
    return {i: torch.device("cuda", where) for i, where in places.items() if i}


@dataclass(frozen=True)
class Opened:
    """A model that is held as it fits into memory, and what runs texts over it.

    Attributes:
        model: as the source has it, until a plan is applied.
        memory: what it is estimated to take.
        batch_size: one for all processes, whatever each found free.
        exact_prefix: see `Runner`.
    """

    model: PlannedModel
    memory: Estimate
    batch_size: int
    exact_prefix: bool
    progress: Progress

    def runner(self, tokens: CalibrationSet, *, keep: bool = True) -> Runner:
        """What runs `tokens`.

        Args:
            keep: what layers give is kept as far as memory allows; else it is run once.
        """
        return Runner(
            self.model, tokens, progress=self.progress, batch_size=self.batch_size,
            cache=self.memory.cache if keep else CacheBudget(0), exact_prefix=self.exact_prefix,
            group=current(),
        )  # fmt: skip


def open_model(
    checkpoint: Checkpoint,
    request: PlanRequest,
    recipe: Recipe,
    texts: tuple[CalibrationSet, CalibrationSet | None],
    progress: Progress,
) -> Opened:
    """The model, as a whole or from its files, on as many devices as was asked for.

    Args:
        texts: to calibrate on, and to evaluate on.

    Raises:
        UsageError: it does not fit into ``--max-memory``.
    """
    calibration, evaluation = texts
    samples, seq_len = calibration.input_ids.shape
    group = current()
    dtype = DTYPES[recipe.dtype]
    held_out = 0 if evaluation is None else len(evaluation.input_ids)
    empty = skeleton(checkpoint, dtype)
    memory = estimate_memory(
        checkpoint, request, recipe, empty, samples=-(-samples // group.world), seq_len=seq_len,
        evaluation_samples=-(-held_out // group.world), reading=calibration.reading,
    )  # fmt: skip
    resident = memory.mode == "resident"
    how = "the whole model" if resident else "one layer at a time, from the files"
    front = ", ".join(map(str, calibration.prefix))
    front = f", each beginning with token {front}" if front else ""
    progress.say(
        f"calibration: {request.calibration}, {samples} x {seq_len} tokens{front}; "
        f"{recipe.dtype} on {recipe.device}, {how} in about {memory.total / 2**30:.2f} GiB"
    )
    device = resolve_device(recipe.device)
    placement = {}
    if request.device_map == "auto":
        placement = place_layers(empty, checkpoint.layers_path, device)
        resident = resident or bool(placement)
    model = PlannedModel(
        checkpoint, device=device, dtype=dtype, resident=resident, model=empty,
        placement=placement,
    )  # fmt: skip
    batch_size = int(group.gather(torch.tensor([memory.batch_size])).min())
    return Opened(model, memory, batch_size, request.exact_prefix, progress)


def open_runners(
    checkpoint: Checkpoint,
    request: PlanRequest,
    recipe: Recipe,
    texts: tuple[CalibrationSet, CalibrationSet | None],
    progress: Progress,
) -> tuple[Runner, Runner | None]:
    """What runs the calibration and evaluation texts, over one model; see `open_model`.

    Raises:
        UsageError: it does not fit into ``--max-memory``.
    """
    opened = open_model(checkpoint, request, recipe, texts, progress)
    calibration, evaluation = texts
    runner = opened.runner(calibration)
    return runner, None if evaluation is None else opened.runner(evaluation, keep=False)

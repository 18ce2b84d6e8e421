"""The three calls that a user makes: `make_plan`, `apply_plan`, `compress`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunecomp.card import model_card, origin_of
from prunecomp.checkpoint.files import resolved_config
from prunecomp.checkpoint.output import output_directory
from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.checkpoint.tokenizer_files import tokenizer_notes, tokenizer_sha256
from prunecomp.compensators import COMPENSATORS
from prunecomp.errors import NumericError, PlanError, UsageError
from prunecomp.fold import choose_fold
from prunecomp.hub import is_repository
from prunecomp.manifest import MANIFEST_FILE, converted_facts, versions, write_manifest
from prunecomp.metrics import METRICS
from prunecomp.plan import CalibrationRecord, PrunePlan, Recipe, SourceModel
from prunecomp.plan_checks import check_recipe, check_rounds
from prunecomp.progress import Progress
from prunecomp.rewrite import rewrite_model
from prunecomp.selection import candidates, select
from prunecomp.sizes import parse_bytes
from prunecomp.verify import check_source_model

if TYPE_CHECKING:
    from prunecomp.calibration.data import CalibrationSet
    from prunecomp.families.base import ModelFamily

EVALUATION_SAMPLES = 64
STRATEGIES = ("iterative", "one-shot")


@dataclass(frozen=True)
class PlanRequest:
    """What the user asks of a plan; None means the documented default.

    Exactly one of `layers` (how many to remove) and `ratio` (share of the depth, rounded to the
    nearest layer) is given.
    """

    layers: int | None = None
    ratio: float | None = None
    metric: str = "bi"
    strategy: str | None = None
    compensation: str = "magnitude"
    fold: str = "downstream"
    protect_first: int | None = None
    protect_last: int | None = None
    calibration: str = "python-stdlib"
    calibration_field: str = "text"
    calibration_config: str | None = None
    calibration_split: str | None = None
    chat_field: str = "auto"
    bos: str = "auto"
    samples: int | None = None
    seq_len: int | None = None
    seed: int = 0
    evaluation: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int | None = None
    max_memory: str | None = None
    device_map: str | None = None
    exact_prefix: bool = False


@dataclass(frozen=True)
class Written:
    """What `apply_plan` wrote; `warnings` are what the user should know of it."""

    output: Path
    files: list[str]
    parameters: int
    source_parameters: int
    nbytes: int
    source_nbytes: int
    checks: list[str] = field(default_factory=list)
    comparison: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "output": str(self.output)}


def resolve_recipe(checkpoint: Checkpoint, request: PlanRequest, progress: Progress) -> Recipe:
    """Fills in the defaults and refuses what cannot be done, before anything runs.

    Raises:
        UsageError: see the message.
    """
    from prunecomp.device import resolve_device, resolve_dtype

    metric = METRICS.get(request.metric)
    COMPENSATORS.get(request.compensation)
    depth = checkpoint.num_hidden_layers
    if (request.layers is None) == (request.ratio is None):
        raise UsageError("give either --layers N or --ratio R")
    if request.ratio is not None and not 0 < request.ratio < 1:
        raise UsageError(f"--ratio {request.ratio}: give a number between 0 and 1")
    unit = checkpoint.family.removal_unit
    # floor(x + 1/2): halves round up, where round() would take 2.5 to 2 but 3.5 to 4
    nearest = int((request.ratio or 0) * depth / unit + 0.5) * unit
    count = nearest if request.layers is None else request.layers
    if request.ratio is not None and count < 1:
        raise UsageError(f"--ratio {request.ratio} of {depth} layers is less than one layer")
    strategy = request.strategy or "iterative"
    if strategy not in STRATEGIES:
        raise UsageError(f"unknown strategy {strategy!r} (choose from {', '.join(STRATEGIES)})")
    if metric.block and strategy == "iterative":
        if request.strategy:
            progress.say(
                f"note: {request.metric} picks one block at once; the strategy is one-shot"
            )
        strategy = "one-shot"
    first, last = metric.protect
    recipe = Recipe(
        metric=request.metric,
        strategy=strategy,
        compensation=request.compensation,
        fold=choose_fold(request.fold, checkpoint.family, tied=checkpoint.tied),
        num_removed=count,
        protect_first=first if request.protect_first is None else request.protect_first,
        protect_last=last if request.protect_last is None else request.protect_last,
        dtype=str(resolve_dtype(request.dtype, checkpoint.dense.dtypes)).removeprefix("torch."),
        device=str(resolve_device(request.device)),
        exact_prefix=request.exact_prefix,
    )
    check_recipe(recipe, checkpoint.family, depth)
    check_source_model(checkpoint)
    return recipe


def load_texts(
    checkpoint: Checkpoint, request: PlanRequest
) -> tuple[CalibrationSet, CalibrationSet | None]:
    """Calibration tokens, and evaluation tokens where a text for them is known.

    A built-in source with a held-out split is evaluated on that split unless the request names
    another text.
    """
    from prunecomp.calibration.data import BUILT_IN, TextSource, load_tokens

    source = TextSource(
        request.calibration, request.calibration_field, request.calibration_config,
        request.calibration_split, request.chat_field,
    )  # fmt: skip
    resolved = resolved_config(checkpoint)
    common = {
        "tokenizer_dir": checkpoint.path,
        "vocab_size": resolved["vocab_size"],
        "max_seq_len": resolved.get("max_position_embeddings"),
    }
    calibration = load_tokens(
        source, samples=request.samples, seq_len=request.seq_len, seed=request.seed,
        bos=request.bos, **common,
    )  # fmt: skip
    name = request.evaluation
    if name is None and request.calibration in BUILT_IN:
        name = request.calibration
    if name is None or name == "none":
        return calibration, None
    text = TextSource(name, request.calibration_field, chat_field=request.chat_field)
    drawn: dict[str, Any] = {
        "samples": EVALUATION_SAMPLES, "seq_len": calibration.input_ids.shape[1],
        "bos": request.bos,
    }  # fmt: skip
    if text.suffix == ".safetensors":
        drawn = {}  # all of it as it is: someone has chosen these tokens
    return calibration, load_tokens(text, held_out=True, **drawn, **common)


def empty_plan(
    checkpoint: Checkpoint,
    recipe: Recipe,
    request: PlanRequest,
    calibration: CalibrationSet,
    *,
    name: str,
) -> PrunePlan:
    """The plan before its first round: what is asked for, of which model, on which tokens."""
    samples, seq_len = calibration.input_ids.shape
    return PrunePlan(
        source=SourceModel(
            name, checkpoint.family.model_type, checkpoint.num_hidden_layers,
            checkpoint.sha256(), is_repository(name), tokenizer_sha256(checkpoint.path),
        ),
        recipe=recipe,
        calibration=CalibrationRecord(
            request.calibration, samples, seq_len, request.seed, calibration.sha256,
            {"field": request.calibration_field, "config": request.calibration_config,
             "split": request.calibration_split, "chat": calibration.chat},
            calibration.bos, calibration.prefix,
        ),
        versions=versions(),
    )  # fmt: skip


def make_plan(
    checkpoint: Checkpoint,
    request: PlanRequest,
    *,
    name: str,
    progress: Progress,
    resume: PrunePlan | None = None,
    on_texts: Callable[[CalibrationSet], None] = lambda calibration: None,
    on_round: Callable[[PrunePlan], None] = lambda plan: None,
) -> PrunePlan:
    """Chooses layers and repairs; loads and runs the model.

    Args:
        name: what the plan and the model card call the source.
        resume: a plan of fewer or as many rounds for the same model, recipe and tokens.
        on_texts: called with the calibration tokens before anything runs.
        on_round: called with the plan so far after each round.

    Raises:
        UsageError: the request, the text or `resume` does not fit.
    """
    from prunecomp.machine import open_runners

    recipe = resolve_recipe(checkpoint, request, progress)
    calibration, evaluation = load_texts(checkpoint, request)
    on_texts(calibration)
    plan = empty_plan(checkpoint, recipe, request, calibration, name=name)
    if resume is not None:
        plan = _resumed(plan, resume, checkpoint.family)
    samples, seq_len = calibration.input_ids.shape
    if request.samples and samples < request.samples:
        progress.say(
            f"note: the text has {samples} samples of {seq_len} tokens, not {request.samples}"
        )
    for note in calibration.notes:
        progress.say(f"note: {note}")
    runner, held_out = open_runners(
        checkpoint, request, recipe, (calibration, evaluation), progress
    )
    plan = dataclasses.replace(plan, conditions=runner.conditions)

    def perplexities() -> dict[str, float]:
        if request.evaluation == "none":
            return {}
        texts = {f"calibration ({request.calibration})": runner}
        if held_out is not None:
            texts[f"evaluation ({_evaluation_name(request)})"] = held_out
        return {text: _perplexity(r.loss(description=text)) for text, r in texts.items()}

    base = perplexities()
    for done in range(1, len(plan.rounds) + 1):
        runner.advance(dataclasses.replace(plan, rounds=plan.rounds[:done]))

    def report(current: PrunePlan) -> None:
        done, number = current.rounds[-1], len(current.rounds)
        removed = ", ".join(map(str, done.removed))
        progress.say(f"round {number}: remove layer {removed}, factor {done.factor:.6f}")
        on_round(current)

    plan = select(
        plan, runner, METRICS.get(recipe.metric), COMPENSATORS.get(recipe.compensation),
        on_round=report,
    )  # fmt: skip
    pruned = perplexities()
    return dataclasses.replace(
        plan, perplexity={text: {"base": base[text], "pruned": pruned[text]} for text in base}
    )


def _perplexity(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError as error:
        raise NumericError(
            f"a loss of {loss:.6g} nats per token has a perplexity that is not finite; the weights "
            "are damaged, or --dtype is too narrow for them"
        ) from error


def _evaluation_name(request: PlanRequest) -> str:
    name = request.evaluation or request.calibration
    return f"{name}, held-out part" if name == request.calibration else name


def _resumed(plan: PrunePlan, old: PrunePlan, family: ModelFamily) -> PrunePlan:
    """`plan` with the rounds of `old`, which must have been made in the same way."""
    # A plan may be continued to a greater depth, but a block of N layers is chosen as a whole.
    free = {} if METRICS.get(plan.recipe.metric).block else {"num_removed": 0}
    for what, new_value, old_value in (
        ("model", plan.source.sha256, old.source.sha256),
        ("calibration tokens", plan.calibration.sha256, old.calibration.sha256),
        (
            "options",
            dataclasses.replace(plan.recipe, **free),
            dataclasses.replace(old.recipe, **free),
        ),
    ):
        if new_value != old_value:
            raise PlanError(
                f"cannot resume: the plan was made with other {what}; repeat its options, or "
                "start afresh without --resume"
            )
    if len(old.removed) > plan.recipe.num_removed:
        raise PlanError(
            f"cannot resume: the plan removes {len(old.removed)} layers already; "
            "use apply --rounds for a shallower cut"
        )
    resumed = dataclasses.replace(plan, rounds=old.rounds)
    check_rounds(resumed, family, where="cannot resume: the plan")
    if old.rounds and plan.recipe.strategy == "one-shot" and free:
        _check_ranking(resumed, family)
    return resumed


def _check_ranking(plan: PrunePlan, family: ModelFamily) -> None:
    """Where layers are ranked once, the scores of the first round are what all others go by."""
    layers = range(plan.source.num_hidden_layers)
    ranked = {layers[p] for p in candidates(plan, layers, family.removal_unit)}
    if gap := ranked - plan.rounds[0].scores.keys():
        raise PlanError(
            f"cannot resume: round 1 of the plan has no score of layer {min(gap)}; start afresh "
            "without --resume"
        )


def apply_plan(
    checkpoint: Checkpoint,
    plan: PrunePlan,
    output: Path,
    *,
    overwrite: bool = False,
    compare: bool = True,
    max_memory: str | None = None,
    progress: Progress,
) -> Written:
    """Writes the model of `plan` into `output`.

    The directory appears when it is complete and checked, or not at all.

    Args:
        compare: run a few tokens through what was written and through the source, layer by layer.
        max_memory: that this may use, such as ``4GiB``; None for what is free.

    Raises:
        PlanError: the plan belongs to another model.
        UsageError: `output` exists or cannot be written.
        VerificationError: what was written does not load as what was planned.
    """
    limit = None if max_memory is None else parse_bytes(max_memory, option="--max-memory")
    source_parameters = checkpoint.dense.parameters(checkpoint)
    warnings = tokenizer_notes(checkpoint.path, plan.source.tokenizer_sha256)
    with output_directory(
        output, overwrite=overwrite, source=checkpoint.home, note=progress.say
    ) as partial:
        done = rewrite_model(
            checkpoint, plan, partial, progress=progress, compare=compare,
            max_memory=limit,
        )  # fmt: skip
        written = Written(
            output, sorted([*done.files, "README.md", MANIFEST_FILE]), done.parameters,
            source_parameters, done.nbytes, checkpoint.index.nbytes, done.checks, done.comparison,
            warnings,
        )  # fmt: skip
        card = model_card(
            plan,
            origin=origin_of(checkpoint.path, plan.source.name if plan.source.on_hub else None),
            parameters=(done.parameters, source_parameters),
            nbytes=(done.nbytes, checkpoint.index.nbytes),
            converted=checkpoint.converted,
        )  # fmt: skip
        (partial / "README.md").write_text(card, encoding="utf-8")
        write_manifest(
            partial, plan, checks=done.checks, comparison=done.comparison,
            edited_tensors=done.edited_tensors, **converted_facts(checkpoint),
        )  # fmt: skip
    for warning in warnings:
        progress.say(f"note: {warning}")
    return written


def compress(
    checkpoint: Checkpoint,
    request: PlanRequest,
    output: Path,
    *,
    name: str,
    overwrite: bool = False,
    compare: bool = True,
    progress: Progress,
) -> tuple[PrunePlan, Written]:
    """`make_plan`, then `apply_plan`."""
    plan = make_plan(checkpoint, request, name=name, progress=progress)
    return plan, apply_plan(
        checkpoint, plan, output, overwrite=overwrite, compare=compare,
        max_memory=request.max_memory if plan.recipe.device == "cpu" else None, progress=progress,
    )  # fmt: skip

"""The frozen record between deciding and writing.

Choosing layers needs the model and is expensive; applying a choice needs only files and is cheap.
A `PrunePlan` is everything that passes from the one to the other: which layers go, in which
order, with which factor, and what is needed to repeat the run. It is plain data, serialised as
JSON, and imports nothing heavy. What a file says is checked here as far as it can be without the
model, and by `prunecomp.plan_checks` against the model.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunecomp.errors import PlanError, brief
from prunecomp.hub import is_repository_name
from prunecomp.json_files import read_json
from prunecomp.limits import MAX_LAYERS, MAX_OCTAVES, MAX_SCALE
from prunecomp.records import RecordError, parse
from prunecomp.rounds import Matrices, PruneRound, RemoveSpan, Scale, Span

__all__ = ["Matrices", "PrunePlan", "PruneRound", "RemoveSpan", "Scale", "Span", "read_plan"]

#: Version 1 had no tags in its rounds: every cut removed layers, every repair was a factor.
SCHEMA_VERSION, READ_VERSIONS = 2, (1, 2)


@dataclass(frozen=True)
class Recipe:
    """What was asked for. Whatever else can change the result is in `PrunePlan.conditions`."""

    metric: str
    strategy: str
    compensation: str
    fold: str
    num_removed: int
    protect_first: int
    protect_last: int
    dtype: str
    device: str
    options: Mapping[str, Any] = field(default_factory=dict)  # empty, in plans that have it
    exact_prefix: bool = False


@dataclass(frozen=True)
class SourceModel:
    """The checkpoint that a plan was made for.

    `sha256` maps each file that determines the model's function (config and weights) to the
    SHA-256 of its bytes; for files on the hub this is the digest that the hub itself shows.
    `on_hub` says whether `name` is a repository on the hub rather than a directory.
    `tokenizer_sha256` has the same digests of the tokenizer's files: they decided which tokens the
    text became, and nothing else of the plan.
    """

    name: str
    model_type: str
    num_hidden_layers: int
    sha256: Mapping[str, str]
    on_hub: bool = False
    tokenizer_sha256: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CalibrationRecord:
    """Which tokens were used: enough to draw the same ones again, and to prove that they are.

    Every sample begins with the tokens `prefix`, which count nowhere; `bos` is how they were asked
    for (``auto``, ``each`` or ``none``). Plans that were made before there was that have none.
    """

    source: str
    samples: int
    seq_len: int
    seed: int
    sha256: str
    options: Mapping[str, Any] = field(default_factory=dict)
    bos: str = "none"
    prefix: tuple[int, ...] = ()


@dataclass(frozen=True)
class PrunePlan:
    """Rounds in the order in which they were decided; each one nests in the next.

    The first K rounds of a plan are the plan that K rounds would have given (`prefix`).

    `perplexity` maps the name of a text to ``{"base": float, "pruned": float}``, where
    ``pruned`` belongs to the full depth of the plan. `conditions` says how it was run, as far as
    that may change a rounding, and so a choice between layers that are all but equal: batches,
    processes and threads, the implementation of attention, the processor.
    """

    source: SourceModel
    recipe: Recipe
    calibration: CalibrationRecord
    rounds: tuple[PruneRound, ...] = ()
    perplexity: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    conditions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def removed(self) -> Span:
        """All removed layers, ascending."""
        return tuple(sorted(layer for r in self.rounds for layer in r.removed))

    @property
    def kept(self) -> Span:
        """All kept layers, ascending; position in this tuple is the index in the new model."""
        gone = set(self.removed)
        return tuple(i for i in range(self.source.num_hidden_layers) if i not in gone)

    def scale_before(self, layer: int) -> float:
        """Product, in float64, of the factors of all cuts that lie after `layer`.

        This is what the published form multiplies this layer's residual writers by. Layer -1
        stands for the embedding. The order of the rounds does not matter to the product, but it
        is taken in round order, so that equal plans give equal bits.
        """
        return math.prod(r.factor for r in self.rounds if r.removed[0] > layer)

    @property
    def total_scale(self) -> float:
        """Product of all factors."""
        return self.scale_before(-1)

    def rewritten(self, weight: str) -> int | None:
        """The number of the last round whose repair gives the weight a new value, if any does."""
        found = [n for n, r in enumerate(self.rounds) if weight in r.repair.weights]
        return found[-1] if found else None

    def beside(self, directory: Path) -> PrunePlan:
        """The same plan, whose sidecars are looked for in `directory`."""
        rounds = (
            dataclasses.replace(r, repair=r.repair.beside(directory))
            if isinstance(r.repair, Matrices) else r
            for r in self.rounds
        )  # fmt: skip
        return dataclasses.replace(self, rounds=tuple(rounds))

    def with_round(self, new: PruneRound) -> PrunePlan:
        return dataclasses.replace(self, rounds=(*self.rounds, new))

    def prefix(self, rounds: int) -> PrunePlan:
        """The plan of the first `rounds` rounds.

        Measured perplexities belong to the full depth, so a shorter plan does not inherit them.

        Raises:
            PlanError: there are fewer rounds, or `rounds` is not positive.
        """
        if not 1 <= rounds <= len(self.rounds):
            raise PlanError(
                f"--rounds {rounds}: this plan has {len(self.rounds)} round(s); "
                f"give a number from 1 to {len(self.rounds)}"
            )
        kept = self.rounds[:rounds]
        removed = sum(len(r.removed) for r in kept)
        if removed == self.recipe.num_removed:
            return self
        return dataclasses.replace(
            self,
            recipe=dataclasses.replace(self.recipe, num_removed=removed),
            rounds=kept,
            perplexity={name: {"base": p["base"]} for name, p in self.perplexity.items()},
        )

    def to_json(self) -> dict[str, Any]:
        document = dataclasses.asdict(dataclasses.replace(self, rounds=()))
        document["rounds"] = [r.to_json() for r in self.rounds]
        document["calibration"]["prefix"] = list(self.calibration.prefix)
        return {
            "schema_version": SCHEMA_VERSION,
            **document,
            "removed_layers": list(self.removed),
            "kept_layers": list(self.kept),
        }

    @classmethod
    def from_json(cls, document: Any, *, where: str) -> PrunePlan:
        """Reads what `to_json` wrote; `where` names the file in error messages.

        Raises:
            PlanError: not a plan, of another schema version, or inconsistent in itself.
        """
        if not isinstance(document, dict) or "schema_version" not in document:
            raise PlanError(f"{where}: not a prunecomp plan; make one with `cli.py plan`")
        version = document["schema_version"]
        if type(version) is not int or version not in READ_VERSIONS:
            raise PlanError(
                f"{where}: schema version {brief(version)}, but this version of prunecomp reads "
                f"version {READ_VERSIONS[0]} to {READ_VERSIONS[-1]}; make the plan again"
            )
        try:
            plain = {k: v for k, v in document.items() if k not in (*_DERIVED, "rounds")}
            plan = parse(cls, plain, "")
            _check_values(document, plan)
            plan = dataclasses.replace(plan, rounds=_rounds(document["rounds"]))
        except RecordError as error:
            raise PlanError(f"{where}: malformed plan ({error}); make it again") from error
        try:
            _check_rounds(plan)
            _check_scales(plan)
            _check_derived(document, plan)
        except RecordError as error:
            raise PlanError(f"{where}: {error}; make the plan again") from error
        return plan


#: What `to_json` adds for those who read the file without this package.
_DERIVED = ("schema_version", "removed_layers", "kept_layers")


def _rounds(entries: Any) -> tuple[PruneRound, ...]:
    if not isinstance(entries, list):
        raise RecordError(f"rounds: {brief(entries)} is not what this version expects there")
    return tuple(PruneRound.from_json(e, f"rounds[{n}]") for n, e in enumerate(entries))


def _check_values(document: Mapping[str, Any], plan: PrunePlan) -> None:
    """Refuses what no annotation can exclude."""
    for name in ("rounds", "perplexity", "versions"):
        if name not in document:
            raise RecordError(f"the key {name!r} is missing")
    source = plan.source
    sound = {
        "source.num_hidden_layers": 0 < source.num_hidden_layers <= MAX_LAYERS,
        "source.name": not source.on_hub or is_repository_name(source.name),
        "recipe.fold": plan.recipe.fold in {"downstream", "upstream"},
        "perplexity": all("base" in values for values in plan.perplexity.values()),
    }
    for name, is_sound in sound.items():
        if not is_sound:
            group, _, key = name.partition(".")
            value = document[group][key] if key else document[group]
            raise RecordError(f"{name} is {brief(value)}")


def _check_rounds(plan: PrunePlan) -> None:
    """Every round removes neighbours among the layers that are left at that point."""
    depth = plan.source.num_hidden_layers
    live, gone = list(range(depth)), set[int]()
    for number, r in enumerate(plan.rounds, start=1):
        removed = list(r.removed)
        if not removed or any(i in gone or not 0 <= i < depth for i in removed):
            raise RecordError(
                f"round {number} removes {brief(removed)}, which are not layers of the model at "
                "that point"
            )
        first = bisect.bisect_left(live, removed[0])
        if live[first : first + len(removed)] != removed:
            raise RecordError(f"round {number} removes {brief(removed)}, which are not neighbours")
        if len(removed) == len(live):
            raise RecordError(f"removes all {depth} layers; at least one must stay")
        del live[first : first + len(removed)]
        gone.update(removed)


def _check_scales(plan: PrunePlan) -> None:
    """Factors, and their products, are finite, positive and within reason."""
    for number, r in enumerate(plan.rounds, start=1):
        if not 1 / MAX_SCALE <= r.factor <= MAX_SCALE:
            raise RecordError(
                f"round {number} has factor {r.factor}; a factor is finite and positive, and no "
                "model's is so far from one"
            )
    octaves = sum(abs(math.log2(r.factor)) for r in plan.rounds)
    if octaves > MAX_OCTAVES:
        raise RecordError(f"the factors of the rounds are {octaves:.0f} doublings and halvings")
    product = 1.0
    for r in sorted(plan.rounds, key=lambda r: r.removed[0], reverse=True):
        product *= r.factor
        if not 1 / MAX_SCALE <= product <= MAX_SCALE:
            raise RecordError(
                f"the factors of the rounds come to {product:.6g} before layer {r.removed[0]}, "
                "which no dtype holds"
            )


def _check_derived(document: Mapping[str, Any], plan: PrunePlan) -> None:
    """What the file says of its rounds beside them is true; a plan may be unfinished, though."""
    if plan.recipe.num_removed < len(plan.removed):
        raise RecordError(
            f"recipe.num_removed is {plan.recipe.num_removed}, but the rounds remove "
            f"{len(plan.removed)} layers"
        )
    for name, layers in (("removed_layers", plan.removed), ("kept_layers", plan.kept)):
        if name in document and document[name] != list(layers):
            raise RecordError(
                f"{name} is {brief(document[name])}, but the rounds say {brief(list(layers))}"
            )


def read_plan(path: Path) -> PrunePlan:
    """Reads a plan file, or the plan inside a ``prunecomp.json`` manifest.

    Raises:
        PlanError: unreadable or not a valid plan.
    """
    document = read_json(path, PlanError, "name a file from `plan`, or make it again")
    if isinstance(document, dict) and "plan" in document:
        document = document["plan"]
    return PrunePlan.from_json(document, where=str(path)).beside(path.parent)

"""The frozen record between deciding and writing.

Choosing layers needs the model and is expensive; applying a choice needs only files and is cheap.
A `PrunePlan` is everything that passes from the one to the other: which layers go, in which
order, with which factor, and what is needed to repeat the run. It is plain data, serialised as
JSON, and imports nothing but the standard library.
"""

from __future__ import annotations

import dataclasses
import json
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunecomp.errors import PlanError
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
    options: Mapping[str, Any] = field(default_factory=dict)  # of plans that have it: empty
    exact_prefix: bool = False


@dataclass(frozen=True)
class SourceModel:
    """The checkpoint that a plan was made for.

    `sha256` maps each file that determines the model's function (config and weights) to the
    SHA-256 of its bytes; for files on the hub this is the digest that the hub itself shows.
    `on_hub` says whether `name` is a repository on the hub rather than a directory.
    """

    name: str
    model_type: str
    num_hidden_layers: int
    sha256: Mapping[str, str]
    on_hub: bool = False


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


_MAX_DEPTH = 10_000  # no decoder is near it; a damaged number must not make us list that many
_KINDS = {"str": str, "int": int, "bool": bool, "Mapping": dict, "tuple": tuple}


def _checked(record: Any) -> Any:
    """`record`, a dataclass, whose fields hold what their annotations say.

    Raises:
        TypeError: one does not.
    """
    for item in dataclasses.fields(record):
        value, kind = getattr(record, item.name), _KINDS[str(item.type).partition("[")[0]]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise TypeError(f"{item.name} is {value!r}")
    return record


def _calibration(document: Mapping[str, Any]) -> CalibrationRecord:
    prefix = tuple(operator.index(token) for token in document.get("prefix", ()))
    return _checked(CalibrationRecord(**{**document, "prefix": prefix}))


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
        if rounds == len(self.rounds):
            return self
        kept = self.rounds[:rounds]
        return dataclasses.replace(
            self,
            recipe=dataclasses.replace(self.recipe, num_removed=sum(len(r.removed) for r in kept)),
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
                f"{where}: schema version {version}, but this version of "
                f"prunecomp reads version {READ_VERSIONS[0]} to {READ_VERSIONS[-1]}; make the plan "
                "again"
            )
        try:
            plan = cls(
                source=_checked(SourceModel(**document["source"])),
                recipe=_checked(Recipe(**document["recipe"])),
                calibration=_calibration(document["calibration"]),
                rounds=tuple(PruneRound.from_json(r) for r in document["rounds"]),
                perplexity=document["perplexity"],
                versions=document["versions"],
                conditions=document.get("conditions", {}),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"{where}: malformed plan ({error!r}); make it again") from error
        plan._check_fields(where)
        plan._check_rounds(where)
        return plan

    def _check_fields(self, where: str) -> None:
        sound = {
            "source.num_hidden_layers": 0 < self.source.num_hidden_layers <= _MAX_DEPTH,
            "recipe.fold": self.recipe.fold in {"downstream", "upstream"},
            "perplexity": isinstance(self.perplexity, dict)
            and all(
                isinstance(p, dict)
                and "base" in p
                and all(isinstance(value, float | int) for value in p.values())
                for p in self.perplexity.values()
            ),
            "versions": isinstance(self.versions, dict),
            "conditions": isinstance(self.conditions, dict),
        }
        for name, is_sound in sound.items():
            if not is_sound:
                raise PlanError(f"{where}: malformed plan (the value of {name}); make it again")

    def _check_rounds(self, where: str) -> None:
        depth, seen = self.source.num_hidden_layers, set[int]()
        for number, r in enumerate(self.rounds, start=1):
            live = [i for i in range(depth) if i not in seen]
            if not r.removed or any(i not in live for i in r.removed):
                raise PlanError(
                    f"{where}: round {number} removes {list(r.removed)}, which are not layers of "
                    f"the model at that point; make the plan again"
                )
            first = live.index(r.removed[0])
            if tuple(live[first : first + len(r.removed)]) != r.removed:
                raise PlanError(
                    f"{where}: round {number} removes {list(r.removed)}, which are not neighbours; "
                    f"make the plan again"
                )
            if not r.is_sound:
                raise PlanError(
                    f"{where}: round {number} has factor {r.factor}; a factor is finite and "
                    f"positive; make the plan again"
                )
            seen.update(r.removed)
        if self.rounds and len(seen) >= depth:
            raise PlanError(f"{where}: removes all {depth} layers; at least one must stay")


def read_plan(path: Path) -> PrunePlan:
    """Reads a plan file, or the plan inside a ``prunecomp.json`` manifest.

    Raises:
        PlanError: unreadable or not a valid plan.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PlanError(
            f"{path}: cannot read the plan ({error}); name a file from `plan`"
        ) from error
    if isinstance(document, dict) and "plan" in document:
        document = document["plan"]
    return PrunePlan.from_json(document, where=str(path)).beside(path.parent)

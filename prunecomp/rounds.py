"""One round of a plan: which layers go (the cut), and what closes the gap that they leave (repair).

Both are tagged unions: a class for each kind, whose fields stand in the round's JSON beside its
tag. A further kind is a further class in `CUTS` or `REPAIRS`. Plain data, standard library only.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

#: A span of layers by original index; a single layer is a span of length one.
Span = tuple[int, ...]


@dataclass(frozen=True)
class RemoveSpan:
    """The layers `removed` go: neighbours among those that are left, original indices, ascending.

    JSON: ``"cut": "remove", "removed": [5, 6]``.
    """

    removed: Span
    kind: ClassVar[str] = "remove"

    def to_json(self) -> dict[str, Any]:
        return {"removed": list(self.removed)}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> RemoveSpan:
        return cls(tuple(operator.index(i) for i in entry["removed"]))


class Repair(Protocol):
    """What is done so that the layers behind a cut read what they are used to.

    Attributes:
        factor: by which the stream in front of the cut is too small; 1.0 where it is right. It is
            folded into what writes to the stream, see `prunecomp.fold`.
        weights: names of the source's tensors that this repair gives new values. These are the
            values that they have in the model after this round, its own factor included; factors
            of later rounds are applied to them.
    """

    kind: ClassVar[str]

    @property
    def factor(self) -> float: ...

    @property
    def weights(self) -> tuple[str, ...]: ...

    def sources(self, weight: str) -> tuple[str, ...]:
        """What a new value is made of: names of the source's tensors, or keys of sidecars."""
        ...

    def value(self, weight: str, *tensors: Any) -> Any:
        """The new value from several sources; one source is taken as it is."""
        ...

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Scale:
    """The stream in front of the cut is scaled by `factor`; 1.0 leaves the gap as it is.

    JSON: ``"repair": "scale", "factor": 1.07``.
    """

    factor: float = 1.0
    kind: ClassVar[str] = "scale"
    weights: ClassVar[tuple[str, ...]] = ()

    def sources(self, weight: str) -> tuple[str, ...]:
        return (weight,)

    def value(self, weight: str, *tensors: Any) -> Any:
        return tensors[0]

    def to_json(self) -> dict[str, Any]:
        return {"factor": self.factor}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Scale:
        return cls(float(entry["factor"]))


@dataclass(frozen=True)
class Matrices:
    """Whole weights are new; they lie in a safetensors file beside the plan, its sidecar.

    JSON: ``"repair": "matrices", "factor": 1.0, "matrices": {"file": NAME, "sha256": HEX,
    "weights": [NAME, ...]}``.

    Attributes:
        file: name of the sidecar, which holds each weight under its name in the source.
        sha256: of the sidecar.
        directory: where the sidecar lies; None where only the plan is known.
    """

    file: str
    sha256: str
    weights: tuple[str, ...]
    factor: float = 1.0
    directory: Path | None = field(default=None, compare=False, repr=False)
    kind: ClassVar[str] = "matrices"

    def key(self, weight: str) -> str:
        """Under which a weight of this sidecar is known among all sources of an edit."""
        return f"{self.sha256}:{weight}"

    def sources(self, weight: str) -> tuple[str, ...]:
        return (self.key(weight),)

    def value(self, weight: str, *tensors: Any) -> Any:
        return tensors[0]

    def beside(self, directory: Path) -> Matrices:
        """The same, with the sidecar in `directory`."""
        return replace(self, directory=directory)

    def to_json(self) -> dict[str, Any]:
        sidecar = {"file": self.file, "sha256": self.sha256, "weights": list(self.weights)}
        return {"factor": self.factor, "matrices": sidecar}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Matrices:
        found = entry["matrices"]
        file, sha256, weights = found["file"], found["sha256"], found["weights"]
        if not isinstance(file, str) or not file or Path(file).name != file or "\0" in file:
            raise ValueError(f"matrices.file is {file!r}")
        if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ValueError(f"matrices.sha256 is {sha256!r}")
        texts = isinstance(weights, list) and all(isinstance(name, str) for name in weights)
        if not texts or not weights or len(set(weights)) < len(weights):
            raise ValueError(f"matrices.weights is {weights!r}")
        return cls(file, sha256, tuple(weights), float(entry["factor"]))


#: The kinds, by the tag that stands in a plan.
CUTS: dict[str, Any] = {RemoveSpan.kind: RemoveSpan}
REPAIRS: dict[str, Any] = {Scale.kind: Scale, Matrices.kind: Matrices}


@dataclass(frozen=True)
class PruneRound:
    """One cut with its repair.

    Attributes:
        cut: which layers go.
        repair: what closes the gap.
        scores: the metric of every candidate span in this round, keyed by its first layer;
            the lowest is removed.
    """

    cut: RemoveSpan
    repair: Repair
    scores: Mapping[int, float]

    @property
    def removed(self) -> Span:
        """The layers that go, original indices in ascending order."""
        return self.cut.removed

    @property
    def factor(self) -> float:
        """The ratio of the stream behind the cut to the stream in front of it; 1.0 for none."""
        return self.repair.factor

    def to_json(self) -> dict[str, Any]:
        return {
            "cut": self.cut.kind, **self.cut.to_json(),
            "repair": self.repair.kind, **self.repair.to_json(),
            "scores": {str(layer): score for layer, score in self.scores.items()},
        }  # fmt: skip

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> PruneRound:
        """Reads what `to_json` wrote, or a round of schema 1, which has no tags.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it is something else.
        """
        cut, repair = entry.get("cut", RemoveSpan.kind), entry.get("repair", Scale.kind)
        for tag, known in ((cut, CUTS), (repair, REPAIRS)):
            if tag not in known:
                raise ValueError(f"{tag!r} is none of {', '.join(known)}")
        return cls(
            CUTS[cut].from_json(entry), REPAIRS[repair].from_json(entry),
            {int(layer): float(score) for layer, score in entry["scores"].items()},
        )  # fmt: skip

    @property
    def is_sound(self) -> bool:
        """Whether the factor is one that a stream can be scaled by."""
        return math.isfinite(self.factor) and self.factor > 0

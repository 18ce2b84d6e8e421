"""One round of a plan: which layers go (the cut), and what closes the gap that they leave (repair).

Both are tagged unions: a class for each kind, whose fields stand in the round's JSON beside its
tag. A further kind is a further class in `CUTS` or `REPAIRS`. Plain data, without torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from prunecomp.errors import brief
from prunecomp.records import RecordError, parse

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
    def from_json(cls, entry: Mapping[str, Any], where: str) -> RemoveSpan:
        return cls(_parsed(tuple[int, ...], entry, "removed", where))


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
    def from_json(cls, entry: Mapping[str, Any], where: str) -> Scale:
        return cls(float(_parsed(float, entry, "factor", where)))


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
    def from_json(cls, entry: Mapping[str, Any], where: str) -> Matrices:
        found = _parsed(_Sidecar, entry, "matrices", where)
        sound = {
            "file": bool(found.file) and Path(found.file).name == found.file
            and found.file.isprintable(),
            "sha256": re.fullmatch("[0-9a-f]{64}", found.sha256) is not None,
            "weights": 0 < len(found.weights) == len(set(found.weights)),
        }  # fmt: skip
        for name, is_sound in sound.items():
            if not is_sound:
                raise RecordError(f"{where}.matrices.{name} is {brief(getattr(found, name))}")
        factor = float(_parsed(float, entry, "factor", where))
        return cls(found.file, found.sha256, found.weights, factor)


@dataclass(frozen=True)
class _Sidecar:
    """What the JSON of `Matrices` says of its file."""

    file: str
    sha256: str
    weights: tuple[str, ...]


def _parsed(kind: Any, entry: Mapping[str, Any], name: str, where: str) -> Any:
    """A value of `entry`, checked.

    Raises:
        RecordError: it is missing, or something else.
    """
    if name not in entry:
        raise RecordError(f"{where}: the key {name!r} is missing")
    return parse(kind, entry[name], f"{where}.{name}")


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
    def from_json(cls, entry: Any, where: str) -> PruneRound:
        """Reads what `to_json` wrote, or a round of schema 1, which has no tags.

        Raises:
            RecordError: it is something else.
        """
        if not isinstance(entry, dict):
            raise RecordError(f"{where}: must be a JSON object")
        tags = {"cut": (RemoveSpan.kind, CUTS), "repair": (Scale.kind, REPAIRS)}
        kinds = {}
        for name, (default, known) in tags.items():
            tag = entry.get(name, default)
            if not isinstance(tag, str) or tag not in known:
                raise RecordError(f"{where}.{name}: {brief(tag)} is none of {', '.join(known)}")
            kinds[name] = known[tag]
        found = cls(
            kinds["cut"].from_json(entry, where), kinds["repair"].from_json(entry, where),
            _parsed(Mapping[int, float], entry, "scores", where),
        )  # fmt: skip
        if unknown := sorted(set(entry) - set(found.to_json())):
            raise RecordError(f"{where}: unknown key {brief(unknown[0])}")
        return found

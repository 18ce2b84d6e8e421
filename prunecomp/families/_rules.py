"""How config fields that speak of depth change when layers go: one small class per kind of field.

A family lists the rules that its config needs. Each rule says for itself when a checkpoint cannot
be rewritten exactly; generic code asks all of them and knows none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]
Kept = tuple[int, ...]


class DepthRule:
    """One field, or one group of fields, of config.json."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The config keys that the rule rewrites."""
        return ()

    def reason_against(self, config: Config, depth: int) -> str | None:
        """Why this config of `depth` layers cannot be handled; None where it can."""
        return None

    def extra_layers(self, config: Config) -> int:
        """How many layers behind the last one the files may hold."""
        return 0

    def rewrite(self, new: dict[str, Any], config: Config, resolved: Config, kept: Kept) -> None:
        """Sets its keys in `new`, the config of the layers `kept` (original indices, ascending).

        `config` is config.json as it stands, `resolved` as transformers resolves it.
        """


@dataclass(frozen=True)
class PerLayer(DepthRule):
    """A list with one entry per layer.

    Where config.json leaves it out but transformers resolves it (from a pattern, say), it is
    written out: resolved again for fewer layers, it would come out different.
    """

    key: str

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def reason_against(self, config: Config, depth: int) -> str | None:
        values = config.get(self.key)
        if values is None or (isinstance(values, list) and len(values) == depth):
            return None
        count = len(values) if isinstance(values, list) else "no list of"
        return (
            f"config.json has {count} entries in {self.key} for {depth} layers; "
            "correct the config first"
        )

    def rewrite(self, new: dict[str, Any], config: Config, resolved: Config, kept: Kept) -> None:
        values = config.get(self.key)
        if values is None:
            values = resolved.get(self.key)
        if values is not None:
            new[self.key] = [values[i] for i in kept]


@dataclass(frozen=True)
class FirstLayers(DepthRule):
    """A number that speaks of the first so many layers: dense ones, or those without a window."""

    key: str

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def reason_against(self, config: Config, depth: int) -> str | None:
        value = config.get(self.key)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return None
        return f"config.json has {self.key} = {value!r}; it must be a number of layers"

    def rewrite(self, new: dict[str, Any], config: Config, resolved: Config, kept: Kept) -> None:
        value = config.get(self.key)
        if value is None:
            value = resolved.get(self.key)
        if value is not None:
            new[self.key] = sum(i < value for i in kept)


@dataclass(frozen=True)
class SparseStep(DepthRule):
    """Qwen's rule: layer i is dense if listed, or if ``(i + 1) % step`` is not zero.

    A hole in the sequence cannot be said with a step, but a list can say anything: the step
    becomes 1, and the list names every dense layer that stays.
    """

    step: str = "decoder_sparse_step"
    dense: str = "mlp_only_layers"

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.step, self.dense)

    def reason_against(self, config: Config, depth: int) -> str | None:
        step, dense = config.get(self.step, 1), config.get(self.dense) or []
        if not isinstance(step, int) or isinstance(step, bool) or step < 1:
            return f"config.json has {self.step} = {step!r}; it must be a positive number"
        if not isinstance(dense, list) or not all(isinstance(i, int) for i in dense):
            return f"config.json has {self.dense} = {dense!r}; it must be a list of layers"
        return None

    def rewrite(self, new: dict[str, Any], config: Config, resolved: Config, kept: Kept) -> None:
        step = config.get(self.step, resolved.get(self.step, 1))
        listed = set(config.get(self.dense) or resolved.get(self.dense) or [])
        dense = [p for p, i in enumerate(kept) if i in listed or (i + 1) % step]
        new[self.step], new[self.dense] = 1, dense


@dataclass(frozen=True)
class ExtraLayers(DepthRule):
    """Layers behind the last one that only predict ahead (multi-token prediction).

    transformers ignores them, and vLLM finds them by the depth. They were trained on the stream
    of the full model; they are dropped, and their number becomes zero.
    """

    key: str = "num_nextn_predict_layers"

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def extra_layers(self, config: Config) -> int:
        count = config.get(self.key)
        return count if isinstance(count, int) else 1  # absent: the files tell, if need be

    def rewrite(self, new: dict[str, Any], config: Config, resolved: Config, kept: Kept) -> None:
        # Written even where it is absent: the class default may be one.
        if config.get(self.key) or resolved.get(self.key):
            new[self.key] = 0


@dataclass(frozen=True)
class Requires(DepthRule):
    """A switch that changes what the residual stream is; only one setting is supported."""

    key: str
    value: Any
    reason: str

    def reason_against(self, config: Config, depth: int) -> str | None:
        found = config.get(self.key, self.value)
        return None if found == self.value else f"{self.key} = {found!r}: {self.reason}"

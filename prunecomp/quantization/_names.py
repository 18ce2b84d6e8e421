r"""Settings that name modules, and how they change when layers go and the others are renumbered.

Such names are of three kinds: words and patterns that say the same at every depth (``lm_head``,
``re:.*down_proj``), names of one layer's module (``model.layers.3.mlp.gate``), and patterns that
pick layers by number (``re:.*layers\.[0-3]\..*``). What a name means depends on the program that
reads it, so each is tried against every reader's own rule, on the modules of this checkpoint: it
is kept, renumbered, or replaced by the list of what it matched, whichever means the same to all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunecomp.errors import UnsupportedModelError, brief
from prunecomp.quantization._patterns import matching

#: Which of the modules a name or pattern speaks of.
Reader = Callable[[str, Mapping[str, Any]], set[str]]

_MOST_DIGITS = 9  # of the number of a layer
#: Modules that vLLM makes of several, and asks about by the new name.
_FUSED = {
    "q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj",
    "q_a_proj": "fused_qkv_a_proj", "kv_a_proj_with_mqa": "fused_qkv_a_proj",
}  # fmt: skip


def exact_or_regex(pattern: str, names: Mapping[str, Any]) -> set[str]:
    """compressed-tensors: the name itself, or a pattern behind ``re:`` from its start."""
    if pattern.startswith("re:"):
        return matching(pattern.removeprefix("re:"), names)
    return {pattern} & names.keys()


def exact(pattern: str, names: Mapping[str, Any]) -> set[str]:
    """vLLM, fp8."""
    return {pattern} & names.keys()


def substring(pattern: str, names: Mapping[str, Any]) -> set[str]:
    """vLLM, AWQ, and the blocks of GPTQ."""
    return {name for name in names if pattern in name}


def beginning_or_end(pattern: str, names: Mapping[str, Any]) -> set[str]:
    """transformers, `should_convert_module`: a pattern from the start, or the last characters."""
    return matching(pattern, names) | {name for name in names if name.endswith(pattern)}


def signed_regex(pattern: str, names: Mapping[str, Any]) -> set[str]:
    """GPTQ's ``dynamic``: a pattern from the start, behind ``+:``, ``-:`` or nothing."""
    return matching(re.sub(r"^[+-]:", "", pattern), names)


def as_list(pattern: str, names: Sequence[str]) -> list[str]:
    return list(names)


def as_regex(pattern: str, names: Sequence[str]) -> list[str]:
    """One pattern for all, with the sign of the one that it replaces."""
    sign = pattern[:2] if pattern[:2] in ("+:", "-:") else ""
    return [f"{sign}(?:{'|'.join(map(re.escape, names))})$"]


@dataclass(frozen=True)
class NameList:
    """One setting that names modules.

    Attributes:
        path: of the list, or of the mapping whose keys are the names; ``*`` stands for any key.
        readers: the rules by which programs understand it.
        explicit: how it says a list of modules.
    """

    path: tuple[str, ...]
    readers: tuple[Reader, ...]
    explicit: Callable[[str, Sequence[str]], list[str]] = as_list


class Renumbering:
    """Modules before layers go, and what they are called afterwards.

    Attributes:
        old: every module of the checkpoint, those that vLLM fuses included.
        new: those of the layers that stay, by their new names.
    """

    def __init__(
        self, modules: Iterable[tuple[int | None, str]], layers: str, kept: Sequence[int]
    ) -> None:
        """`modules` are ``(layer, name in it)``, or ``(None, full name)``."""
        position = {layer: new for new, layer in enumerate(kept)}
        self.layers, self.position = layers, position
        self.old: dict[str, str | None] = {}
        for layer, path in modules:
            parts = path.split(".")
            paths = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
            paths |= {_fused(p) for p in paths} | ({""} if layer is not None else set())
            for name in paths:
                if layer is None:
                    self.old[name] = name
                else:
                    tail = f".{name}" if name else ""
                    new = position.get(layer)
                    self.old[f"{layers}.{layer}{tail}"] = (
                        None if new is None else f"{layers}.{new}{tail}"
                    )
        self.new = dict.fromkeys(name for name in self.old.values() if name is not None)

    def of(self, pattern: str, names: NameList) -> list[str]:
        """What says of the new modules what `pattern` said of the old ones; empty: nothing is left.

        Raises:
            UnsupportedModelError: nothing does.
        """
        hits = [reader(pattern, self.old) for reader in names.readers]
        wanted = [{n for o in found if (n := self.old[o]) is not None} for found in hits]
        numbered = self._renumbered(pattern)
        if not any(wanted) and (any(hits) or numbered is None):
            return []
        candidates = [[pattern], [] if numbered is None else [numbered]]
        if not any(hits):
            candidates.reverse()
        if any(wanted):
            candidates += [names.explicit(pattern, sorted(found)) for found in wanted if found]
        for candidate in filter(None, candidates):
            if all(
                set().union(*(reader(c, self.new) for c in candidate)) == found
                for reader, found in zip(names.readers, wanted, strict=True)
            ):
                return candidate
        raise UnsupportedModelError(
            f"{'.'.join(names.path)} names {brief(pattern)}, which cannot be said of layers "
            "with other numbers; name the modules one by one"
        )

    def _renumbered(self, pattern: str) -> str | None:
        """With the layer numbers in it replaced; None where such a layer goes."""
        gone = False

        def new(match: re.Match[str]) -> str:
            nonlocal gone
            if len(match[2]) > _MOST_DIGITS:
                raise UnsupportedModelError(f"{brief(pattern)} names a layer that no model has")
            position = self.position.get(int(match[2]))
            gone |= position is None
            return f"{match[1]}{position}"

        result = layer_number(self.layers).sub(new, pattern)
        return None if gone else result


def layer_number(layers: str) -> re.Pattern[str]:
    """Finds a layer's number behind the name of the list of layers, also in a pattern."""
    return re.compile(rf"(\b{re.escape(layers.rpartition('.')[2])}\\?\.)(\d+)")


def _fused(path: str) -> str:
    head, dot, last = path.rpartition(".")
    return f"{head}{dot}{_FUSED.get(last, last)}"


def renumber(
    settings: Mapping[str, Any], lists: Sequence[NameList], renumbering: Renumbering
) -> dict[str, Any]:
    """`settings` with every list of names renumbered.

    Raises:
        UnsupportedModelError: a name cannot be said of the new numbers.
    """
    new = dict(settings)
    for names in lists:
        new = _rewritten(new, names.path, names, renumbering)
    return new


def _rewritten(value: Any, path: Sequence[str], names: NameList, renumbering: Renumbering) -> Any:
    if path and isinstance(value, Mapping):
        keys = [k for k in value if path[0] in ("*", k)]
        changed = {k: _rewritten(value[k], path[1:], names, renumbering) for k in keys}
        return {**value, **changed}
    if path or value is None:
        return value
    entries = [
        name
        for entry in (value if isinstance(value, list | Mapping) else [None])
        for name in (entry if isinstance(entry, list) else [entry])
    ]
    if not all(isinstance(name, str) for name in entries):
        raise UnsupportedModelError(f"{'.'.join(names.path)} is no list of names: {brief(value)}")
    if isinstance(value, Mapping):
        return {new: v for old, v in value.items() for new in renumbering.of(old, names)}
    return [
        new
        for entry in value
        for new in (
            [[n for old in entry for n in renumbering.of(old, names)]]
            if isinstance(entry, list)
            else renumbering.of(entry, names)
        )
    ]


def unread_layer_names(
    settings: Mapping[str, Any], lists: Sequence[NameList], layers: str
) -> str | None:
    """A setting outside `lists` that speaks of layers by number, if there is one."""
    number = layer_number(layers)

    def search(value: Any, path: tuple[str, ...]) -> str | None:
        known = any(
            len(names.path) == len(path)
            and all(a in ("*", b) for a, b in zip(names.path, path, strict=True))
            for names in lists
        )
        if known:
            return None
        if isinstance(value, Mapping):
            for key, inner in value.items():
                found = ".".join((*path, key)) if number.search(str(key)) else None
                found = found or search(inner, (*path, str(key)))
                if found:
                    return found
        if isinstance(value, list):
            return next((f for item in value if (f := search(item, (*path, "-")))), None)
        return ".".join(path) if isinstance(value, str) and number.search(value) else None

    return search(settings, ())
